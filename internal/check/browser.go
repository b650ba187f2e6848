package check

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

const (
	trivalentDesktop = "trivalent.desktop"
	trivalentPolicy  = "etc/trivalent/policies/managed/veilor.json"
	// mullvadKey is "Mullvad (code signing)", RSA 4096 of 2016-10-27, with which
	// Mullvad signs its packages.
	mullvadKey = "A1198702FC3E0A09A9AE5B75D5A1D4F266DE8DDF"
)

var browserRules = []Rule{
	{
		ID:     "trivalent",
		What:   "Trivalent stays and is the default browser",
		Why:    "it is the browser that gets security fixes within days",
		Source: "strategy, browsers; freedesktop mime-apps-spec",
		Fix:    "name trivalent.desktop for web links in overlay/etc/xdg/mimeapps.list, and remove no package of it",
		check:  trivalent,
	},
	{
		ID:     "trivalent-policy",
		What:   "Trivalent trusts the site's authority for the zone alone and asks the system for names",
		Why:    "without bounds whoever has the authority's key could speak for any page; its own resolver would bypass the zone",
		Source: "Chromium policies CACertificatesWithConstraints, DnsOverHttpsMode; Trivalent reads /etc/trivalent/policies",
		Fix:    "set these two in " + trivalentPolicy + ", and nothing else",
		check:  managedPolicy,
	},
	{
		ID:     "mullvad-browser",
		What:   "Mullvad Browser comes from its makers' repository, with the key that we know",
		Why:    "who can replace the key can replace the browser",
		Source: "repository.mullvad.net; secureblue, etc/yum.repos.d/mullvad.repo",
		Fix:    "call veilor-mullvad.sh in the recipe and let it hold the base's key against " + mullvadKey,
		check:  mullvad,
	},
	{
		ID:     "thorium",
		What:   "Thorium is in no list of packages and can not become the default",
		Why:    "it stays months behind on security fixes that are known to attackers",
		Source: "strategy, browsers",
		Fix:    "take it out; who wants it runs `ujust install-thorium`",
		check:  thorium,
	},
	{
		ID:     "thorium-by-hand",
		What:   "`ujust install-thorium` says what it costs and asks",
		Why:    "nobody should get an outdated browser without knowing",
		Source: "strategy, browsers",
		Fix:    "keep the warning and the question in overlay/usr/libexec/veilor/install-thorium",
		check:  thoriumByHand,
	},
}

// entries of one group of a desktop file, in order; keys may repeat.
func desktopGroup(text, group string) [][2]string {
	var all [][2]string
	in := false
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			in = line == "["+group+"]"
		case in:
			k, v, _ := strings.Cut(line, "=")
			all = append(all, [2]string{strings.TrimSpace(k), strings.TrimSpace(v)})
		}
	}
	return all
}

// webTypes are what makes a program the browser (xdg-settings).
var webTypes = []string{"x-scheme-handler/http", "x-scheme-handler/https", "text/html"}

func trivalent(ctx context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	defaults := map[string]string{}
	if text, err := s.file("etc/xdg/mimeapps.list"); err != nil {
		p.add(err)
	} else {
		for _, kv := range desktopGroup(string(text), "Default Applications") {
			defaults[kv[0]] = kv[1]
		}
		for _, t := range webTypes {
			if first, _, _ := strings.Cut(defaults[t], ";"); first != trivalentDesktop {
				p.addf("/etc/xdg/mimeapps.list: %s is opened by %q", t, defaults[t])
			}
		}
	}
	for _, e := range s.Tree {
		// Plasma asks its own list, and its own key, first.
		if strings.HasSuffix(e.Path, "-mimeapps.list") {
			p.addf("/%s would win over /etc/xdg/mimeapps.list", e.Path)
		}
		if strings.HasSuffix(e.Path, "/kdeglobals") {
			for _, kv := range desktopGroup(string(e.Data), "General") {
				if kv[0] == "BrowserApplication" && kv[1] != trivalentDesktop {
					p.addf("/%s: BrowserApplication is %s", e.Path, kv[1])
				}
			}
		}
	}
	for _, r := range s.removes() {
		if strings.HasPrefix(r, "trivalent") {
			p.addf("%s removes %s", recipePath, r)
		}
	}
	if s.Image != nil {
		const desktop = "usr/share/applications/" + trivalentDesktop
		if !s.Image.Has(desktop) {
			p.addf("the image has no /%s", desktop)
		}
	}
	return p.err()
}

