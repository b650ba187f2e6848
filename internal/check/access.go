package check

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
)

// xwaylandOverride is how secureblue starts Plasma without Xwayland.
const xwaylandOverride = "/etc/systemd/user/plasma-kwin_wayland.service.d/override.conf"

// suid are the files that may be setuid or setgid: sudo, which is back on
// purpose, and secureblue's own exceptions (files/scripts/removesuid.sh).
var suid = regexp.MustCompile(`^usr/(bin/sudo|bin/nvidia-modprobe|lib64/(glibc-hwcaps/[^/]+/)?libhardened_malloc[^/]*\.so|lib64/libno_rlimit_as\.so)$`)

var accessRules = []Rule{
	{
		ID:     "sudo",
		What:   "sudo is back, as its package has it, and nothing says otherwise",
		Why:    "the base keeps the package and deletes the program, so that an installation does nothing",
		Source: "secureblue, files/scripts/removesudo.sh, removesuid.sh",
		Fix:    "reinstall it with `dnf -y reinstall sudo` after the undo list, call veilor-verify.sh, remove /etc/profile.d/sudo-missing-message.sh",
		check:  sudo,
	},
	{
		ID:     "sudoers",
		What:   "sudo accepts our rules",
		Why:    "one mistake in a file of sudoers.d makes sudo refuse everybody",
		Source: "sudoers(5)",
		Fix:    "correct the line that visudo names",
		check:  sudoers,
	},
	{
		ID:     "setuid",
		What:   "no file is setuid or setgid but sudo's",
		Why:    "the base strips these bits at the end of its own build; what we add afterwards would keep them",
		Source: "secureblue, files/scripts/removesuid.sh",
		Fix:    "strip the bit (chmod ug-s) where the file is installed, and call veilor-verify.sh last",
		check: func(_ context.Context, s *Subject) error {
			if err := s.need("recipe", "overlay"); err != nil {
				return err
			}
			var p problems
			p.add(s.calls("veilor-verify.sh"))
			if s.Image != nil {
				for _, f := range s.Image.Setuid() {
					if !suid.MatchString(f) {
						p.addf("/%s of the image is setuid or setgid", f)
					}
				}
			}
			return p.err()
		},
	},
	{
		ID:     "xwayland",
		What:   "Xwayland is on, and can be switched off",
		Why:    "some applications need it; secureblue's own switch finds the desktop by the name of its own images and refuses ours",
		Source: "secureblue, usr/libexec/secureblue/set_xwayland.py",
		Fix:    "remove the override and its twin in /usr/etc by overlay/undo.yaml; ship `ujust veilor-xwayland`",
		check:  xwayland,
	},
	{
		ID:     "updates",
		What:   "nothing but `veilor update` fetches an image",
		Why:    "two that stage updates undo each other's choice, and secureblue's own refuses ours",
		Source: "secureblue, upgrade-on-boot and rpm-ostreed-automatic.timer",
		Fix:    "mask rpm-ostreed-automatic.timer and upgrade-on-boot.service in the recipe",
		check:  updatesMasked,
	},
	{
		ID:      "update-command",
		What:    "`veilor update` is there",
		Why:     "the image has no other way to new versions than a person who types `bootc upgrade`",
		Source:  "strategy, updates",
		Fix:     "add the command to cmd/veilor",
		Pending: "`veilor update` comes with the life cycle; until then a person runs `bootc upgrade`, which checks both signatures",
		check:   updateCommand,
	},
	{
		ID:     "provenance",
		What:   "secureblue's check of provenance accepts our image by configuration, and still checks",
		Why:    "unchanged it fails every automatic update of a derivative; a stub that says yes would drop the check",
		Source: "secureblue, usr/libexec/secureblue/verify-provenance.sh",
		Fix:    "let overlay/usr/libexec/secureblue/verify-provenance.sh ask slsa-verifier about what provenance.conf names",
		check:  provenance,
	},
}

func sudo(_ context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay", "undo"); err != nil {
		return err
	}
	var p problems
	if !slices.ContainsFunc(s.snippets(), func(l string) bool {
		words := strings.Fields(l)
		return len(words) > 2 && words[0] == "dnf" && slices.Contains(words, "reinstall") && slices.Contains(words, "-y") && slices.Contains(words, "sudo")
	}) {
		p.addf("%s does not run `dnf -y reinstall sudo`", recipePath)
	}
	if slices.Contains(s.installs(), "sudo") {
		p.addf("%s installs sudo, which does nothing where its package is", recipePath)
	}
	if e, ok := s.Scripts.Find("veilor-verify.sh"); !ok || !strings.Contains(string(e.Data), "rpm -V sudo") {
		p.addf("overlay/scripts/veilor-verify.sh does not run rpm -V sudo")
	}
	if len(s.below("etc/sudoers.d/", "")) == 0 {
		p.addf("the overlay has no file in /etc/sudoers.d")
	}
	p.add(removed(s, "/etc/profile.d/sudo-missing-message.sh"))
	if s.Image != nil && !s.Image.Has("usr/bin/sudo") {
		p.addf("the image has no /usr/bin/sudo")
	}
	return p.err()
}

