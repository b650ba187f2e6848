package recipe

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Module is one step of a recipe.
type Module struct {
	// Type is the module's name without version: "files".
	Type string
	// Line is where the module begins in the recipe.
	Line int
	// Spec is the module's body: one of *Files, *Script, *Systemd, *Kargs,
	// *OSRelease, *DNF, *RPMOSTree; nil for a known module of which only the
	// keys are checked.
	Spec Spec
}

// Spec is the body of a module that this package understands.
type Spec interface {
	// check reports what is wrong; key is relative to the module (".files[0]").
	check(add func(key, format string, args ...any))
	// Summary says in a few words what the module does.
	Summary() string
}

// Common are the keys that every module may have.
type Common struct {
	Type    string            `yaml:"type"`
	Source  string            `yaml:"source,omitempty"`
	NoCache bool              `yaml:"no-cache,omitempty"`
	Env     map[string]string `yaml:"env,omitempty"`
	Secrets []any             `yaml:"secrets,omitempty"`
}

// Files copies trees from bluebuild/files/ into the image.
type Files struct {
	Common `yaml:",inline"`
	Files  []FileCopy `yaml:"files"`
}

// FileCopy is one source, relative to bluebuild/files/, and where it goes.
type FileCopy struct {
	Source      string `yaml:"source"`
	Destination string `yaml:"destination"`
}

// Script runs shell snippets and scripts from bluebuild/files/scripts/.
type Script struct {
	Common   `yaml:",inline"`
	Snippets []string `yaml:"snippets,omitempty"`
	Scripts  []string `yaml:"scripts,omitempty"`
}

// Systemd changes which units start.
type Systemd struct {
	Common `yaml:",inline"`
	System Units `yaml:"system,omitempty"`
	User   Units `yaml:"user,omitempty"`
}

// Units are names of units by what is done to them.
type Units struct {
	Enabled  []string `yaml:"enabled,omitempty"`
	Disabled []string `yaml:"disabled,omitempty"`
	Masked   []string `yaml:"masked,omitempty"`
	Unmasked []string `yaml:"unmasked,omitempty"`
}

// Kargs adds kernel arguments as bootc reads them.
type Kargs struct {
	Common `yaml:",inline"`
	Kargs  []string `yaml:"kargs"`
	// Arch lists Rust architecture names: "x86_64, aarch64".
	Arch string `yaml:"arch,omitempty"`
}

// OSRelease sets properties of /usr/lib/os-release.
type OSRelease struct {
	Common     `yaml:",inline"`
	Properties map[string]string `yaml:"properties"`
}

// DNF installs, removes and replaces packages.
type DNF struct {
	Common       `yaml:",inline"`
	Repos        any            `yaml:"repos,omitempty"`
	Install      DNFInstall     `yaml:"install,omitempty"`
	Remove       DNFRemove      `yaml:"remove,omitempty"`
	Replace      []DNFReplace   `yaml:"replace,omitempty"`
	GroupInstall map[string]any `yaml:"group-install,omitempty"`
	GroupRemove  map[string]any `yaml:"group-remove,omitempty"`
	Builddep     map[string]any `yaml:"builddep,omitempty"`
	Optfix       []string       `yaml:"optfix,omitempty"`
}

// DNFInstall is what dnf installs. A package is a name or a mapping with repo.
type DNFInstall struct {
	Packages        []any    `yaml:"packages"`
	InstallWeakDeps *bool    `yaml:"install-weak-deps,omitempty"`
	SkipUnavailable bool     `yaml:"skip-unavailable,omitempty"`
	SkipBroken      bool     `yaml:"skip-broken,omitempty"`
	AllowErasing    bool     `yaml:"allow-erasing,omitempty"`
	NoGPGChecks     bool     `yaml:"no-gpgchecks,omitempty"`
	Exclude         []string `yaml:"exclude,omitempty"`
}

// DNFRemove is what dnf removes.
type DNFRemove struct {
	Packages   []string `yaml:"packages"`
	AutoRemove *bool    `yaml:"auto-remove,omitempty"`
}

