package check

import (
	"io/fs"
	"slices"
	"strings"
	"testing/fstest"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/trust"
)

// breakage is one way to break one rule.
type breakage struct {
	rule, name string
	do         func(*world)
	want       string // part of a problem
}

const (
	ygg2    = "overlay/usr/share/veilor/ygg.json.tmpl"
	units   = "overlay/usr/lib/systemd/system/"
	session = "overlay/usr/lib/systemd/user/veilor-notify.service"
	preset  = "overlay/usr/lib/systemd/system-preset/30-veilor.preset"
	undo    = "overlay/undo.yaml"
	mime    = "overlay/etc/xdg/mimeapps.list"
	managed = "overlay/etc/trivalent/policies/managed/veilor.json.tmpl"
	wifi    = "usr/libexec/veilor/wifi-resume"
	askFor  = "overlay/usr/libexec/veilor/install-thorium"
)

// edits returns a change of one text in one file.
func edits(name, old, new string) func(*world) {
	return func(w *world) { w.edit(name, old, new) }
}

func puts(name, text string) func(*world) { return func(w *world) { w.put(name, text) } }

func removes(names ...string) func(*world) { return func(w *world) { w.remove(names...) } }

// withDownloads adds the service dl on a port, and to what guests open.
func withDownloads(port uint16, reach ...string) func(*world) {
	return func(w *world) {
		w.site.Services = append(slices.DeleteFunc(w.site.Services, func(v site.Service) bool { return v.Name == "dl.veilor" }),
			site.Service{Name: "dl.veilor", Host: "nullstone", Ports: []uint16{port}})
		w.site.Tiers[2].Reach = append([]string{"x.veilor:443"}, reach...)
	}
}

// keepsScope adds a scope to what is kept of the base's policy.
func keepsScope(scope string) func(*world) {
	return func(w *world) {
		w.files["overlay/base-policy.yaml"].Data = append(w.files["overlay/base-policy.yaml"].Data, "  - {scope: \""+scope+"\", keys: [/usr/share/pki/containers/other.pub]}\n"...)
	}
}

// rendersPolicy changes what the renderer makes as policy.json.
func rendersPolicy(old, new string) func(*world) {
	return func(w *world) {
		w.loaded = func(s *Subject) {
			for i, e := range s.Tree {
				if e.Path != overlay.PolicyPath {
					continue
				}
				if !strings.Contains(string(e.Data), old) {
					w.t.Fatalf("policy.json does not contain %s: the test is older", old)
				}
				s.Tree[i].Data = []byte(strings.ReplaceAll(string(e.Data), old, new))
			}
		}
	}
}

// inImage puts a built image beside the checkout.
func inImage(setuid []string, files ...string) func(*world) {
	return func(w *world) {
		f := fakeImage{files: map[string]string{}, setuid: setuid}
		for _, n := range files {
			f.files[n] = ""
		}
		w.image = f
	}
}

// inBuilt puts an image beside the checkout that has what the rules ask of one, and
// changes it.
func inBuilt(change func(fakeImage)) func(*world) {
	return func(w *world) {
		w.loaded = func(s *Subject) {
			f := built(s)
			change(f)
			s.Image = f
		}
	}
}

// built is an image as s should become.
func built(s *Subject) fakeImage {
	f := fakeImage{modes: map[string]fs.FileMode{}, files: map[string]string{
		"usr/lib/os-release":                             "NAME=veilor-os\nVERSION_ID=44\nPRETTY_NAME=\"veilor-os 44\"\n",
		"etc/systemd/system/rpm-ostreed-automatic.timer": "-> /dev/null",
		"etc/systemd/system/upgrade-on-boot.service":     "-> /dev/null",
		"usr/lib/systemd/system/tailscaled.service":      "",
	}}
	for _, e := range s.Tree {
		f.files[e.Path], f.modes[e.Path] = string(e.Data), e.Perm()
		if e.Link != "" {
			f.files[e.Path] = "-> " + e.Link
		}
	}
	return f
}

// lockText pins the base as recipe and site name it.
var lockText = "image: ghcr.io/secureblue/kinoite-main-hardened\nrelease: 44\ndigest: sha256:" + strings.Repeat("0a", 32) + "\ndate: \"2026-11-23\"\n"

