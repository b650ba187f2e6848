package check

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
)

// bases are secureblue's images of 2026-06 (recipes/), without those for servers,
// which have no desktop.
var bases = func() []string {
	var all []string
	for _, desktop := range []string{"silverblue", "kinoite", "sericea", "cosmic"} {
		for _, gpu := range []string{"main", "nvidia", "nvidia-open"} {
			all = append(all, "ghcr.io/secureblue/"+desktop+"-"+gpu+"-hardened")
		}
	}
	return all
}()

// deprecated are the parts of an image's name for which secureblue's notifier
// tells every user, at every login, to move away.
var deprecated = []string{
	"framework", "main-laptop", "nvidia-laptop", "server", "bluefin", "aurora", "userns",
	"wayblue-hyprland", "wayblue-sway", "wayblue-wayfire", "wayblue-river",
}

var recipeRules = []Rule{
	{
		ID:     "recipe",
		What:   "the recipe is one that BlueBuild's schema accepts",
		Why:    "BlueBuild ignores what it does not know and fails late, inside a container",
		Source: "recipe-v1.json of BlueBuild",
		Fix:    "correct the line that is named",
		check:  func(_ context.Context, s *Subject) error { return s.broken["recipe"] },
	},
	{
		ID:     "recipe-site",
		What:   "recipe and site name the same image, base and release",
		Why:    "GitHub would build another image than the one that clients look for",
		Source: "site/veilor.yaml",
		Fix:    "change one of the two",
		check: func(_ context.Context, s *Subject) error {
			if err := s.need("recipe"); err != nil {
				return err
			}
			return s.Recipe.Agree(s.Site)
		},
	},
	{
		ID:     "base-known",
		What:   "the base is an image that secureblue builds",
		Why:    "securecore-kinoite and the -userns images do not exist; nothing could be built",
		Source: "secureblue, recipes/, 2026-06",
		Fix:    "write base-image: ghcr.io/secureblue/kinoite-main-hardened, in recipe and site",
		check:  baseKnown,
	},
	{
		ID:     "image-name",
		What:   "the image's name has none of secureblue's deprecated names in it",
		Why:    "every user is told at every login that the image is deprecated",
		Source: "secureblue, usr/libexec/deprecated-images.json",
		Fix:    "choose another name in site and recipe",
		check: func(_ context.Context, s *Subject) error {
			var p problems
			for _, d := range deprecated {
				if name := path.Base(s.Site.Image.Ref); strings.Contains(name, d) {
					p.addf("%s contains %q", name, d)
				}
			}
			return p.err()
		},
	},
	{
		ID:     "release",
		What:   "the release number is the site's wherever one is written",
		Why:    "after the next change of release a file that was forgotten pulls, or shows, the old one",
		Source: "decision 2 (docs/DECISIONS.md)",
		Fix:    "make the file a template (.tmpl) with {{ .OS.Release }}, or write the site's number",
		check:  releaseNumber,
	},
	{
		ID:     "os-release",
		What:   "os-release is ours to see, the base's to programs",
		Why:    "a changed ID breaks COPR, Anaconda's profile and whatever asks for the family; a changed VARIANT_ID secureblue's tools",
		Source: "os-release(5); secureblue, secureblueflatpaksetup",
		Fix:    "set NAME, PRETTY_NAME and HOME_URL in the last module; leave ID, VERSION_ID, PLATFORM_ID and VARIANT_ID alone",
		check:  osRelease,
	},
	{
		ID:     "no-rootpw",
		What:   "no password is set by the recipe, the overlay or a kickstart",
		Why:    "`rootpw` lets an installation end with no account but root's, and everybody knows the password",
		Source: "decision 11 (docs/DECISIONS.md)",
		Fix:    "remove the line; the installer asks for an account",
		check:  noPassword,
	},
	{
		ID:     "installer-log",
		What:   "a failed installation leaves its log where a person can get it",
		Why:    "%post alone loses the log of everything that fails before it",
		Source: "integrations, installer log capture; Anaconda, pyanaconda/core/constants.py",
		Fix:    "copy /tmp/*.log in %onerror of kickstart/install.ks",
		check:  installerLog,
	},
	{
		ID:     "overlay",
		What:   "the overlay renders, and every link in it leads somewhere",
		Why:    "no image can be built",
		Source: "internal/overlay",
		Fix:    "correct the file that is named",
		check: func(_ context.Context, s *Subject) error {
			if err := s.broken["overlay"]; err != nil {
				return err
			}
			if s.Image != nil {
				return s.Tree.Check(s.Image.Has)
			}
			return s.Tree.Check(nil)
		},
	},
	{
		ID:     "undo",
		What:   "what the base does and we undo is on the list, and the recipe works through it first",
		Why:    "when the base changes its mind the build must stop, not ship half a change",
		Source: "overlay/undo.yaml",
		Fix:    "correct the list; call veilor-undo.sh in the recipe's first module",
		check:  undoFirst,
	},
	{
		ID:     "skel",
		What:   "nothing of ours is copied into homes",
		Why:    "a home keeps its copy for ever: no update changes it, and it looks like the person's own choice",
		Source: "useradd(8); XDG Base Directory Specification",
		Fix:    "move the file to where a home's is looked for next: overlay/etc/xdg or overlay/usr/share",
		check:  skeleton,
	},
	{
		ID:     "image-overlay",
		What:   "a built image has every file of the overlay as it is rendered",
		Why:    "a module that runs later, or another layer, may change or drop what was checked here",
		Source: "internal/overlay",
		Fix:    "build the image of this checkout and site, or correct what writes over the file",
		check:  imageOverlay,
	},
	{
		ID:     "usr-etc",
		What:   "nothing is in /usr/etc",
		Why:    "/usr/etc beside /etc is fatal in `bootc container lint`, and merges behave undefined",
		Source: "bootc, crates/lib/src/lints.rs, etc-usretc",
		Fix:    "move the file to etc/, and list the base's twin under also in overlay/undo.yaml",
		check: func(_ context.Context, s *Subject) error {
			if err := s.need("overlay"); err != nil {
				return err
			}
			var p problems
			for _, e := range s.below("usr/etc/", "") {
				p.addf("/%s", e.Path)
			}
			if s.Image != nil && s.Image.Has("usr/etc") && s.Image.Has("etc") {
				p.addf("the image has /usr/etc beside /etc")
			}
			return p.err()
		},
	},
	{
		ID:     "kargs",
		What:   "kernel arguments switch on a picture and nothing off",
		Why:    "secureblue's NVIDIA list also blacklists nouveau, which leaves other machines without a picture; nomodeset undoes it",
		Source: "secureblue, usr/lib/bootc/kargs.d/20-nvidia.toml",
		Fix:    "write nvidia-drm.modeset=1 and nvidia-drm.fbdev=1, and no blacklist",
		check:  kernelArguments,
	},
	{
		ID:     "components",
		What:   "our files are marked for the tool that packs what GitHub ships",
		Why:    "unmarked they lie in the layer that changes with every build, and every update pulls it whole",
		Source: "coreos/chunkah, user.component",
		Fix:    "call veilor-components.sh in the recipe, after the files module, and install attr, whose setfattr it runs",
		check: func(_ context.Context, s *Subject) error {
			if err := s.need("recipe", "overlay"); err != nil {
				return err
			}
			if err := s.calls("veilor-components.sh"); err != nil {
				return err
			}
			marks, files := -1, -1
			for i, m := range s.Recipe.Modules {
				switch spec := m.Spec.(type) {
				case *recipe.Files:
					files = i
				case *recipe.Script:
					if slices.Contains(spec.Scripts, "veilor-components.sh") {
						marks = i
					}
				}
			}
			var p problems
			if marks < files {
				p.addf("%s marks files before its files module copies them", recipePath)
			}
			if !slices.Contains(s.installs(), "attr") {
				p.addf("%s does not install attr, which has setfattr", recipePath)
			}
			return p.err()
		},
	},
}

