package image

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/veilor/veilor-os/internal/image/imagetest"
	"github.com/veilor/veilor-os/internal/recipe"
)

// rpms is a package database of a base.
func rpms(t *testing.T, packages ...imagetest.RPM) imagetest.Files {
	t.Helper()
	db, err := imagetest.RPMDB(packages...)
	if err != nil {
		t.Fatal(err)
	}
	return imagetest.Files{imagetest.RPMPath: db}
}

var tailscale = imagetest.RPM{Name: "tailscale", Version: "1.98.2", Files: []string{"/usr/bin/tailscale", "/usr/share/doc/tailscale"}}

func TestPackages(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base().With(rpms(t, tailscale, imagetest.RPM{Name: "bash", Version: "5.3"})))
	for range 2 { // the second time from the cache
		b, err := OpenBase(t.Context(), o.Base, "amd64", o.Cache)
		if err != nil {
			t.Fatal(err)
		}
		got, from, err := b.Packages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []Package{
			{Name: "bash", Version: "5.3", Release: "1.fc44", Arch: "x86_64", License: "BSD-3-Clause"},
			{Name: "tailscale", Version: "1.98.2", Release: "1.fc44", Arch: "x86_64", License: "BSD-3-Clause", Programs: []string{"/usr/bin/tailscale"}},
		}
		if d := cmp.Diff(want, got); d != "" || from != "/"+imagetest.RPMPath {
			t.Errorf("from %s:\n%s", from, d)
		}
	}
	left, err := filepath.Glob(filepath.Join(o.Cache, "rpm-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	writeBase(t, o, imagetest.Base())
	b, err := OpenBase(t.Context(), o.Base, "amd64", o.Cache)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Packages(t.Context()); !errors.Is(err, errNoDatabase) {
		t.Errorf("without a database: %v", err)
	}
}

const needsRecipe = `
name: veilor-os
description: d
base-image: ghcr.io/secureblue/kinoite-main-hardened
image-version: 44
modules:
  - type: dnf
    repos: {files: ["https://repository.example.org/mullvad.repo"], copr: [owner/project]}
    install: {packages: [tailscale, {repo: x, packages: [mullvad-browser.x86_64]}]}
    remove: {packages: [firefox]}
  - type: script
    snippets: [dnf -y reinstall sudo, "echo hello > /etc/x"]
  - type: fonts
    fonts: {nerd-fonts: [Hack]}
`

// A part of the recipe counts as done only if the base's package database or the
// table of stand-ins says so; otherwise nothing is built.
func TestSettle(t *testing.T) {
	all := rpms(t, tailscale,
		imagetest.RPM{Name: "mullvad-browser", Version: "15", Files: []string{"/usr/bin/mullvad-browser"}},
		imagetest.RPM{Name: "sudo", Version: "1.9", Files: []string{"/usr/bin/sudo"}})
	present := imagetest.Files{
		"usr/bin/tailscale": "t", "usr/bin/mullvad-browser": "m", "usr/bin/sudo": "s",
		"etc/yum.repos.d/mullvad.repo": "r", "etc/yum.repos.d/_copr:copr.fedorainfracloud.org:owner:project.repo": "r",
	}
	rest := []Replacement{{Module: "script echo hello > /etc/x", By: "nobody reads it"}, {Module: "fonts (whole module)", By: "the base's fonts", Has: []string{"/usr/bin/bash"}}}
	table := append([]Replacement{
		{Module: "dnf install tailscale", By: "upstream's binary", Has: []string{"/usr/bin/tailscale"}},
		{Module: "dnf repository https://repository.example.org/mullvad.repo", By: "-"},
		{Module: "dnf repository copr:owner/project", By: "-"},
		{Module: "dnf install mullvad-browser.x86_64", By: "-"},
		{Module: "dnf remove firefox", By: "-"},
		{Module: "script dnf -y reinstall sudo", By: "-"},
	}, rest...)
	r, err := recipe.Parse("recipe.yml", []byte(needsRecipe))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		base  imagetest.Files
		table []Replacement
		want  []string // outcomes
		lacks []string // or errors
	}{
		"all in the database": {imagetest.Base().With(all).With(present), rest, []string{
			"dnf repository https://repository.example.org/mullvad.repo: satisfied: /etc/yum.repos.d/mullvad.repo",
			"dnf repository copr:owner/project: satisfied: /etc/yum.repos.d/_copr:copr.fedorainfracloud.org:owner:project.repo",
			"dnf install tailscale: satisfied: tailscale-1.98.2-1.fc44.x86_64",
			"dnf install mullvad-browser.x86_64: satisfied: mullvad-browser-15-1.fc44.x86_64",
			"dnf remove firefox: satisfied: not among the packages of /usr/share/rpm/rpmdb.sqlite",
			"script dnf -y reinstall sudo: satisfied: sudo-1.9-1.fc44.x86_64",
			"script echo hello > /etc/x: stand-in: nobody reads it",
			"fonts (whole module): stand-in: the base's fonts",
		}, nil},
		"secureblue's": {imagetest.Base().With(all).With(present).With(imagetest.Files{"usr/bin/sudo": ""}).With(rpms(t, tailscale, imagetest.RPM{Name: "sudo", Version: "1.9", Files: []string{"/usr/bin/sudo"}}, imagetest.RPM{Name: "firefox", Version: "150"})), rest, nil, []string{
			"line 7: dnf install mullvad-browser.x86_64: not among the 3 packages of /usr/share/rpm/rpmdb.sqlite",
			"line 7: dnf remove firefox: firefox-150-1.fc44.x86_64 is installed",
			"line 11: script dnf -y reinstall sudo: sudo-1.9-1.fc44.x86_64 is installed, but /usr/bin/sudo was deleted",
		}},
		"no database, all stand-ins": {imagetest.Base().With(present), table, []string{
			"dnf repository https://repository.example.org/mullvad.repo: stand-in: -", "dnf repository copr:owner/project: stand-in: -",
			"dnf install tailscale: stand-in: upstream's binary", "dnf install mullvad-browser.x86_64: stand-in: -", "dnf remove firefox: stand-in: -",
			"script dnf -y reinstall sudo: stand-in: -", "script echo hello > /etc/x: stand-in: nobody reads it", "fonts (whole module): stand-in: the base's fonts",
		}, nil},
		"stand-in not there": {imagetest.Base(), table, nil, []string{"dnf install tailscale: its stand-in needs /usr/bin/tailscale, which the base has not"}},
		"nothing": {imagetest.Base(), nil, nil, []string{
			"line 7: dnf install tailscale", "line 11: script echo hello > /etc/x", "line 13: fonts (whole module)",
			"the base has no RPM database, so nothing is known about its packages", "name what takes its place with --stand-ins FILE",
		}},
		"damaged database": {imagetest.Base().With(imagetest.Files{imagetest.RPMPath: "SQLite format 3\x00 and then nothing"}), table, nil, []string{"reading the package database /usr/share/rpm/rpmdb.sqlite", "fetch the image again"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir())
			writeBase(t, o, c.base)
			b, err := OpenBase(t.Context(), o.Base, "amd64", o.Cache)
			if err != nil {
				t.Fatal(err)
			}
			build := &builder{stage: newStage(b), standIns: c.table}
			err = build.apply(t.Context(), r)
			if len(c.lacks) == 0 && err != nil {
				t.Fatal(err)
			}
			for _, l := range c.lacks {
				if err == nil || !strings.Contains(err.Error(), l) {
					t.Errorf("got  %v\nwant …%s…", err, l)
				}
			}
			var got []string
			for _, o := range build.outcomes {
				got = append(got, o.String())
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// The table of the lab's base names every part of the recipe that has to come
// from a base.
func TestLabStandIns(t *testing.T) {
	r, err := recipe.Load(filepath.Join("..", "..", "bluebuild", "recipes", "recipe.yml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "lab", "base", "stand-ins.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	table, err := ParseReplacements(file, data)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, s := range table {
		named[s.Module] = true
	}
	for _, n := range recipeNeeds(r) {
		if !named[n.name()] {
			t.Errorf("recipe.yml:%d: %q has no stand-in in lab/base/stand-ins.yaml; add one", n.line, n.name())
		}
		delete(named, n.name())
	}
	for name := range named {
		t.Errorf("lab/base/stand-ins.yaml: %q is no part of the recipe any more; remove it", name)
	}
}

func FuzzParseReplacements(f *testing.F) {
	f.Add([]byte("stand_ins:\n  - module: dnf install x\n    by: y\n    has: [/usr/bin/x]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := ParseReplacements("x", data)
		if err != nil {
			return
		}
		for _, r := range table {
			if r.Module == "" || r.By == "" {
				t.Errorf("an entry that says nothing: %+v", r)
			}
		}
	})
}

func FuzzReadPackages(f *testing.F) {
	db, err := imagetest.RPMDB(tailscale)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(db))
	f.Add([]byte(db)[:5000])
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "rpmdb.sqlite")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readPackages(file) // no panic
	})
}

// A removal counts as done only where the question was understood.
func TestAbsent(t *testing.T) {
	inv := &inventory{packages: []Package{{Name: "firefox", Version: "150", Release: "1.fc44", Arch: "x86_64"}}, database: "db"}
	for spec, want := range map[string]string{
		"konqueror":          "",
		"firefox":            "is installed",
		"firefox.x86_64":     "is installed",
		"firefox-150":        "is installed",
		"firefox-150-1.fc44": "is installed",
		"firefox-langpacks":  "",
		"fire*":              errCannotTell.Error(),
		"@kde-apps":          errCannotTell.Error(),
		"/usr/lib64/firefox": errCannotTell.Error(),
	} {
		_, err := absent(spec)(inv)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", spec, err, want)
		}
	}
}

// What a shell would read in its own way nobody but a shell answers for; of the rest
// every word is asked about.
func FuzzSnippetNeeds(f *testing.F) {
	for _, text := range []string{
		"dnf -y reinstall sudo", " dnf install a b\n", "dnf install dnf", "dnf remove install", "update-ca-trust",
		"dnf install a && rm -r /", "dnf install a\nrm b", "dnf install $(x)", "dnf remove a*", "dnf remove a # b", "dnf install", "",
	} {
		f.Add(text)
	}
	asks := regexp.MustCompile(`^dnf( -[^ ]*)* (install|reinstall|remove)( -[^ ]*)* [^ ]+$`)
	f.Fuzz(func(t *testing.T, text string) {
		all := snippetNeeds(recipe.Module{Type: "script", Line: 7}, text)
		if len(all) == 0 {
			t.Fatal("nothing is needed")
		}
		words := map[string]bool{}
		for _, n := range all {
			if n.line != 7 || n.module != "script" {
				t.Errorf("of another module: %+v", n)
			}
			if _, err := n.met(&inventory{}); errors.Is(err, errCannotTell) && n.what == text {
				if len(all) != 1 {
					t.Errorf("one of %d is the whole snippet", len(all))
				}
				return
			}
			if strings.ContainsAny(strings.TrimSpace(text), "|&;<>$`\\\"'()*?[]{}~#!\t\n") || !asks.MatchString(n.what) {
				t.Errorf("a package database is asked for %q", n.what)
			}
			for w := range strings.FieldsSeq(n.what) {
				words[w] = true
			}
		}
		for w := range strings.FieldsSeq(text) {
			if !words[w] {
				t.Errorf("nobody is asked about %q", w)
			}
		}
	})
}