var breaks = []breakage{
	{"recipe", "unknown key", edits(recipePath, "description:", "summary:"), "summary"},
	{"recipe", "unknown module", edits(recipePath, "type: os-release", "type: brand"), `no module "brand"`},
	{"recipe-site", "release", edits(recipePath, "image-version: 44", "image-version: 45"), "image-version"},
	{"base-known", "never existed", func(w *world) {
		w.edit(recipePath, "kinoite-main-hardened", "securecore-kinoite-hardened-userns")
	}, "securecore-kinoite-hardened-userns"},
	{"base-pinned", "no lock", func(w *world) { delete(w.files, recipe.LockPath) }, "veilor-forge image lock"},
	{"base-lock", "another base", puts(recipe.LockPath, strings.ReplaceAll(lockText, "kinoite-main", "silverblue-main")), "it is of ghcr.io/secureblue/silverblue-main-hardened"},
	{"base-lock", "last release", puts(recipe.LockPath, strings.ReplaceAll(lockText, "release: 44", "release: 43")), "the site's os.release is 44"},
	{"base-lock", "broken", puts(recipe.LockPath, strings.ReplaceAll(lockText, "sha256:", "sha256:x")), "bluebuild/base.lock:3: digest"},
	{"base-lock", "a digest in the recipe", edits(recipePath, "image-version: 44", "image-version: \"44@sha256:"+strings.Repeat("0", 64)+"\""), "write the tag alone"},
	{"image-name", "deprecated", func(w *world) { w.site.Image.Ref = "ghcr.io/veilor/veilor-userns" }, `"userns"`},
	{"release", "in the overlay", puts("overlay/etc/x.conf", "base = fedora-44\n"), "etc/x.conf:1"},
	{"release", "in a kickstart", puts("kickstart/install.ks", "text\nurl --mirrorlist=https://mirrors.example/fedora-44/x86_64\n"), "kickstart/install.ks:2"},
	{"release", "in a workflow", puts(".github/workflows/x.yml", "env:\n  # release 44\n  RELEASE: 44\n"), ".github/workflows/x.yml:3"},
	{"release", "another", edits(recipePath, "veilor-os 44", "veilor-os 43"), `"veilor-os 43"`},
	{"os-release", "ID", edits(recipePath, "      IMAGE_ID: veilor-os", "      ID: veilor\n      IMAGE_ID: veilor-os"), "sets ID=veilor"},
	{"os-release", "image", inBuilt(func(f fakeImage) {
		f.files["usr/lib/os-release"] = "NAME=\"Fedora Linux\"\nPRETTY_NAME=\"veilor-os 44\"\n"
	}), `NAME is "Fedora Linux", the recipe says "veilor-os"`},
	{"os-release", "name", edits(recipePath, "NAME: veilor-os\n", "NAME: other\n"), "NAME is"},
	{"no-rootpw", "kickstart", puts("kickstart/x.ks", "lang en_US\nrootpw --plaintext x\n"), "kickstart/x.ks: rootpw"},
	{"no-rootpw", "pipe", puts("overlay/usr/libexec/veilor/x", "echo root:x | chpasswd\n"), "chpasswd"},
	{"installer-log", "none", puts("kickstart/install.ks", "text\n%post\n%end\n"), "no %onerror"},
	{"overlay", "template", puts("overlay/etc/x.tmpl", "{{ .Nothing }}"), "can't evaluate field Nothing"},
	{"overlay", "place", puts("overlay/var/x", ""), "only usr/ and etc/"},
	{"undo", "not first", func(w *world) {
		w.edit(recipePath, "      - veilor-undo.sh\n", "      - veilor-verify.sh\n")
	}, "veilor-undo.sh"},
	{"undo", "no file", removes("overlay/usr/libexec/secureblue/verify-provenance.sh"), "action replace"},
	{"undo", "broken", puts(undo, "undo: 3\n"), "undo.yaml"},
	{"skel", "the look", puts("overlay/etc/skel/.config/kdeglobals", "[General]\n"), "write /etc/xdg/kdeglobals"},
	{"skel", "a font", puts("overlay/etc/skel/.local/share/fonts/x.ttf", ""), "write /usr/share/fonts/x.ttf"},
	{"skel", "other", puts("overlay/etc/skel/.bashrc", ""), "leave it to the base"},
	{"image-overlay", "lacks", inBuilt(func(f fakeImage) { delete(f.files, wifi) }), "the image has no /" + wifi},
	{"image-overlay", "changed", inBuilt(func(f fakeImage) { f.files[wifi] += "exit 1\n" }), "/" + wifi + " is not what the overlay has"},
	{"image-overlay", "mode", inBuilt(func(f fakeImage) { f.modes[wifi] = 0o644 }), "/" + wifi + " has the mode 644, want 755"},
	{"image-overlay", "a link", inBuilt(func(f fakeImage) { f.files[wifi] = "-> /usr/bin/true" }), "/" + wifi + " is no file"},
	{"image-overlay", "no link", func(w *world) {
		w.files["overlay/etc/link"] = &fstest.MapFile{Data: []byte("/dev/null"), Mode: fs.ModeSymlink | 0o777}
		inBuilt(func(f fakeImage) { f.files["etc/link"] = "" })(w)
	}, "/etc/link is no link to /dev/null"},
	{"image-overlay", "the site's", func(w *world) {
		inBuilt(func(f fakeImage) { f.files[overlay.SitePath] = "zone: other\n" })(w)
		loaded := w.loaded
		w.loaded = func(s *Subject) { loaded(s); s.Missing = nil }
	}, overlay.SitePath + " is not what the overlay has"},
	{"usr-etc", "image", inImage(nil, "usr/etc/passwd", "etc/passwd"), "/usr/etc beside /etc"},
	{"kargs", "blacklist", edits(recipePath, "- nvidia-drm.fbdev=1", "- nvidia-drm.fbdev=1\n      - modprobe.blacklist=nouveau"), "modprobe.blacklist"},
	{"kargs", "no picture", edits(recipePath, "nvidia-drm.modeset=1", "quiet"), "lack nvidia-drm.modeset=1"},
	{"components", "not called", edits(recipePath, "      - veilor-components.sh\n", ""), "does not call veilor-components.sh"},
	{"components", "no setfattr", edits(recipePath, "        - attr\n", ""), "does not install attr"},

	{"site-complete", "as it is", func(*world) {}, "not set"},
	{"tiers", "all", func(w *world) { w.site.Tiers[2].Reach = []string{"*:*"} }, ""},
	{"names", "nobody may", func(w *world) { w.site.Tiers[2].Reach = nil }, "no tier names it"},
	{"names", "another zone", func(w *world) {
		pair, err := trust.Create("other", now)
		if err != nil {
			w.t.Fatal(err)
		}
		w.site.Authority.Data = pair.Certificate
	}, "not bound"},

	{"downloads", "no service", func(w *world) {
		w.site.Services = slices.DeleteFunc(w.site.Services, func(v site.Service) bool { return v.Name == "dl.veilor" })
	}, "dl.veilor is no service of the site"},
	{"downloads-reach", "guests may not", withDownloads(443), "tier guest opens services and not dl.veilor:443"},
	{"downloads-reach", "another port", withDownloads(8443, "dl.veilor:443"), "dl.veilor does not serve port 443"},

	{"sudo", "install", edits(recipePath, "dnf -y reinstall sudo", "dnf -y install sudo"), "does not run `dnf -y reinstall sudo`"},
	{"sudo", "the hint", edits(undo, "/etc/profile.d/sudo-missing-message.sh", "/etc/profile.d/other.sh"), "does not remove /etc/profile.d/sudo-missing-message.sh"},
	{"sudo", "not verified", edits("overlay/scripts/veilor-verify.sh", "rpm -V sudo", "true"), "rpm -V sudo"},
	{"sudoers", "syntax", edits("overlay/etc/sudoers.d/50-veilor", "%wheel\tALL=(ALL:ALL)\tALL", "%wheel ALL ALL ALL"), "/etc/sudoers.d/50-veilor"},
	{"sudoers", "no password", edits("overlay/etc/sudoers.d/50-veilor", "(ALL:ALL)\tALL", "(ALL:ALL)\tNOPASSWD: ALL"), "NOPASSWD"},
	{"sudoers", "name", puts("overlay/etc/sudoers.d/51.veilor", "# nothing\n"), "does not read a file of this name"},
	{"setuid", "image", inImage([]string{"usr/bin/sudo", "usr/bin/su", "usr/lib64/libhardened_malloc.so"}), "/usr/bin/su of the image"},
	{"setuid", "not called", edits(recipePath, "      - veilor-verify.sh\n", ""), "does not call veilor-verify.sh"},
	{"xwayland", "twin", edits(undo, "      - /usr/etc/systemd/user/plasma-kwin_wayland.service.d/override.conf\n", "      - /usr/etc/other\n"), "leaves the twin"},
	{"xwayland", "no switch", edits("overlay/usr/share/veilor/veilor.just", "veilor-xwayland MODE", "xwayland MODE"), "no recipe veilor-xwayland"},
	{"xwayland", "not imported", edits(undo, "import '/usr/share/veilor/veilor.just'", "import '/usr/share/other.just'"), "does not append"},
	{"updates", "image", inBuilt(func(f fakeImage) { delete(f.files, "etc/systemd/system/upgrade-on-boot.service") }), "upgrade-on-boot.service is no link to /dev/null"},
	{"updates", "half masked", inBuilt(func(f fakeImage) { f.files["etc/systemd/system/rpm-ostreed-automatic.timer"] = "" }), "rpm-ostreed-automatic.timer is no link to /dev/null"},
	{"updates", "timer", edits(recipePath, "        - rpm-ostreed-automatic.timer\n", ""), "does not mask rpm-ostreed-automatic.timer"},
	{"update-command", "none", func(w *world) {
		for n := range w.files {
			if strings.HasPrefix(n, "cmd/veilor/") {
				delete(w.files, n)
			}
		}
	}, "no command update"},
	{"provenance", "stub", edits("overlay/usr/libexec/secureblue/verify-provenance.sh", "slsa-verifier verify-image", "exit 0 #"), "slsa-verifier verify-image"},
	{"provenance", "other image", edits("overlay/usr/share/veilor/provenance.conf.tmpl", "image={{ .Image.Ref }}", "image=ghcr.io/other/os"), "image=ghcr.io/veilor/veilor-os"},

	{"trivalent", "default", edits(mime, "x-scheme-handler/https=trivalent.desktop", "x-scheme-handler/https=firefox.desktop"), `x-scheme-handler/https is opened by "firefox.desktop"`},
	{"trivalent", "removed", edits(recipePath, "    install:\n      packages:\n        - tailscale\n", "    install:\n      packages:\n        - tailscale\n    remove:\n      packages:\n        - trivalent\n"), "removes trivalent"},
	{"trivalent", "Plasma's own list", puts("overlay/etc/xdg/kde-mimeapps.list", "[Default Applications]\n"), "would win"},
	{"trivalent", "image", inImage(nil, "usr/bin/bash"), "the image has no /usr/share/applications/trivalent.desktop"},
	{"trivalent-policy", "no bounds", edits(managed, `[{{ json .Zone }}]`, `["veilor", "com"]`), "is permitted"},
	{"trivalent-policy", "own resolver", edits(managed, `"off"`, `"secure"`), "DnsOverHttpsMode"},
	{"trivalent-policy", "more", edits(managed, `"DnsOverHttpsMode"`, `"JavaScriptJitAllowedForSites": [], "DnsOverHttpsMode"`), "sets JavaScriptJitAllowedForSites"},
	{"mullvad-browser", "other key", edits("overlay/scripts/veilor-mullvad.sh", mullvadKey, strings.Repeat("A", 40)), mullvadKey},
	{"mullvad-browser", "by dnf", edits(recipePath, "        - tailscale\n", "        - tailscale\n        - mullvad-browser\n"), "without holding the key"},
	{"mullvad-browser", "not checked", edits(undo, `      - "gpgcheck=1"`, `      - "enabled=0"`), "gpgcheck=1"},
	{"thorium", "package", edits(recipePath, "        - tailscale\n", "        - tailscale\n        - thorium-browser\n"), "names it"},
	{"thorium", "default", edits(mime, "text/html=trivalent.desktop", "text/html=veilor-thorium.desktop"), "text/html is opened by"},
	{"thorium", "image", inImage(nil, "usr/bin/thorium-browser"), "/usr/bin/thorium-browser"},
	{"thorium-by-hand", "does not ask", edits(askFor, "read -rp", "answer=yes #"), "downloads before it asks"},
	{"thorium-by-hand", "layered", edits(askFor, `mkdir -p -- "$home/applications"`, "rpm-ostree install thorium"), "rpm-ostree"},
	{"thorium-by-hand", "for links", edits(askFor, "Terminal=false", "Terminal=false\nMimeType=text/html;"), "MimeType="},

	{"tailscale", "image without", inBuilt(func(f fakeImage) { delete(f.files, "usr/lib/systemd/system/tailscaled.service") }), "the image has no tailscaled.service"},
	{"tailscale", "image with it on", inBuilt(func(f fakeImage) {
		f.files["etc/systemd/system/multi-user.target.wants/tailscaled.service"] = "-> /usr/lib/systemd/system/tailscaled.service"
	}), "the image starts tailscaled"},
	{"tailscale", "on", edits(recipePath, "      disabled:\n        - tailscaled.service\n", ""), "does not disable tailscaled.service"},
	{"tailscale", "no preset", removes("overlay/usr/lib/systemd/system-preset/30-veilor-tailscale.preset"), "no preset disables"},
	{"tailscale", "not installed", edits(recipePath, "        - tailscale\n", "        - wireguard-tools\n"), "does not install tailscale"},
	{"resolver", "zone", edits("overlay/etc/unbound/conf.d/veilor.conf.tmpl", "stub-addr", "forward-addr"), "stub-addr: 127.83.0.53"},
	{"resolver", "MagicDNS", puts("overlay/usr/libexec/veilor/x", "tailscale up --accept-dns\n"), "switches MagicDNS on"},
	{"yggdrasil", "listens", edits(ygg2, `"Listen": []`, `"Listen": ["tls://0.0.0.0:443"]`), "Listen is"},
	{"yggdrasil", "admits all", edits(ygg2, `{{if .PeerKeys}}{{json .PeerKeys}}{{else}}[]{{end}}`, `[]`), "admits everybody"},
	{"yggdrasil", "not pinned", edits(ygg2, `"Key": {{json $p.Key}}`, `"Key": ""`), "not pinned"},
	{"yggdrasil", "port", edits(ygg2, `"Accept": []`, `"Accept": [22]`), "opens no port"},
	{"yggdrasil", "tiers", edits(ygg2, `"Accept": []`, `"SitePath": "/usr/share/veilor/site.yaml", "Tier": "guest", "Accept": []`), "for servers"},
	{"yggdrasil", "group", edits(ygg2, `/var/lib/veilor-ygg/group`, `/usr/share/veilor/group`), "GroupPasswordPath"},
	{"yggdrasil", "admin", edits(ygg2, "unix:///run/veilor-ygg/admin.sock", "tcp://127.0.0.1:9001"), "AdminListen"},
	{"overlay-interfaces", "managed", edits("overlay/usr/lib/NetworkManager/conf.d/90-veilor.conf", "managed=0", "managed=1"), "leaves tailscale0 and ygg0 alone"},
	{"firewalld", "twice", puts("overlay/etc/firewalld/zones/mine.xml", `<?xml version="1.0" encoding="utf-8"?><zone target="DROP"><interface name="ygg0"/></zone>`), "ygg0 is in 2 zones"},
	{"firewalld", "target", puts("overlay/usr/lib/firewalld/zones/bad.xml", `<?xml version="1.0" encoding="utf-8"?><zone target="MAYBE"><short>x</short></zone>`), "firewalld: "},

	{"policy", "one group", func(w *world) { w.site.Image.Signatures = w.site.Image.Signatures[:1] }, "has 1 requirements"},
	{"policy", "a tag", keepsScope("ghcr.io/veilor/veilor-os:44"), "the scope ghcr.io/veilor/veilor-os:44 is narrower"},
	{"policy", "a digest of the mirror", keepsScope("dl.veilor/veilor/veilor-os@sha256:" + strings.Repeat("0", 64)), "is narrower than dl.veilor/veilor/veilor-os,"},
	{"policy", "another image's signature", rendersPolicy(`"type": "matchRepository"`, `"type": "exactRepository", "dockerRepository": "ghcr.io/other/os"`), "requirement 1 takes signatures of {Type:exactRepository DockerRepository:ghcr.io/other/os}"},
	{"policy", "the mirror's own", rendersPolicy(`"dockerRepository": "ghcr.io/veilor/veilor-os"`, `"dockerRepository": "dl.veilor/veilor/veilor-os"`), "dl.veilor/veilor/veilor-os: requirement 2 takes"},
	{"policy", "signing", edits(recipePath, "  - type: os-release", "  - type: signing\n  - type: os-release"), "the module signing"},
	{"next-keys", "one", func(w *world) { w.site.Image.Signatures[1].Keys = w.site.Image.Signatures[1].Keys[:1] }, "release has 1 key"},
	{"next-keys", "a copy", func(w *world) {
		key, err := standInKey()
		if err != nil {
			w.t.Fatal(err)
		}
		w.site.Image.Signatures[0].Keys[0].Data, w.site.Image.Signatures[0].Keys[1].Data = key, key
	}, "ci has the key 2 twice"},
	{"policy-base", "not expected", edits(undo, "      - '\"quay.io/toolbx-images\"'\n", ""), "does not expect the scope quay.io/toolbx-images"},
	{"policy-base", "not kept", edits("overlay/base-policy.yaml", "  - scope: quay.io/toolbx-images\n    keys: [/usr/share/pki/containers/quay.io-toolbx-images.pub]\n", ""), "does not keep"},
	{"mirror", "tags", edits("overlay/etc/containers/registries.conf.d/50-veilor.conf.tmpl", "digest-only", "all"), "digest-only"},
	{"mirror", "attachments", edits("overlay/etc/containers/registries.d/veilor.yaml.tmpl", "{{ mirror }}", "dl.example"), "use-sigstore-attachments"},
	{"secrets", "token", puts("overlay/etc/x", "key=hskey-auth-0123456789ab-secret\n"), "what looks like a secret (hskey-auth-0…)"},
	{"secrets", "config", edits(ygg2, `"Listen": []`, `"GroupPassword": "hunter2", "Listen": []`), "GroupPass"},

	{"unit-exposure", "open", puts(units+"veilor-x.service", "[Service]\nExecStart=/usr/bin/veilor\n"), "veilor-x.service: exposure 9"},
	{"unit-exposure", "needless ceiling", puts("overlay/ceilings.yaml", "ceilings:\n  - {unit: veilor-mesh.service, exposure: 5, why: it did need more rights once}\n"), "needs no ceiling"},
	{"unit-exposure", "no reason", puts("overlay/ceilings.yaml", "ceilings:\n  - {unit: veilor-mesh.service, exposure: 5, why: because}\n"), "must say which service"},
	{"presets", "no preset", puts(units+"veilor-x.service", "[Service]\nExecStart=/usr/bin/veilor\n[Install]\nWantedBy=multi-user.target\n"), "no preset names it"},
	{"presets", "disagree", edits(preset, "enable veilor-ygg.service", "disable veilor-ygg.service"), "the recipe says enable, its preset disable"},
	{"presets", "no unit", edits(preset, "enable veilor-ygg.service", "enable veilor-ygg.service\nenable veilor-none.service"), "there is no unit veilor-none.service"},
	{"presets", "too late", puts("overlay/usr/lib/systemd/system-preset/50-veilor.preset", "disable x.service\n"), "begin its name with 30-"},
	{"presets", "another scope", func(w *world) {
		w.remove("overlay/usr/lib/systemd/user-preset/30-veilor.preset")
		w.edit(preset, "enable veilor-ygg.service", "enable veilor-ygg.service\nenable veilor-notify.service")
	}, "/usr/lib/systemd/user/veilor-notify.service: no preset names it"},
	{"session-units", "namespace", edits(session, "LockPersonality=yes", "LockPersonality=yes\nProtectSystem=strict"), "ProtectSystem= needs a user namespace"},
	{"session-units", "open", edits(session, "NoNewPrivileges=yes\n", ""), "lacks NoNewPrivileges=yes"},
	{"session-units", "network", edits(session, "RestrictAddressFamilies=AF_UNIX\n", ""), "what it may talk to"},
	{"session-units", "login screen", edits(session, "ConditionUser=!@system\n", ""), "lacks ConditionUser=!@system"},
	{"session-units", "never started", edits(session, "WantedBy=graphical-session.target", "WantedBy=multi-user.target"), "a session has no multi-user.target"},
	{"unit-install", "passive", edits(units+"veilor-usbguard.service", "WantedBy=multi-user.target", "WantedBy=first-boot-complete.target"), "is passive"},
	{"unit-install", "suspend", edits(units+"veilor-wifi-resume.service", "WantedBy=sleep.target", "WantedBy=suspend.target"), "misses the other kinds"},
	{"unit-install", "first boot", edits(units+"veilor-usbguard.service", "[Service]", "ConditionFirstBoot=yes\n[Service]"), "machine id"},
	{"sysusers", "nobody", edits("overlay/usr/lib/sysusers.d/veilor.conf", "_veilor ", "_other "), "nothing makes its user _veilor"},

	{"usbguard", "starts empty", edits(units+"usbguard.service.d/50-veilor.conf", "ConditionFileNotEmpty", "#ConditionFileNotEmpt"), "ConditionFileNotEmpty=/etc/usbguard/rules.conf"},
	{"usbguard", "in the image", puts("overlay/etc/usbguard/rules.conf", "allow id 1d6b:0002\n"), "different keyboards"},
	{"usbguard-rules", "syntax", edits("overlay/usr/share/veilor/usbguard.rules", "reject with-interface", "alow with-interface"), "usbguard.rules"},
	{"usbguard-rules", "an id alone", puts("overlay/usr/share/veilor/usbguard.rules", "allow id 0781:5567 serial \"4C53\"\n"), "a keyboard that carries this id"},
	{"usbguard-rules", "any interface", puts("overlay/usr/share/veilor/usbguard.rules", "allow id 0781:5567 with-interface one-of { *:*:* }\n"), "a keyboard that carries this id"},
	{"usbguard-rules", "everything", puts("overlay/usr/share/veilor/usbguard.rules", "allow id *:*\n"), "admits devices"},
	{"wifi-resume", "hard-coded", edits("overlay/usr/libexec/veilor/wifi-resume", `modprobe "$module"`, "modprobe iwlwifi"), "names the driver iwlwifi"},
	{"wifi-resume", "power saving", removes("overlay/usr/lib/NetworkManager/conf.d/91-veilor-wifi.conf"), "wifi.powersave=2"},
	{"wifi-resume", "hook", puts("overlay/usr/lib/systemd/system-sleep/x", "#!/bin/sh\n"), "hooks run all at once"},

	{"shell", "quoting", puts("overlay/usr/libexec/veilor/x", "#!/bin/sh\nrm -rf $1/*\n"), "SC2086"},
	{"shell", "recipe", edits(recipePath, "      - update-ca-trust", "      - update-ca-trust\n      - cd /x; rm -r y"), "recipe-line-"},
	{"shell", "mode", puts("overlay/usr/libexec/veilor/x", "#!/bin/sh\n:\n"), "not executable"},
	{"desktop-files", "broken", puts("overlay/usr/share/applications/x.desktop", "[Desktop Entry]\nName=x\n"), "x.desktop"},
	{"desktop-files", "in a script", edits(askFor, "Type=Application", "Type=Programme"), "install-thorium-1.desktop"},
	{"plymouth", "picture", removes("overlay/usr/share/plymouth/themes/veilor/mark.png.svg.tmpl"), "mark.png is not there"},
	{"plymouth", "none", func(w *world) {
		for n := range w.files {
			if strings.HasPrefix(n, "overlay/usr/share/plymouth/") {
				delete(w.files, n)
			}
		}
	}, "no theme"},
	{"json", "broken", puts("overlay/etc/x.json", "{"), "/etc/x.json"},
	{"programs", "gone", removes("overlay/usr/libexec/veilor/wifi-resume"), "is not in the overlay"},
	{"programs", "mode", func(w *world) { w.files["overlay/usr/libexec/veilor/usbguard-rules"].Mode = 0o644 }, "is not executable"},
}