func baseKnown(_ context.Context, s *Subject) error {
	if err := s.need("recipe"); err != nil {
		return err
	}
	var p problems
	for _, b := range []struct{ where, name string }{{recipePath, s.Recipe.BaseImage}, {"the site's image.base", s.Site.Image.Base}} {
		if !slices.Contains(bases, b.name) {
			p.addf("%s: %q is none of %s", b.where, b.name, strings.Join(bases, ", "))
		}
	}
	return p.err()
}

// releaseRe finds a number that names a release of the system: after a word that
// says so, or as the tag of an image.
var releaseRe = regexp.MustCompile(`(?i)(?:veilor-os|fedora(?: linux)?|release|releasever|version_id|kinoite[a-z-]*)(?:[ :=_/-]{1,3})["']?(\d{2})\b`)

func releaseNumber(_ context.Context, s *Subject) error {
	var p problems
	want := strconv.Itoa(s.Site.OS.Release)
	look := func(name, text string, template bool) {
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			for _, m := range releaseRe.FindAllStringSubmatch(line, -1) {
				if m[1] != want || template {
					p.addf("%s:%d: %q; the site says %s", name, i+1, m[0], want)
				}
			}
		}
	}
	look(recipePath, s.RecipeText, false)
	for _, dir := range []string{overlayDir, "kickstart", workflowsDir} {
		if _, err := fs.Stat(s.Source, dir); dir != overlayDir && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		p.add(fs.WalkDir(s.Source, dir, func(name string, d fs.DirEntry, err error) error {
			// Drawings and the list of a base's own texts are full of numbers.
			if err != nil || !d.Type().IsRegular() || strings.Contains(name, ".svg") || strings.HasSuffix(name, "undo.yaml") {
				return err
			}
			look(name, s.source(name), true)
			return nil
		}))
	}
	return p.err()
}

