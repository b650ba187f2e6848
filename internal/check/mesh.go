package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/peering"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

// maxBackoff is the longest pause before a peer is dialled again. The library's
// own is 68 minutes (2^12 s), which is an evening without a fallback.
const maxBackoff = time.Minute

var meshRules = []Rule{
	{
		ID:     "tailscale",
		What:   "tailscale is installed from Fedora and off until `veilor join`",
		Why:    "a daemon that runs before that talks to its vendor's control server",
		Source: "strategy, mesh; decision 5 (docs/DECISIONS.md)",
		Fix:    "install tailscale with dnf, disable tailscaled.service in the recipe and in a preset",
		check:  tailscale,
	},
	{
		ID:     "resolver",
		What:   "the system's resolvers ask us for the zone, and MagicDNS stays off",
		Why:    "MagicDNS takes resolv.conf over and fights the base's Unbound",
		Source: "tailscale --accept-dns; unbound.conf(5); resolved.conf(5)",
		Fix:    "keep the zone in etc/unbound/conf.d and etc/systemd/resolved.conf.d; never write --accept-dns=true",
		check:  resolver,
	},
	{
		ID:     "yggdrasil",
		What:   "the Yggdrasil node is idle: it hears nobody, opens no port, admits only pinned peers, and redials within a minute",
		Why:    "a listening or unpinned node is a way in, and carries strangers' traffic",
		Source: "strategy, mesh; decision 7 (docs/DECISIONS.md)",
		Fix:    "correct overlay/usr/share/veilor/ygg.json.tmpl",
		check:  ygg,
	},
	{
		ID:     "overlay-interfaces",
		What:   "NetworkManager leaves tailscale0 and ygg0 alone",
		Why:    "it puts them into a firewall zone of its own choice, and takes the link down when that changes",
		Source: "tailscale#15968; firewalld#547",
		Fix:    "list both in overlay/usr/lib/NetworkManager/conf.d/90-veilor.conf with managed=0",
		check:  unmanaged,
	},
	{
		ID:     "firewalld",
		What:   "each overlay has a zone that drops what it does not name, and firewalld reads it",
		Why:    "one bad file makes firewalld throw all zones away and fall back to its stock configuration",
		Source: "firewalld 1.3, --check-config",
		Fix:    "correct internal/firewalld, or the tiers of the site",
		check:  firewalld,
	},
}

func tailscale(_ context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	if !slices.Contains(s.installs(), "tailscale") {
		p.addf("%s does not install tailscale", recipePath)
	}
	for _, m := range modules[*recipe.DNF](s) {
		if strings.Contains(fmt.Sprint(m.Repos), "tailscale") {
			p.addf("%s adds a repository of tailscale's vendor", recipePath)
		}
	}
	var on, off []string
	for _, m := range modules[*recipe.Systemd](s) {
		on = append(on, m.System.Enabled...)
		off = append(off, m.System.Disabled...)
	}
	if !slices.Contains(off, "tailscaled.service") || slices.Contains(on, "tailscaled.service") {
		p.addf("%s does not disable tailscaled.service", recipePath)
	}
	if _, verb := presetOf(s, "system", "tailscaled.service"); verb != "disable" {
		p.addf("no preset disables tailscaled.service")
	}
	if s.Image != nil {
		if !s.Image.Has("usr/lib/systemd/system/tailscaled.service") {
			p.addf("the image has no tailscaled.service")
		}
		const enabled = "etc/systemd/system/multi-user.target.wants/tailscaled.service"
		if s.Image.Has(enabled) {
			p.addf("the image starts tailscaled: /%s", enabled)
		}
	}
	return p.err()
}

func resolver(_ context.Context, s *Subject) error {
	var p problems
	for f, want := range map[string][]string{
		"etc/unbound/conf.d/veilor.conf":             {`name: "` + s.Site.Zone + `"`, "stub-addr: " + site.Resolver.String(), `domain-insecure: "` + s.Site.Zone + `"`, "do-not-query-localhost: no"},
		"etc/systemd/resolved.conf.d/50-veilor.conf": {"DNS=" + site.Resolver.String(), "Domains=~" + s.Site.Zone},
	} {
		text, err := s.file(f)
		if err != nil {
			p.add(err)
			continue
		}
		p.add(contains("/"+f, text, want...))
	}
	for _, e := range append(s.Tree, s.Scripts...) {
		if regexp.MustCompile(`--accept-dns(=true)?(\s|$)`).Match(e.Data) {
			p.addf("/%s switches MagicDNS on", e.Path)
		}
	}
	return p.err()
}