func managedPolicy(_ context.Context, s *Subject) error {
	text, err := s.file(trivalentPolicy)
	if err != nil {
		return err
	}
	var p problems
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("/%s: %w", trivalentPolicy, err)
	}
	for k := range all {
		// Two files that set one policy: which wins is not defined. So we set
		// what the base does not.
		if k != "CACertificatesWithConstraints" && k != "DnsOverHttpsMode" {
			p.addf("/%s sets %s", trivalentPolicy, k)
		}
	}
	var dns string
	if json.Unmarshal(all["DnsOverHttpsMode"], &dns) != nil || dns != "off" {
		p.addf("/%s: DnsOverHttpsMode is %s, want \"off\": the system's resolver encrypts its questions itself and knows the zone", trivalentPolicy, all["DnsOverHttpsMode"])
	}
	var cas []struct {
		Certificate string
		Constraints map[string][]string
	}
	if err := json.Unmarshal(all["CACertificatesWithConstraints"], &cas); err != nil || len(cas) != 1 {
		p.addf("/%s: CACertificatesWithConstraints has %d entries, want one", trivalentPolicy, len(cas))
		return p.err()
	}
	if names := cas[0].Constraints["permitted_dns_names"]; !slices.Equal(names, []string{s.Site.Zone}) || len(cas[0].Constraints) != 1 {
		p.addf("/%s: the authority is permitted %q, want %q alone", trivalentPolicy, names, s.Site.Zone)
	}
	if b, _ := pem.Decode(s.Site.Authority.Data); b == nil || base64.StdEncoding.EncodeToString(b.Bytes) != cas[0].Certificate {
		p.addf("/%s: the certificate is not the site's authority", trivalentPolicy)
	}
	for _, e := range s.below("etc/trivalent/", "") {
		if e.Path != trivalentPolicy {
			p.addf("/%s may replace a file of the base", e.Path)
		}
	}
	return p.err()
}

func mullvad(_ context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay", "undo"); err != nil {
		return err
	}
	var p problems
	if slices.ContainsFunc(s.installs(), func(n string) bool { return strings.HasPrefix(n, "mullvad") }) {
		p.addf("%s installs it without holding the key against its fingerprint", recipePath)
	}
	p.add(s.calls("veilor-mullvad.sh"))
	if e, ok := s.Scripts.Find("veilor-mullvad.sh"); ok {
		p.add(contains("overlay/scripts/veilor-mullvad.sh", e.Data, mullvadKey, "--show-keys", "mullvad-stable.gpgcheck=1", "install mullvad-browser"))
		if strings.Contains(string(e.Data), "nogpgcheck") {
			p.addf("overlay/scripts/veilor-mullvad.sh installs without a signature")
		}
	}
	if u, ok := s.undoes("/etc/yum.repos.d/mullvad.repo"); !ok || !slices.Contains(u.Expect, "gpgcheck=1") || !slices.ContainsFunc(u.Expect, func(t string) bool { return strings.Contains(t, "https://repository.mullvad.net/rpm/stable/") }) {
		p.addf("overlay/undo.yaml does not hold the base's /etc/yum.repos.d/mullvad.repo to its address and gpgcheck=1")
	}
	if s.Image != nil && !s.Image.Has("usr/bin/mullvad-browser") {
		p.addf("the image has no /usr/bin/mullvad-browser")
	}
	return p.err()
}

// thoriumScript is the one place that may speak of it as something to install.
const thoriumScript = "usr/libexec/veilor/install-thorium"

func thorium(ctx context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	if regexp.MustCompile(`(?i)thorium`).MatchString(uncommented(s.RecipeText)) {
		p.addf("%s names it", recipePath)
	}
	for _, e := range s.Scripts {
		if strings.Contains(strings.ToLower(uncommented(string(e.Data))), "thorium-") || strings.Contains(strings.ToLower(uncommented(string(e.Data))), "install thorium") {
			p.addf("the script %s names it", e.Path)
		}
	}
	for _, e := range s.Tree {
		name := strings.ToLower(e.Path)
		if strings.Contains(name, "thorium") && e.Path != thoriumScript {
			p.addf("/%s is in the overlay", e.Path)
		}
		if strings.HasSuffix(e.Path, "mimeapps.list") {
			for _, group := range []string{"Default Applications", "Added Associations"} {
				for _, kv := range desktopGroup(string(e.Data), group) {
					if strings.Contains(strings.ToLower(kv[1]), "thorium") {
						p.addf("/%s: %s is opened by %s", e.Path, kv[0], kv[1])
					}
				}
			}
		}
	}
	if s.Image != nil {
		for _, f := range []string{"usr/bin/thorium-browser", "usr/share/applications/thorium-browser.desktop"} {
			if s.Image.Has(f) {
				p.addf("the image has /%s", f)
			}
		}
		if _, err := s.Image.Read(ctx, "etc/yum.repos.d/thorium.repo"); !errors.Is(err, fs.ErrNotExist) {
			p.addf("the image has a repository of Thorium")
		}
	}
	return p.err()
}

// uncommented is text without lines that begin with #.
func uncommented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func thoriumByHand(_ context.Context, s *Subject) error {
	if err := s.need("overlay", "undo"); err != nil {
		return err
	}
	var p problems
	p.add(ujust(s, "install-thorium"))
	text, err := s.file(thoriumScript)
	if err != nil {
		p.add(err)
		return p.err()
	}
	script := uncommented(string(text))
	p.add(contains("/"+thoriumScript, []byte(script), "milestones", "read -rp", "== yes ]]"))
	asks, downloads := strings.Index(script, "read -rp"), strings.Index(script, `-o "$new`)
	if asks < 0 || downloads < asks {
		p.addf("/%s downloads before it asks", thoriumScript)
	}
	// A layered package ends image updates (bootc refuses such a system).
	for _, bad := range []string{"rpm-ostree", "dnf ", "sudo ", "run0", "MimeType=", "xdg-settings set", "xdg-mime default", "--no-sandbox"} {
		if strings.Contains(script, bad) {
			p.addf("/%s has %q", thoriumScript, strings.TrimSpace(bad))
		}
	}
	return p.err()
}