// DNFReplace swaps packages for those of another repository.
type DNFReplace struct {
	FromRepo        string `yaml:"from-repo"`
	Packages        []any  `yaml:"packages"`
	SkipUnavailable bool   `yaml:"skip-unavailable,omitempty"`
	SkipBroken      bool   `yaml:"skip-broken,omitempty"`
	AllowErasing    bool   `yaml:"allow-erasing,omitempty"`
}

// RPMOSTree installs and removes packages on the base's own terms.
type RPMOSTree struct {
	Common  `yaml:",inline"`
	Repos   []string `yaml:"repos,omitempty"`
	Keys    []string `yaml:"keys,omitempty"`
	Install []string `yaml:"install,omitempty"`
	Remove  []string `yaml:"remove,omitempty"`
	Replace []any    `yaml:"replace,omitempty"`
	Optfix  []string `yaml:"optfix,omitempty"`
}

// understood makes the body of each module that this package reads fully.
var understood = map[string]func() Spec{
	"files":      func() Spec { return new(Files) },
	"script":     func() Spec { return new(Script) },
	"systemd":    func() Spec { return new(Systemd) },
	"kargs":      func() Spec { return new(Kargs) },
	"os-release": func() Spec { return new(OSRelease) },
	"dnf":        func() Spec { return new(DNF) },
	"rpm-ostree": func() Spec { return new(RPMOSTree) },
}

// keys are the top-level keys of the other modules that BlueBuild has.
var keys = map[string][]string{
	"akmods":            {"base", "install", "nvidia-driver"},
	"apk":               {"install", "remove"},
	"apt":               {"install", "remove"},
	"bling":             {"install"},
	"brew":              {"auto-update", "update-interval", "update-wait-after-boot", "auto-upgrade", "upgrade-interval", "upgrade-wait-after-boot", "nofile-limits", "brew-analytics", "direct-pull", "installer-commit"},
	"chezmoi":           {"repository", "branch", "all-users", "run-every", "wait-after-boot", "disable-init", "disable-update", "file-conflict-policy"},
	"containerfile":     {"snippets", "containerfiles"},
	"copy":              {"from", "src", "dest"},
	"default-flatpaks":  {"configurations", "notify", "system", "user"},
	"fonts":             {"fonts"},
	"gnome-extensions":  {"install", "uninstall"},
	"gschema-overrides": {"include"},
	"initramfs":         {},
	"justfiles":         {"validate", "include", "install"},
	"pacman":            {"install", "remove"},
	"signing":           {},
	"soar":              {"auto-upgrade", "upgrade-interval", "additional-repos"},
	"yafti":             {"custom-flatpaks"},
	"zypper":            {"install", "remove"},
}

// instead says what to write for a module that people expect but that BlueBuild
// does not have.
var instead = map[string]string{
	"brand":    "set names with os-release and copy logos and themes with files",
	"branding": "set names with os-release and copy logos and themes with files",
	"bash":     "use script",
	"run":      "use script with snippets",
	"yum":      "use dnf",
}

// UnmarshalYAML reads one entry of modules by its type.
func (m *Module) UnmarshalYAML(node ast.Node) error {
	mapping, ok := node.(*ast.MappingNode)
	if !ok {
		if v, single := node.(*ast.MappingValueNode); single {
			mapping = ast.Mapping(v.GetToken(), false, v)
		} else {
			return at(node, "not a module; write for example - type: files")
		}
	}
	var typeNode ast.Node
	present := map[string]ast.Node{}
	for _, v := range mapping.Values {
		k := v.Key.String()
		present[k] = v.Key
		if k == "type" {
			typeNode = v.Value
		}
	}
	if from, ok := present["from-file"]; ok {
		return at(from, "from-file is not read by veilor-forge; write the modules into this file")
	}
	if typeNode == nil {
		return at(node, "type missing; write for example type: files")
	}
	var full string
	if err := yaml.NodeToValue(typeNode, &full); err != nil {
		return err
	}
	name, version, versioned := strings.Cut(full, "@")
	if versioned && version != "latest" && !versionRe.MatchString(version) {
		return at(typeNode, fmt.Sprintf("%q is no module version; write %s@v1 or %s", full, name, name))
	}
	m.Type = name
	if make, ok := understood[name]; ok {
		m.Spec = make()
		return yaml.NodeToValue(node, m.Spec, yaml.Strict())
	}
	known, ok := keys[name]
	if !ok {
		if hint, ok := instead[name]; ok {
			return at(typeNode, fmt.Sprintf("BlueBuild has no module %q; %s", name, hint))
		}
		return at(typeNode, fmt.Sprintf("BlueBuild has no module %q; write one of %s", name, strings.Join(Types(), ", ")))
	}
	for _, v := range mapping.Values {
		k := v.Key.String()
		if !slices.Contains(known, k) && !slices.Contains([]string{"type", "source", "no-cache", "env", "secrets"}, k) {
			return at(v.Key, fmt.Sprintf("module %s has no key %q; it has %s", name, k, strings.Join(append([]string{"type"}, known...), ", ")))
		}
	}
	return nil
}

