package check

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
)

var trustRules = []Rule{
	{
		ID:     "policy",
		What:   "an image is refused unless each group of the site's keys has signed it",
		Why:    "a threshold that only our own program checks is passed by with a bare `bootc upgrade`",
		Source: "containers-policy.json(5)",
		Fix:    "let internal/overlay make policy.json of the site; do not use BlueBuild's module signing, which would write one requirement",
		check:  policy,
	},
	{
		ID:      "next-keys",
		What:    "each group that signs images has a key of now and a next one, another",
		Why:     "clients believe a new key only if an image that the old one signed brought it; a key that is lost or stolen could be followed by none",
		Source:  "site/veilor.yaml, image.signatures",
		Fix:     "make the next pair with veilor-forge key generate, keep its private half apart, and name the public one under the group's keys",
		Pending: "only the operator can make the next pair; until then a change of the key ends all updates",
		check:   nextKeys,
	},
	{
		ID:     "policy-base",
		What:   "the scopes of the base's own policy are kept, and it is held to them",
		Why:    "toolboxes, dangerzone and the way back to secureblue would stop working",
		Source: "secureblue, modules/secureblue-signing/policy.json",
		Fix:    "list each scope in overlay/base-policy.yaml, and under expect of /etc/containers/policy.json in overlay/undo.yaml",
		check:  policyBase,
	},
	{
		ID:     "mirror",
		What:   "the image is looked for on the mesh too, by digest, with the same signatures",
		Why:    "a censor who blocks the registry would stop all updates; a mirror that chooses what a tag means could keep a laptop on an old image",
		Source: "containers-registries.conf(5), containers-registries.d(5)",
		Fix:    "correct overlay/etc/containers/registries.conf.d and registries.d",
		check:  mirror,
	},
	{
		ID:     "secrets",
		What:   "no secret is in the overlay",
		Why:    "an image is public",
		Source: "internal/overlay",
		Fix:    "remove it and change it, whoever may have seen it",
		check:  secrets,
	},
}

type requirement struct {
	Type           string
	KeyPath        string
	KeyPaths       []string
	SignedIdentity signedIdentity
}

// signedIdentity says which image a signature must name.
type signedIdentity struct{ Type, DockerRepository string }

func (r requirement) keys() []string {
	if r.KeyPath != "" {
		return append([]string{r.KeyPath}, r.KeyPaths...)
	}
	return r.KeyPaths
}

type containersPolicy struct {
	Default    []requirement
	Transports map[string]map[string][]requirement
}

func readPolicy(data []byte) (c containersPolicy, err error) {
	err = json.Unmarshal(data, &c)
	return c, err
}

func policy(ctx context.Context, s *Subject) error {
	if err := s.need("recipe"); err != nil {
		return err
	}
	text, err := s.file(overlay.PolicyPath)
	if err != nil {
		return err
	}
	c, err := readPolicy(text)
	if err != nil {
		return fmt.Errorf("/%s: %w", overlay.PolicyPath, err)
	}
	var p problems
	if len(c.Default) != 1 || c.Default[0].Type != "reject" {
		p.addf("/%s: its default is not reject", overlay.PolicyPath)
	}
	for t, scopes := range c.Transports {
		for scope, rs := range scopes {
			for _, r := range rs {
				if r.Type == "insecureAcceptAnything" {
					p.addf("/%s: %s %q accepts anything", overlay.PolicyPath, t, scope)
				}
			}
		}
	}
	for scope, as := range map[string]signedIdentity{
		s.Site.Image.Ref:       {Type: "matchRepository"},
		overlay.Mirror(s.Site): {Type: "exactRepository", DockerRepository: s.Site.Image.Ref},
	} {
		// The narrowest scope decides alone (containers-policy.json(5), docker:).
		for other := range c.Transports["docker"] {
			if rest, ok := strings.CutPrefix(other, scope); ok && rest != "" && strings.Contains(":@/", rest[:1]) {
				p.addf("/%s: the scope %s is narrower than %s, and its requirements count instead", overlay.PolicyPath, other, scope)
			}
		}
		rs := c.Transports["docker"][scope]
		if len(rs) != len(s.Site.Image.Signatures) || len(rs) < 2 {
			p.addf("/%s: %s has %d requirements, want one for each of the site's groups, and at least two", overlay.PolicyPath, scope, len(rs))
			continue
		}
		for i, g := range s.Site.Image.Signatures {
			var want []string
			for j := range g.Keys {
				want = append(want, "/"+overlay.KeyPath(g.Name, j+1))
			}
			if rs[i].Type != "sigstoreSigned" || !slices.Equal(rs[i].keys(), want) {
				p.addf("/%s: %s: requirement %d is not for the keys of %s", overlay.PolicyPath, scope, i+1, g.Name)
			}
			if rs[i].SignedIdentity != as {
				p.addf("/%s: %s: requirement %d takes signatures of %+v, want %+v", overlay.PolicyPath, scope, i+1, rs[i].SignedIdentity, as)
			}
		}
	}
	for _, m := range s.Recipe.Modules {
		if m.Type == "signing" {
			p.addf("%s: the module signing of line %d adds a scope with one requirement", recipePath, m.Line)
		}
	}
	if s.Image != nil {
		got, err := s.Image.Read(ctx, overlay.PolicyPath)
		if err != nil {
			p.addf("the image: /%s: %w", overlay.PolicyPath, err)
		} else if s.Missing == nil && string(got) != string(text) {
			p.addf("the image: /%s is not the one of this site", overlay.PolicyPath)
		}
	}
	return p.err()
}

