// Package recipe reads bluebuild/recipes/recipe.yml, the BlueBuild recipe (v1)
// that says how a veilor image is made of its base.
//
// BlueBuild itself ignores what it does not know in a module's body and fails
// late, inside a container. This reader is strict instead: an unknown key or
// module is an error with file, line and what to write. Keys and modules are
// those of the published recipe-v1 schema (blue-build/schema and
// blue-build/modules, 2026-07).
package recipe

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

// Recipe is a BlueBuild recipe, version 1.
type Recipe struct {
	Name         string            `yaml:"name"`
	Description  string            `yaml:"description"`
	AltTags      []string          `yaml:"alt-tags,omitempty"`
	BaseImage    string            `yaml:"base-image"`
	ImageVersion Version           `yaml:"image-version"`
	BlueBuildTag string            `yaml:"blue-build-tag,omitempty"`
	CosignVer    string            `yaml:"cosign-version,omitempty"`
	NushellVer   string            `yaml:"nushell-version,omitempty"`
	Platforms    []string          `yaml:"platforms,omitempty"`
	Labels       map[string]string `yaml:"labels,omitempty"`
	Stages       []any             `yaml:"stages,omitempty"`
	Modules      []Module          `yaml:"modules"`
}

// Version is a tag of the base image; YAML writes it as text or as a number.
type Version string

// UnmarshalYAML takes 44 and "44".
func (v *Version) UnmarshalYAML(b []byte) error {
	*v = Version(strings.Trim(strings.TrimSpace(string(b)), `"'`))
	return nil
}

// Load reads and checks the recipe at file.
func Load(file string) (*Recipe, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the recipe: %w", err)
	}
	return Parse(file, data)
}

// Parse checks the text of a recipe. name is used in errors, each of which is a
// [strictyaml.Problem].
func Parse(name string, data []byte) (*Recipe, error) {
	var r Recipe
	doc, err := strictyaml.Decode(name, data, &r, "see https://blue-build.org/reference/recipe/ and /reference/module/ for the keys there are")
	if err != nil {
		return nil, err
	}
	var problems []error
	add := func(at, format string, args ...any) {
		problems = append(problems, doc.Problem(at, format, args...))
	}
	for _, f := range []struct{ key, value, example string }{
		{"name", r.Name, "veilor-os"},
		{"description", r.Description, "what the image is, in one line"},
		{"base-image", r.BaseImage, "ghcr.io/secureblue/kinoite-main-hardened"},
		{"image-version", string(r.ImageVersion), "44"},
	} {
		if f.value == "" {
			add(f.key, "missing; write for example %s: %s", f.key, f.example)
		}
	}
	if strings.ContainsAny(path.Base(r.BaseImage), ":@") {
		add("base-image", "%q has a tag or digest; write the tag under image-version", r.BaseImage)
	}
	if len(r.Stages) > 0 {
		add("stages", "stages are not built by veilor-forge; write their modules under modules")
	}
	if len(r.Modules) == 0 {
		add("modules", "missing; write at least one, for example - type: files")
	}
	for i := range r.Modules {
		at := fmt.Sprintf("modules[%d]", i)
		r.Modules[i].Line = doc.Line(at)
		if m := &r.Modules[i]; m.Spec != nil {
			m.Spec.check(func(key, format string, args ...any) { add(at+key, format, args...) })
		}
		if r.Modules[i].Type == "os-release" && i != len(r.Modules)-1 {
			add(at, "os-release must be the last module: a changed ID breaks dnf copr and repository modules after it")
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &r, nil
}

// Agree returns an error if r and s describe different images: name, base and
// release stand in both, because BlueBuild reads only the recipe.
func (r *Recipe) Agree(s *site.Site) error {
	var errs []error
	for _, c := range []struct{ key, got, path, want string }{
		{"name", r.Name, "image.ref", path.Base(s.Image.Ref)},
		{"base-image", r.BaseImage, "image.base", s.Image.Base},
		{"image-version", string(r.ImageVersion), "os.release", fmt.Sprint(s.OS.Release)},
	} {
		if c.got != c.want {
			errs = append(errs, fmt.Errorf("comparing recipe and site: the recipe's %s is %q, the site's %s gives %q; change one of them", c.key, c.got, c.path, c.want))
		}
	}
	return errors.Join(errs...)
}
