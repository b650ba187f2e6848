package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

// transports are those that secureblue's policy rejects by name beside its
// default, so that a wider default alone would not open them
// (modules/secureblue-signing/policy.json).
var transports = []string{"atomic", "containers-storage", "dir", "docker-archive", "docker-daemon", "oci", "oci-archive", "tarball"}

// requirement is one entry of a policy scope (containers-policy.json(5)).
type requirement struct {
	Type           string    `json:"type"`
	KeyType        string    `json:"keyType,omitempty"`
	KeyPath        string    `json:"keyPath,omitempty"`
	KeyPaths       []string  `json:"keyPaths,omitempty"`
	SignedIdentity *identity `json:"signedIdentity,omitempty"`
}

type identity struct {
	Type             string `json:"type"`
	DockerRepository string `json:"dockerRepository,omitempty"`
}

// BasePolicyFile lists what of the base's own policy the image keeps. It is in the
// overlay directory but not in the image.
const BasePolicyFile = "base-policy.yaml"

// BaseScope is one scope of the base's policy that the image keeps.
type BaseScope struct {
	// Scope is a registry, namespace or repository: "ghcr.io/secureblue".
	Scope string `yaml:"scope"`
	// Keys are absolute paths in the image; any one of them may sign.
	Keys []string `yaml:"keys"`
	// GPG says that the keys are GPG keys and the signatures simple ones.
	GPG bool `yaml:"gpg,omitempty"`
	// As is the repository whose name the signatures carry, if it is another.
	As string `yaml:"as,omitempty"`
}

// ParseBasePolicy reads the text of [BasePolicyFile]. name is used in errors.
func ParseBasePolicy(name string, data []byte) ([]BaseScope, error) {
	var file struct {
		Scopes []BaseScope `yaml:"scopes"`
	}
	doc, err := strictyaml.Decode(name, data, &file, "see the comment at the head of overlay/"+BasePolicyFile+" for the keys there are")
	if err != nil {
		return nil, err
	}
	var errs []error
	seen := map[string]bool{}
	for i, b := range file.Scopes {
		add := func(key, format string, args ...any) {
			errs = append(errs, doc.Problem(fmt.Sprintf("scopes[%d]%s", i, key), format, args...))
		}
		// An empty scope is every registry there is.
		if host, _, _ := strings.Cut(b.Scope, "/"); !strings.Contains(host, ".") || strings.ContainsAny(b.Scope, "* ") {
			add(".scope", "%q is no registry; write for example quay.io/toolbx-images", b.Scope)
		}
		if seen[b.Scope] {
			add(".scope", "%s is there twice; write its keys into one entry", b.Scope)
		}
		seen[b.Scope] = true
		if len(b.Keys) == 0 {
			add(".keys", "missing: without a key nothing could be pulled; leave the scope out instead")
		}
		for _, k := range b.Keys {
			if !path.IsAbs(k) || path.Clean(k) != k {
				add(".keys", "%q is no absolute path", k)
			}
		}
		if b.GPG && b.As != "" {
			add(".as", "is for sigstore signatures; leave it out")
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return file.Scopes, nil
}

// readBasePolicy reads the list of the overlay directory src; none without one.
func readBasePolicy(src fs.FS) ([]BaseScope, error) {
	data, err := fs.ReadFile(src, BasePolicyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the base's policy: %w", err)
	}
	return ParseBasePolicy(path.Join("overlay", BasePolicyFile), data)
}

// requirements are what an image of the scope must have.
func (b BaseScope) requirements() []requirement {
	r := requirement{Type: "sigstoreSigned", SignedIdentity: &identity{Type: "matchRepository"}}
	if b.GPG {
		r = requirement{Type: "signedBy", KeyType: "GPGKeys"}
	}
	if b.As != "" {
		r.SignedIdentity = &identity{Type: "exactRepository", DockerRepository: b.As}
	}
	return []requirement{r.with(b.Keys)}
}

// with sets the keys. keyPaths is younger (skopeo 1.17) than keyPath.
func (r requirement) with(keys []string) requirement {
	if len(keys) == 1 {
		r.KeyPath = keys[0]
	} else {
		r.KeyPaths = keys
	}
	return r
}

// MirrorHost is the label under the site's zone that serves the image over the
// mesh.
const MirrorHost = "dl"

// Mirror is where the site serves its image over the mesh: the image's name in
// its registry, at the mirror's address.
func Mirror(s *site.Site) string {
	_, name, _ := strings.Cut(s.Image.Ref, "/")
	return MirrorHost + "." + s.Zone + "/" + name
}

// Policy is the image's /etc/containers/policy.json: everything is refused but
// the image itself, and that only with a good signature of every group of the
// site, and what of the base's own policy kept names. Requirements of one scope
// are AND-ed, keys of one requirement OR-ed, so that a bare bootc, rpm-ostree or
// skopeo demands the same as we do. The mirror's copy needs the signatures of the
// original.
func Policy(s *site.Site, kept ...BaseScope) []byte {
	reject := []requirement{{Type: "reject"}}
	signedAs := func(id identity) []requirement {
		var scope []requirement
		for _, g := range s.Image.Signatures {
			var keys []string
			for i := range g.Keys {
				keys = append(keys, "/"+KeyPath(g.Name, i+1))
			}
			scope = append(scope, requirement{Type: "sigstoreSigned", SignedIdentity: &id}.with(keys))
		}
		return scope
	}
	docker := map[string][]requirement{
		// matchRepository: a signature is for a repository, so that one digest
		// can have several tags.
		s.Image.Ref: signedAs(identity{Type: "matchRepository"}),
		Mirror(s):   signedAs(identity{Type: "exactRepository", DockerRepository: s.Image.Ref}),
	}
	for _, b := range kept {
		docker[b.Scope] = b.requirements()
	}
	if len(kept) > 0 {
		docker[""] = reject
	}
	byTransport := map[string]map[string][]requirement{"docker": docker}
	for _, t := range transports {
		byTransport[t] = map[string][]requirement{"": reject}
	}
	b, err := json.MarshalIndent(struct {
		Default    []requirement                       `json:"default"`
		Transports map[string]map[string][]requirement `json:"transports"`
	}{reject, byTransport}, "", "    ")
	if err != nil {
		panic(err) // only strings in it
	}
	return append(b, '\n')
}