// removed returns a problem unless the undo list removes p and its twin.
func removed(s *Subject, p string) error {
	u, ok := s.undoes(p)
	if !ok || u.Action != overlay.Remove {
		return fmt.Errorf("overlay/undo.yaml does not remove %s", p)
	}
	if !slices.Contains(u.Also, "/usr"+p) {
		return fmt.Errorf("overlay/undo.yaml leaves the twin /usr%s", p)
	}
	if s.Image != nil {
		for _, f := range []string{p, "/usr" + p} {
			if s.Image.Has(strings.TrimPrefix(f, "/")) {
				return fmt.Errorf("the image has %s", f)
			}
		}
	}
	return nil
}

func sudoers(ctx context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	for _, e := range s.below("etc/sudoers.d/", "") {
		p.add(laid(map[string][]byte{e.Path: e.Data}, func(dir string) error {
			out, err := s.Tools.run(ctx, "visudo", "--check", "--file="+dir+"/"+e.Path)
			if _, missing := err.(skip); missing {
				return err
			}
			if err != nil {
				return fmt.Errorf("/%s: %s", e.Path, complaint(out, err, dir))
			}
			return nil
		}))
		if strings.Contains(string(e.Data), "NOPASSWD") {
			p.addf("/%s: NOPASSWD lets every program of the person be root", e.Path)
		}
		// sudo skips names with a dot or a tilde at the end.
		if name := e.Path[strings.LastIndexByte(e.Path, '/')+1:]; strings.Contains(name, ".") || strings.HasSuffix(name, "~") {
			p.addf("/%s: sudo does not read a file of this name", e.Path)
		}
	}
	return p.err()
}

func xwayland(_ context.Context, s *Subject) error {
	if err := s.need("overlay", "undo"); err != nil {
		return err
	}
	var p problems
	p.add(removed(s, xwaylandOverride))
	p.add(ujust(s, "veilor-xwayland"))
	if program, err := s.file("usr/libexec/veilor/xwayland"); err != nil {
		p.add(err)
	} else {
		p.add(contains("/usr/libexec/veilor/xwayland", program, xwaylandOverride, "on)", "off)", "status)"))
	}
	// What X11 programs may hear of others' keys stays as the base has it.
	for _, e := range s.below("etc/xdg/kwinrc", "") {
		p.add(contains("/"+e.Path, e.Data, "XwaylandEavesdrops=None"))
	}
	return p.err()
}

// ujust returns a problem unless people find the recipe called name.
func ujust(s *Subject, name string) error {
	const file = "usr/share/veilor/veilor.just"
	text, err := s.file(file)
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `( .*)?:`).Match(text) {
		return fmt.Errorf("/%s has no recipe %s", file, name)
	}
	u, ok := s.undoes("/usr/share/ublue-os/just/60-custom.just")
	if !ok || u.Action != overlay.Append || u.Text != "import '/"+file+"'" {
		return fmt.Errorf("overlay/undo.yaml does not append import '/%s' to ujust's own file", file)
	}
	return nil
}

func updatesMasked(_ context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	var masked, enabled []string
	for _, m := range modules[*recipe.Systemd](s) {
		masked = append(masked, m.System.Masked...)
		enabled = append(enabled, m.System.Enabled...)
	}
	for _, u := range []string{"rpm-ostreed-automatic.timer", "upgrade-on-boot.service"} {
		if !slices.Contains(masked, u) {
			p.addf("%s does not mask %s", recipePath, u)
		}
		if s.Image != nil {
			at := "etc/systemd/system/" + u
			if mode, link, _, ok := s.Image.Lstat(at); !ok || mode.Type() != fs.ModeSymlink || link != "/dev/null" {
				p.addf("the image: /%s is no link to /dev/null", at)
			}
		}
	}
	for _, u := range []string{"bootc-fetch-apply-updates.timer"} {
		if slices.Contains(enabled, u) {
			p.addf("%s enables %s", recipePath, u)
		}
	}
	return p.err()
}

var updateRe = regexp.MustCompile(`Use:\s+"update\b`)

func updateCommand(_ context.Context, s *Subject) error {
	for _, f := range []string{"cmd/veilor/update.go", "cmd/veilor/main.go", "cmd/veilor/lifecycle.go"} {
		if updateRe.MatchString(s.source(f)) {
			return nil
		}
	}
	return fmt.Errorf("cmd/veilor has no command update")
}

func provenance(_ context.Context, s *Subject) error {
	if err := s.need("undo"); err != nil {
		return err
	}
	const script, conf = "usr/libexec/secureblue/verify-provenance.sh", "usr/share/veilor/provenance.conf"
	var p problems
	if text, err := s.file(script); err != nil {
		p.add(err)
	} else {
		p.add(contains("/"+script, text, "slsa-verifier verify-image", "crane digest", "/"+conf))
		if regexp.MustCompile(`(?m)^\s*exit 0\b|\|\|\s*(true|:)`).Match(text) {
			p.addf("/%s says yes without having checked", script)
		}
	}
	if text, err := s.file(conf); err != nil {
		p.add(err)
	} else {
		p.add(contains("/"+conf, text, "image="+s.Site.Image.Ref+"\n"))
	}
	if u, ok := s.undoes("/" + script); !ok || u.Action != overlay.Replace {
		p.addf("overlay/undo.yaml does not replace /%s", script)
	}
	return p.err()
}