func osRelease(ctx context.Context, s *Subject) error {
	if err := s.need("recipe"); err != nil {
		return err
	}
	all := modules[*recipe.OSRelease](s)
	if len(all) != 1 {
		return fmt.Errorf("%s has %d modules os-release, want one", recipePath, len(all))
	}
	var p problems
	for _, k := range []string{"ID", "VERSION_ID", "PLATFORM_ID", "VARIANT_ID", "CPE_NAME"} {
		if v, ok := all[0].Properties[k]; ok {
			p.addf("%s sets %s=%s", recipePath, k, v)
		}
	}
	for k, want := range map[string]string{"NAME": s.Site.OS.Name, "HOME_URL": s.Site.OS.Home} {
		if got := all[0].Properties[k]; got != want {
			p.addf("%s: %s is %q, the site says %q", recipePath, k, got, want)
		}
	}
	if got := all[0].Properties["PRETTY_NAME"]; !strings.HasPrefix(got, s.Site.OS.Name) {
		p.addf("%s: PRETTY_NAME is %q, which does not begin with %s", recipePath, got, s.Site.OS.Name)
	}
	if s.Image != nil {
		text, err := s.Image.Read(ctx, "usr/lib/os-release")
		if err != nil {
			p.addf("the image: /usr/lib/os-release: %w", err)
			return p.err()
		}
		for _, k := range []string{"NAME", "PRETTY_NAME"} {
			want := all[0].Properties[k]
			if got := shellValue(string(text), k); got != want {
				p.addf("the image: /usr/lib/os-release: %s is %q, the recipe says %q", k, got, want)
			}
		}
	}
	return p.err()
}

// shellValue returns what the last line KEY=VALUE of text gives a key, without
// quotes (os-release(5)).
func shellValue(text, key string) string {
	var v string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key+"="); ok {
			v = strings.Trim(strings.TrimSpace(rest), `"'`)
		}
	}
	return v
}

// skeletons are where a home's files are, and where programs look next.
var skeletons = []struct{ home, system string }{
	{"etc/skel/.config/", "etc/xdg/"},
	{"etc/skel/.local/share/", "usr/share/"},
}

func skeleton(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	for _, e := range s.Tree {
		if !strings.HasPrefix(e.Path, "etc/skel/") {
			continue
		}
		instead := "leave it to the base"
		for _, k := range skeletons {
			if rest, ok := strings.CutPrefix(e.Path, k.home); ok {
				instead = "write /" + k.system + rest
			}
		}
		p.addf("/%s: %s", e.Path, instead)
	}
	return p.err()
}

