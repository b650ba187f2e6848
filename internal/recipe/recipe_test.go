package recipe

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

var (
	recipeFile = filepath.Join("..", "..", "bluebuild", "recipes", "recipe.yml")
	siteFile   = filepath.Join("..", "..", "site", "veilor.yaml")
)

// The recipe is the only file that BlueBuild reads, the site the only one that
// we read: they must not drift apart.
func TestRecipeAgreesWithSite(t *testing.T) {
	r, err := Load(recipeFile)
	if err != nil {
		t.Fatal(err)
	}
	s, err := site.Load(siteFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Agree(s); err != nil {
		t.Error(err)
	}
	last := r.Modules[len(r.Modules)-1].Spec.(*OSRelease).Properties
	if want := "veilor-os " + string(r.ImageVersion); last["PRETTY_NAME"] != want {
		t.Errorf("PRETTY_NAME is %q, want %q", last["PRETTY_NAME"], want)
	}
	if last["HOME_URL"] != s.OS.Home {
		t.Errorf("HOME_URL is %q, the site says %q", last["HOME_URL"], s.OS.Home)
	}

	s.OS.Release++
	if err := r.Agree(s); err == nil || !strings.Contains(err.Error(), "image-version") {
		t.Errorf("a site of another release agrees: %v", err)
	}
}

const head = "name: a\ndescription: b\nbase-image: c.io/d\nimage-version: 44\nmodules:\n"

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"top-level key":   {"colour: red\n" + head + "  - type: initramfs\n", `r.yml:1: unknown field "colour"`},
		"module":          {head + "  - type: frobnicate\n", `r.yml:6: BlueBuild has no module "frobnicate"; write one of akmods,`},
		"brand":           {head + "  - type: initramfs\n  - type: brand\n", `r.yml:7: BlueBuild has no module "brand"; set names with os-release`},
		"key of files":    {head + "  - type: files\n    file: []\n", `r.yml:7: unknown field "file"`},
		"nested key":      {head + "  - type: dnf\n    install:\n      package: [a]\n", `r.yml:8: unknown field "package"`},
		"key of other":    {head + "  - type: initramfs\n    x: 1\n", `r.yml:7: module initramfs has no key "x"`},
		"no type":         {head + "  - scripts: [a]\n", `r.yml:6: type missing`},
		"from-file":       {head + "  - from-file: common.yml\n", `r.yml:6: from-file is not read`},
		"not a mapping":   {head + "  - files\n", `r.yml:6: not a module`},
		"version":         {head + "  - type: script@two\n    snippets: [a]\n", `r.yml:6: "script@two" is no module version`},
		"missing name":    {strings.Replace(head, "name: a\n", "", 1) + "  - type: initramfs\n", `name: missing`},
		"no modules":      {strings.TrimSuffix(head, "modules:\n"), `modules: missing`},
		"tag in base":     {strings.Replace(head, "c.io/d", "c.io/d:44", 1) + "  - type: initramfs\n", `r.yml:3: base-image: "c.io/d:44" has a tag`},
		"files outside":   {head + "  - type: files\n    files: [{source: ../x, destination: /}]\n", `source "../x" is not a path below`},
		"unit no suffix":  {head + "  - type: systemd\n    system: {enabled: [tailscaled]}\n", `"tailscaled" is no unit name`},
		"unit twice":      {head + "  - type: systemd\n    system: {enabled: [a.service], masked: [a.service]}\n", `a.service is already under enabled`},
		"karg with space": {head + "  - type: kargs\n    arch: x86_64\n    kargs: ['a b']\n", `"a b" is no single kernel argument`},
		"karg no arch":    {head + "  - type: kargs\n    kargs: [quiet]\n", `r.yml:6: modules[0]: arch missing`},
		"os-release last": {head + "  - type: os-release\n    properties: {NAME: a}\n  - type: initramfs\n", `os-release must be the last`},
		"os-release key":  {head + "  - type: os-release\n    properties: {name: a}\n", `"name" is no os-release key`},
		"os-release subst": {head + "  - type: os-release\n    properties: {NAME: '$(reboot)'}\n",
			`shells that source os-release would expand`},
		"stages": {head + "  - type: initramfs\nstages:\n  - name: x\n", `stages are not built`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("r.yml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant …%s…", err, c.want)
			}
			if !errors.As(err, new(strictyaml.Problem)) {
				t.Errorf("%T is no Problem", err)
			}
		})
	}
}

func TestParseVersions(t *testing.T) {
	for _, v := range []string{"44", `"44"`, "'44'"} {
		r, err := Parse("r.yml", []byte(strings.Replace(head, "44", v, 1)+"  - type: script@v1\n    snippets: [a]\n"))
		if err != nil {
			t.Fatal(err)
		}
		if r.ImageVersion != "44" || r.Modules[0].Type != "script" || r.Modules[0].Line != 6 {
			t.Errorf("%s: got %q, %+v", v, r.ImageVersion, r.Modules[0])
		}
	}
}

func FuzzParse(f *testing.F) {
	real, err := os.ReadFile(recipeFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	f.Add([]byte(head + "  - type: dnf\n    install: {packages: [{repo: a, packages: [b]}]}\n"))
	f.Add([]byte(head + "  - type: script\n    scripts: [a.sh, b/c.sh]\n    snippets: [dnf -y reinstall sudo, \"a\\nb\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse("r.yml", data)
		if err != nil {
			return
		}
		if r.Name == "" || len(r.Modules) == 0 {
			t.Errorf("accepted without name or modules: %+v", r)
		}
		for _, m := range r.Modules {
			if m.Spec != nil {
				_ = m.Spec.Summary()
			}
			script, ok := m.Spec.(*Script)
			if !ok {
				continue
			}
			if len(script.Scripts)+len(script.Snippets) == 0 {
				t.Errorf("line %d: accepted a script module that runs nothing", m.Line)
			}
			for _, p := range script.Scripts {
				if !filepath.IsLocal(p) {
					t.Errorf("line %d: accepted %q, which is not below the scripts", m.Line, p)
				}
			}
		}
	})
}