func ygg(_ context.Context, s *Subject) error {
	const file = "usr/share/veilor/ygg.json"
	text, err := s.file(file)
	if err != nil {
		return err
	}
	var p problems
	type peer struct{ Name, URL, Address, Key string }
	var c struct {
		IfName             string
		Listen             []string
		AllowedPublicKeys  []string
		Peers              []string
		AdminListen        string
		ControlListen      string
		GroupPasswordPath  string
		SitePath           string
		Edges, PublicPeers []peer
		Accept             []uint16
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("/%s: %w", file, err)
	}
	if c.IfName != "ygg0" {
		p.addf("/%s: IfName is %q, and the packet filter knows ygg0", file, c.IfName)
	}
	if c.Listen == nil || len(c.Listen) > 0 {
		p.addf("/%s: Listen is %q, want []", file, c.Listen)
	}
	if len(c.AllowedPublicKeys) == 0 {
		p.addf("/%s: AllowedPublicKeys is empty, which admits everybody", file)
	}
	if len(c.Peers) > 0 {
		p.addf("/%s: Peers are dialled by the library, all at once; write Edges and PublicPeers", file)
	}
	if !strings.HasPrefix(c.AdminListen, "unix:") {
		p.addf("/%s: AdminListen is %q; its socket asks for no password, so it must be a unix one", file, c.AdminListen)
	}
	// A laptop knows only the keys in its image, which is public and as old as it
	// is: whoever may open ports by the tiers, admins before all, is not among
	// them, and who has left them since is. So over the fallback nobody opens any.
	if len(c.Accept) > 0 {
		p.addf("/%s: Accept is %v; a laptop opens no port over the fallback", file, c.Accept)
	}
	if c.SitePath != "" || c.ControlListen != "" {
		p.addf("/%s: SitePath and ControlListen are for servers: a laptop has nobody to tell it who came and who was revoked", file)
	}
	// The password itself cannot be in an image that everybody may read.
	if c.GroupPasswordPath != ygggroup.Path {
		p.addf("/%s: GroupPasswordPath is %q, and the password that somebody brings is put at %s", file, c.GroupPasswordPath, ygggroup.Path)
	}
	if len(c.Edges) == 0 {
		p.addf("/%s: no edge", file)
	}
	hexKey := regexp.MustCompile(`^[0-9a-f]{64}$`)
	for _, e := range append(c.Edges, c.PublicPeers...) {
		if !hexKey.MatchString(e.Key) {
			p.addf("/%s: peer %s is not pinned by its key", file, e.Name)
		}
		if !slices.Contains(c.AllowedPublicKeys, e.Key) {
			p.addf("/%s: peer %s is not among the AllowedPublicKeys", file, e.Name)
		}
		if !strings.HasPrefix(e.URL, "wss://") {
			p.addf("/%s: peer %s is at %s, which is not wss", file, e.Name, e.URL)
		}
		if _, err := netip.ParseAddrPort(e.Address); err != nil {
			p.addf("/%s: peer %s is not at a number but at %q, so DNS would be asked", file, e.Name, e.Address)
		}
	}
	if peering.MaxBackoff > maxBackoff {
		p.addf("internal/peering waits up to %s before it dials again, want at most %s", peering.MaxBackoff, maxBackoff)
	}
	return p.err()
}

func unmanaged(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	for _, e := range s.below("usr/lib/NetworkManager/conf.d/", ".conf") {
		for _, section := range regexp.MustCompile(`(?m)^\[`).Split(uncommented(string(e.Data)), -1) {
			if strings.HasPrefix(section, "device") && strings.Contains(section, "interface-name:tailscale0") && strings.Contains(section, "interface-name:ygg0") && regexp.MustCompile(`(?m)^managed=(0|false)\s*$`).MatchString(section) {
				return nil
			}
		}
	}
	return fmt.Errorf("no file of usr/lib/NetworkManager/conf.d leaves tailscale0 and ygg0 alone")
}

func firewalld(ctx context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	zones := s.below("usr/lib/firewalld/zones/", ".xml")
	zones = append(zones, s.below("etc/firewalld/zones/", ".xml")...)
	files := map[string][]byte{"firewalld.conf": []byte("DefaultZone=public\n")}
	for _, i := range []string{"tailscale0", "ygg0"} {
		n := 0
		for _, z := range zones {
			if strings.Contains(string(z.Data), `<interface name="`+i+`"`) {
				n++
				if !strings.Contains(string(z.Data), `target="DROP"`) {
					p.addf("/%s: its target is not DROP", z.Path)
				}
			}
		}
		if n != 1 {
			p.addf("%s is in %d zones, want one", i, n)
		}
	}
	for _, z := range zones {
		files["zones/"+path.Base(z.Path)] = z.Data
		if strings.Contains(string(z.Data), `target="ACCEPT"`) {
			p.addf("/%s accepts everything", z.Path)
		}
	}
	p.add(laid(files, func(dir string) error {
		out, err := s.Tools.run(ctx, "firewall-offline-cmd", "--system-config", dir, "--check-config")
		if _, missing := err.(skip); missing {
			return err
		}
		if strings.Contains(out, "need to be root") {
			return skipf("firewall-offline-cmd --check-config asks for root")
		}
		if err != nil {
			return fmt.Errorf("firewalld: %s", complaint(out, err, dir))
		}
		return nil
	}))
	return p.err()
}