func imageOverlay(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	if s.Image == nil {
		return skipf("no image was given; name one with --image")
	}
	var p problems
	stood := 0
	for _, e := range s.Tree {
		// What was rendered with stand-ins is in no image.
		if e.Group == overlay.Site && s.Missing != nil {
			stood++
			continue
		}
		mode, link, sum, ok := s.Image.Lstat(e.Path)
		switch {
		case !ok:
			p.addf("the image has no /%s", e.Path)
		case e.Link != "" && (mode.Type() != fs.ModeSymlink || link != e.Link):
			p.addf("the image: /%s is no link to %s", e.Path, e.Link)
		case e.Link != "":
		case !mode.IsRegular():
			p.addf("the image: /%s is no file", e.Path)
		case sum != sha256.Sum256(e.Data):
			p.addf("the image: /%s is not what the overlay has", e.Path)
		case mode.Perm() != e.Perm():
			p.addf("the image: /%s has the mode %o, want %o", e.Path, mode.Perm(), e.Perm())
		}
	}
	if stood > 0 {
		p.add(skipf("%d files are the site's, which is not complete", stood))
	}
	return p.err()
}

var passwordRe = regexp.MustCompile(`(?m)^\s*(rootpw\b|chpasswd\b|usermod\s+(-p|--password)|passwd\s+--stdin)|\|\s*chpasswd\b|--plaintext\b`)

func noPassword(_ context.Context, s *Subject) error {
	var p problems
	for _, dir := range []string{"bluebuild/recipes", overlayDir, "kickstart"} {
		if _, err := fs.Stat(s.Source, dir); err != nil {
			continue
		}
		p.add(fs.WalkDir(s.Source, dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(name, ".go") {
				return err
			}
			if m := passwordRe.FindString(s.source(name)); m != "" {
				p.addf("%s: %s", name, strings.TrimSpace(m))
			}
			return nil
		}))
	}
	return p.err()
}

var logRe = regexp.MustCompile(`/tmp/[^\s"']*\.log|org\.fedoraproject\.anaconda\.log|/var/log/anaconda`)

func installerLog(_ context.Context, s *Subject) error {
	const file = "kickstart/install.ks"
	text := s.source(file)
	if text == "" {
		return skipf("there is no %s", file)
	}
	var p problems
	if !regexp.MustCompile(`(?m)^%onerror\b`).MatchString(text) {
		p.addf("%s has no %%onerror section", file)
	}
	if !logRe.MatchString(text) {
		p.addf("%s copies no log", file)
	}
	return p.err()
}

func undoFirst(_ context.Context, s *Subject) error {
	if err := s.broken["undo"]; err != nil {
		return err
	}
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	p.add(s.calls("veilor-undo.sh"))
	if len(s.Recipe.Modules) > 0 {
		first, ok := s.Recipe.Modules[0].Spec.(*recipe.Script)
		if !ok || len(first.Scripts) == 0 || first.Scripts[0] != "veilor-undo.sh" {
			p.addf("%s: its first module is not the script veilor-undo.sh", recipePath)
		}
	}
	for _, u := range s.Undo {
		_, ours := s.Tree.Find(strings.TrimPrefix(u.Path, "/"))
		if ours != (u.Action == "replace") && !(ours && u.Action == "note") {
			p.addf("overlay/undo.yaml: %s has action %s, and the overlay has the file: %v", u.Path, u.Action, ours)
		}
	}
	return p.err()
}

func kernelArguments(_ context.Context, s *Subject) error {
	if err := s.need("recipe"); err != nil {
		return err
	}
	var p problems
	var all []string
	for _, m := range modules[*recipe.Kargs](s) {
		all = append(all, m.Kargs...)
	}
	for _, want := range []string{"nvidia-drm.modeset=1", "nvidia-drm.fbdev=1"} {
		if !slices.Contains(all, want) {
			p.addf("%s: kargs lack %s", recipePath, want)
		}
	}
	for _, a := range all {
		key, _, _ := strings.Cut(a, "=")
		if strings.HasSuffix(key, "blacklist") || key == "nomodeset" {
			p.addf("%s: kargs have %s", recipePath, a)
		}
	}
	for _, e := range s.below("usr/lib/bootc/kargs.d/", "") {
		if strings.Contains(string(e.Data), "blacklist") || strings.Contains(string(e.Data), "nomodeset") {
			p.addf("/%s switches a driver off", e.Path)
		}
	}
	return p.err()
}