func nextKeys(_ context.Context, s *Subject) error {
	var p problems
	for _, g := range s.Site.Image.Signatures {
		if len(g.Keys) < 2 {
			p.addf("%s has %d key, want the one of now and the next", g.Name, len(g.Keys))
			continue
		}
		for i, k := range g.Keys {
			if slices.ContainsFunc(g.Keys[:i], func(o site.File) bool { return string(o.Data) == string(k.Data) }) {
				p.addf("%s has the key %d twice", g.Name, i+1)
			}
		}
	}
	return p.err()
}

func policyBase(_ context.Context, s *Subject) error {
	if err := s.need("overlay", "undo"); err != nil {
		return err
	}
	data, err := fs.ReadFile(s.Source, overlayDir+"/"+overlay.BasePolicyFile)
	if err != nil {
		return err
	}
	kept, err := overlay.ParseBasePolicy(overlayDir+"/"+overlay.BasePolicyFile, data)
	if err != nil {
		return err
	}
	var p problems
	u, ok := s.undoes("/" + overlay.PolicyPath)
	if !ok || u.Action != overlay.Replace {
		p.addf("overlay/undo.yaml does not replace /%s", overlay.PolicyPath)
	}
	want := map[string]bool{}
	for _, k := range kept {
		want[`"`+k.Scope+`"`] = true
		if !slices.Contains(u.Expect, `"`+k.Scope+`"`) {
			p.addf("overlay/undo.yaml does not expect the scope %s of the base", k.Scope)
		}
	}
	for _, e := range u.Expect {
		if strings.Contains(e, ".") && !want[e] {
			p.addf("overlay/%s does not keep the scope %s", overlay.BasePolicyFile, e)
		}
	}
	for _, scope := range []string{"ghcr.io/secureblue", "quay.io/toolbx-images"} {
		if !want[`"`+scope+`"`] {
			p.addf("overlay/%s does not keep %s", overlay.BasePolicyFile, scope)
		}
	}
	return p.err()
}

func mirror(_ context.Context, s *Subject) error {
	at := overlay.Mirror(s.Site)
	var p problems
	for f, want := range map[string][]string{
		"etc/containers/registries.conf.d/50-veilor.conf": {`prefix = "` + s.Site.Image.Ref + `"`, `location = "` + at + `"`, `pull-from-mirror = "digest-only"`},
		"etc/containers/registries.d/veilor.yaml":         {"  " + s.Site.Image.Ref + ":\n    use-sigstore-attachments: true", "  " + at + ":\n    use-sigstore-attachments: true"},
	} {
		text, err := s.file(f)
		if err != nil {
			p.add(err)
			continue
		}
		p.add(contains("/"+f, text, want...))
		if strings.Contains(string(text), "insecure = true") {
			p.addf("/%s allows a connection without TLS", f)
		}
	}
	return p.err()
}

// secretRe finds what people paste: private keys, tokens and pre-auth keys.
var secretRe = regexp.MustCompile(`PRIVATE KEY-----|ENCRYPTED (SIGSTORE|COSIGN)|\b(hskey-(auth|api)-[A-Za-z0-9_-]{8,}|tskey-[A-Za-z0-9-]{8,}|gh[opsu]_[A-Za-z0-9]{20,}|AGE-SECRET-KEY-1[A-Z0-9]+)|"(PrivateKey|AuthKey|Password|GroupPassword)"\s*:\s*"[^"]+"`)

func secrets(_ context.Context, s *Subject) error {
	var p problems
	for _, dir := range []string{overlayDir, "bluebuild", "site", "kickstart"} {
		if _, err := fs.Stat(s.Source, dir); err != nil {
			continue
		}
		p.add(fs.WalkDir(s.Source, dir, func(name string, d fs.DirEntry, err error) error {
			// What is rendered below bluebuild/files is read in overlay/.
			if err != nil || !d.Type().IsRegular() || strings.HasPrefix(name, "bluebuild/files/") {
				return err
			}
			if m := secretRe.FindString(s.source(name)); m != "" {
				// The secret itself stays out of what is printed.
				p.addf("%s holds what looks like a secret (%.12s…)", name, m)
			}
			return nil
		}))
	}
	for _, m := range modules[*recipe.Script](s) {
		if len(m.Secrets) > 0 {
			p.addf("%s gives a script secrets, which may stay in the image", recipePath)
		}
	}
	return p.err()
}