var versionRe = regexp.MustCompile(`^v[0-9]+$`)

// at is a syntax error at n, as the YAML library makes them.
func at(n ast.Node, text string) error {
	if n == nil || n.GetToken() == nil {
		return errors.New(text)
	}
	return &yaml.SyntaxError{Message: text, Token: n.GetToken()}
}

// Types are the names of all modules, sorted.
func Types() []string {
	all := slices.Collect(maps.Keys(understood))
	for k := range keys {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func (f *Files) check(add func(string, string, ...any)) {
	if len(f.Files) == 0 {
		add("", "files missing; write for example files: [{source: system, destination: /}]")
	}
	for i, c := range f.Files {
		at := fmt.Sprintf(".files[%d]", i)
		if c.Source == "" || !local(c.Source) {
			add(at, "source %q is not a path below bluebuild/files; write for example source: system", c.Source)
		}
		if !strings.HasPrefix(c.Destination, "/") {
			add(at, "destination %q is not absolute; write for example destination: /", c.Destination)
		}
	}
}

// Summary implements [Spec].
func (f *Files) Summary() string {
	var s []string
	for _, c := range f.Files {
		s = append(s, c.Source+" -> "+c.Destination)
	}
	return strings.Join(s, ", ")
}

func (s *Script) check(add func(string, string, ...any)) {
	if len(s.Snippets)+len(s.Scripts) == 0 {
		add("", "neither snippets nor scripts; write for example snippets: [update-ca-trust]")
	}
	for i, n := range s.Scripts {
		if !local(n) {
			add(fmt.Sprintf(".scripts[%d]", i), "%q is not a path below bluebuild/files/scripts", n)
		}
	}
}

// Summary implements [Spec].
func (s *Script) Summary() string {
	return strings.Join(append(slices.Clone(s.Scripts), s.Snippets...), ", ")
}

var unitRe = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|path|mount|automount|swap|slice|scope|device)$`)

func (s *Systemd) check(add func(string, string, ...any)) {
	seen := map[string]string{}
	for _, scope := range []struct {
		name string
		u    Units
	}{{"system", s.System}, {"user", s.User}} {
		for _, l := range scope.u.Lists() {
			for i, n := range l.Names {
				at := fmt.Sprintf(".%s.%s[%d]", scope.name, l.State, i)
				if !unitRe.MatchString(n) {
					add(at, "%q is no unit name; write it with its suffix, for example tailscaled.service", n)
				}
				if was, ok := seen[scope.name+n]; ok {
					add(at, "%s is already under %s; a unit has one state", n, was)
				}
				seen[scope.name+n] = l.State
			}
		}
	}
	if len(seen) == 0 {
		add("", "no unit named; write for example system: {enabled: [veilor-mesh.service]}")
	}
}

// List is the units of one state.
type List struct {
	State string // "enabled"
	Names []string
}

// Lists are the units by state, in the order in which they are applied.
func (u Units) Lists() []List {
	return []List{{"unmasked", u.Unmasked}, {"enabled", u.Enabled}, {"disabled", u.Disabled}, {"masked", u.Masked}}
}

// Summary implements [Spec].
func (s *Systemd) Summary() string {
	var out []string
	for _, u := range []Units{s.System, s.User} {
		for _, l := range u.Lists() {
			if len(l.Names) > 0 {
				out = append(out, l.State+" "+strings.Join(l.Names, " "))
			}
		}
	}
	return strings.Join(out, ", ")
}

var kargRe = regexp.MustCompile(`^[A-Za-z0-9_][^\s"\\]*$`)

func (k *Kargs) check(add func(string, string, ...any)) {
	if len(k.Kargs) == 0 {
		add("", "kargs missing; write for example kargs: [nvidia-drm.modeset=1]")
	}
	for i, a := range k.Kargs {
		if !kargRe.MatchString(a) {
			add(fmt.Sprintf(".kargs[%d]", i), "%q is no single kernel argument; write one per entry, for example quiet", a)
		}
	}
	// BlueBuild's module tests an absent arch wrongly and then writes
	// match-architectures = ["null"], so that bootc never applies the file
	// (modules/kargs/kargs.sh: `-n … || … != "null"`).
	if len(k.Architectures()) == 0 {
		add("", "arch missing: BlueBuild would write an architecture called null and bootc would never apply these; write arch: x86_64, aarch64")
	}
}

// Architectures are the entries of Arch.
func (k *Kargs) Architectures() []string {
	return strings.FieldsFunc(k.Arch, func(r rune) bool { return r == ',' || r == ' ' })
}

// Summary implements [Spec].
func (k *Kargs) Summary() string { return strings.Join(k.Kargs, " ") }

var propertyRe = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

func (o *OSRelease) check(add func(string, string, ...any)) {
	if len(o.Properties) == 0 {
		add("", "properties missing; write for example properties: {NAME: veilor-os}")
	}
	for _, k := range slices.Sorted(maps.Keys(o.Properties)) {
		if !propertyRe.MatchString(k) {
			add(".properties", "%q is no os-release key; use A-Z, 0-9 and _", k)
		}
		if strings.ContainsAny(o.Properties[k], "\n\"'$`\\") {
			add(".properties."+k, "%q has quotes, $, ` or a line break, which shells that source os-release would expand; remove them", o.Properties[k])
		}
	}
}

// Summary implements [Spec].
func (o *OSRelease) Summary() string {
	return strings.Join(slices.Sorted(maps.Keys(o.Properties)), " ")
}

func (d *DNF) check(add func(string, string, ...any)) {
	if d.Summary() == "" && d.Repos == nil && d.GroupInstall == nil && d.GroupRemove == nil && d.Builddep == nil {
		add("", "does nothing; write for example install: {packages: [tailscale]}")
	}
}

// Summary implements [Spec].
func (d *DNF) Summary() string {
	var out []string
	if len(d.Install.Packages) > 0 {
		out = append(out, "install "+strings.Trim(fmt.Sprint(d.Install.Packages), "[]"))
	}
	if len(d.Remove.Packages) > 0 {
		out = append(out, "remove "+strings.Join(d.Remove.Packages, " "))
	}
	for _, r := range d.Replace {
		out = append(out, "replace "+strings.Trim(fmt.Sprint(r.Packages), "[]"))
	}
	return strings.Join(out, ", ")
}

func (r *RPMOSTree) check(add func(string, string, ...any)) {
	if r.Summary() == "" && len(r.Repos)+len(r.Keys) == 0 {
		add("", "does nothing; write for example install: [tailscale]")
	}
}

// Summary implements [Spec].
func (r *RPMOSTree) Summary() string {
	var out []string
	if len(r.Install) > 0 {
		out = append(out, "install "+strings.Join(r.Install, " "))
	}
	if len(r.Remove) > 0 {
		out = append(out, "remove "+strings.Join(r.Remove, " "))
	}
	return strings.Join(out, ", ")
}

// local says whether p stays below the directory that it is relative to.
func local(p string) bool {
	return p != "" && !path.IsAbs(p) && p == path.Clean(p) && p != ".." && !strings.HasPrefix(p, "../")
}
