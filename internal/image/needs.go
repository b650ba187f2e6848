package image

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
)

// How says what became of a part of the recipe that veilor-forge cannot apply
// itself, because it needs a package manager or runs in the image.
type How string

const (
	Satisfied How = "satisfied" // the base has it already
	StandIn   How = "stand-in"  // a table names what takes its place
	Moot      How = "moot"      // there is nothing to do it to
)

// Outcome is what became of one such part.
type Outcome struct {
	Line   int    `json:"line"` // in the recipe
	Module string `json:"module"`
	What   string `json:"what"`
	How    How    `json:"how"`
	By     string `json:"by"` // what satisfies it or stands in
}

func (o Outcome) String() string {
	return fmt.Sprintf("%s %s: %s: %s", o.Module, o.What, o.How, o.By)
}

// need is one part of the recipe that the base must bring.
type need struct {
	line   int
	module string
	what   string // "install tailscale"
	// met says what of the base satisfies it; an error says why nothing does.
	met func(*inventory) (by string, err error)
}

// name is how a table of stand-ins calls it.
func (n need) name() string { return n.module + " " + n.what }

// inventory is what a base has.
type inventory struct {
	packages []Package
	database string
	has      func(path string) bool
}

// find returns the package that is or provides what a person writes behind dnf
// install: a name, with or without architecture, or an absolute path.
func (i *inventory) find(spec string) (Package, bool) {
	name := spec
	if n, arch, ok := cutLast(spec, "."); ok && slices.Contains([]string{"x86_64", "aarch64", "noarch", "i686"}, arch) {
		name = n
	}
	for _, p := range i.packages {
		if p.Name == name || slices.Contains(p.Programs, spec) {
			return p, true
		}
	}
	for _, p := range i.packages {
		if slices.Contains(p.Provides, name) {
			return p, true
		}
	}
	return Package{}, false
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// errCannotTell is for what a package database does not record.
var errCannotTell = errors.New("a package database does not tell whether this was done")

func cannotTell(*inventory) (string, error) { return "", errCannotTell }

// installed is met by a package whose programs are all there: a base may have
// deleted one without telling its database.
func installed(spec string) func(*inventory) (string, error) {
	return func(i *inventory) (string, error) {
		p, ok := i.find(spec)
		if !ok {
			return "", fmt.Errorf("not among the %d packages of %s", len(i.packages), i.database)
		}
		for _, f := range p.Programs {
			if !i.has(f) {
				return "", fmt.Errorf("%s is installed, but %s was deleted", p, f)
			}
		}
		return p.String(), nil
	}
}

// packageRe is a plain name of a package. What else dnf takes (a pattern, a group, a
// path) names several, or what a package database of a base cannot be asked for.
var packageRe = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`)

// absent is met by no package of that name. It is the answer that a question gets
// that was asked wrongly, so that only plain names count.
func absent(spec string) func(*inventory) (string, error) {
	if !packageRe.MatchString(spec) {
		return cannotTell
	}
	return func(i *inventory) (string, error) {
		if p, ok := i.find(spec); ok {
			return "", fmt.Errorf("%s is installed", p)
		}
		for _, p := range i.packages {
			if strings.HasPrefix(spec, p.Name+"-"+p.Version) { // dnf takes a version behind the name
				return "", fmt.Errorf("%s is installed", p)
			}
		}
		return "not among the packages of " + i.database, nil
	}
}

func hasFile(p string) func(*inventory) (string, error) {
	return func(i *inventory) (string, error) {
		if !i.has(p) {
			return "", fmt.Errorf("%s is not there", p)
		}
		return p, nil
	}
}

// Directories that dnf's and rpm-ostree's repositories are configured in.
const repoDir = "/etc/yum.repos.d/"

// repoFile is where a repository that a recipe names by URL or file ends up; a
// COPR is called "copr:OWNER/PROJECT" here.
func repoFile(name string) string {
	if copr, ok := strings.CutPrefix(name, "copr:"); ok {
		return repoDir + "_copr:copr.fedorainfracloud.org:" + strings.ReplaceAll(copr, "/", ":") + ".repo"
	}
	return repoDir + path.Base(name)
}

// needs lists what a module wants of a package manager, one by one.
func needs(m recipe.Module) []need {
	var all []need
	add := func(what string, met func(*inventory) (string, error)) {
		all = append(all, need{line: m.Line, module: m.Type, what: what, met: met})
	}
	switch spec := m.Spec.(type) {
	case *recipe.DNF:
		for _, r := range repos(spec.Repos) {
			add("repository "+r, hasFile(repoFile(r)))
		}
		for _, p := range packageNames(spec.Install.Packages) {
			add("install "+p, installed(p))
		}
		for _, p := range spec.Remove.Packages {
			add("remove "+p, absent(p))
		}
		for _, r := range spec.Replace {
			for _, p := range packageNames(r.Packages) {
				add("replace "+p, cannotTell)
			}
		}
		for _, g := range []struct {
			name string
			body map[string]any
		}{{"group-install", spec.GroupInstall}, {"group-remove", spec.GroupRemove}, {"builddep", spec.Builddep}} {
			if len(g.body) > 0 {
				add(g.name+" "+strings.Join(packageNames(g.body["packages"]), " "), cannotTell)
			}
		}
	case *recipe.RPMOSTree:
		for _, r := range spec.Repos {
			add("repository "+r, hasFile(repoFile(r)))
		}
		for _, p := range spec.Install {
			add("install "+p, installed(p))
		}
		for _, p := range spec.Remove {
			add("remove "+p, absent(p))
		}
		for _, p := range packageNames(spec.Replace) {
			add("replace "+p, cannotTell)
		}
	case nil:
		add("(whole module)", cannotTell)
	default:
		add(spec.Summary(), cannotTell)
	}
	return all
}

// recipeNeeds lists what a base must bring for the whole recipe.
func recipeNeeds(r *recipe.Recipe) []need {
	var all []need
	for _, m := range r.Modules {
		switch spec := m.Spec.(type) {
		case *recipe.Script:
			all = append(all, scriptNeeds(m, spec)...)
		case *recipe.Files, *recipe.Systemd, *recipe.Kargs, *recipe.OSRelease:
			// ours
		default:
			all = append(all, needs(m)...)
		}
	}
	return all
}

// trustSnippet is the one snippet that veilor-forge does itself.
const trustSnippet = "update-ca-trust"

// scriptNeeds lists what of a script module veilor-forge cannot do itself.
func scriptNeeds(m recipe.Module, spec *recipe.Script) []need {
	var all []need
	for _, s := range spec.Scripts {
		if s != overlay.UndoScript {
			all = append(all, need{line: m.Line, module: m.Type, what: s, met: cannotTell})
		}
	}
	for _, s := range spec.Snippets {
		if strings.TrimSpace(s) != trustSnippet {
			all = append(all, snippetNeeds(m, s)...)
		}
	}
	return all
}

// packageNames flattens what the schema allows for packages: names, or mappings
// that have more names below packages, name or new.
func packageNames(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, packageNames(e)...)
		}
		return all
	case map[string]any:
		var all []string
		for _, k := range []string{"packages", "name", "new"} {
			all = append(all, packageNames(v[k])...)
		}
		return all
	}
	return nil
}

// repos flattens what the schema allows for repositories that are added.
func repos(v any) []string {
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	var all []string
	files := m["files"]
	if f, ok := files.(map[string]any); ok {
		files = f["add"]
	}
	all = append(all, packageNames(files)...)
	copr := m["copr"]
	if c, ok := copr.(map[string]any); ok {
		copr = c["enable"]
	}
	for _, c := range packageNames(copr) {
		all = append(all, "copr:"+c)
	}
	return all
}

// dnfRe is a command that a shell reads as the words that it looks like.
var dnfRe = regexp.MustCompile(`^dnf(?: +[A-Za-z0-9@%_./:=,+-]+)+$`)

// snippetNeeds reads the one kind of snippet that a package database can answer
// for: dnf with names. Everything else runs in the image.
func snippetNeeds(m recipe.Module, text string) []need {
	words := strings.Fields(text)
	var verb string
	var command, names []string
	for i, w := range words {
		switch {
		case i == 0 || strings.HasPrefix(w, "-"):
			command = append(command, w)
		case verb == "":
			verb = w
			command = append(command, w)
		default:
			names = append(names, w)
		}
	}
	met := map[string]func(string) func(*inventory) (string, error){
		"install": installed, "reinstall": installed, "remove": absent,
	}[verb]
	if !dnfRe.MatchString(strings.TrimSpace(text)) || met == nil || len(names) == 0 {
		return []need{{line: m.Line, module: m.Type, what: text, met: cannotTell}}
	}
	var all []need
	for _, n := range names {
		all = append(all, need{line: m.Line, module: m.Type, what: strings.Join(command, " ") + " " + n, met: met(n)})
	}
	return all
}

// Replacement is what takes the place of a part of the recipe on a base that
// cannot have it.
type Replacement struct {
	// Module is the part, as a build that stops calls it: "dnf install tailscale".
	Module string `yaml:"module"`
	// By says what takes its place, or why nothing needs to.
	By string `yaml:"by"`
	// Has are paths that the base must have for that.
	Has []string `yaml:"has,omitempty"`
}

// ParseReplacements reads a table of stand-ins. name is used in errors.
func ParseReplacements(name string, data []byte) ([]Replacement, error) {
	var table struct {
		StandIns []Replacement `yaml:"stand_ins"`
	}
	if err := yaml.UnmarshalWithOptions(data, &table, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("reading %s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	seen := map[string]bool{}
	for i, r := range table.StandIns {
		switch {
		case r.Module == "" || r.By == "":
			return nil, fmt.Errorf("reading %s: stand_ins[%d]: module and by must say what is replaced and by what", name, i)
		case seen[r.Module]:
			return nil, fmt.Errorf("reading %s: stand_ins[%d]: %q is there twice; remove one", name, i, r.Module)
		}
		seen[r.Module] = true
		for _, p := range r.Has {
			if !path.IsAbs(p) || path.Clean(p) != p {
				return nil, fmt.Errorf("reading %s: stand_ins[%d]: has: %q is no absolute path", name, i, p)
			}
		}
	}
	return table.StandIns, nil
}

// Missing is the error for a base that lacks what the recipe needs.
type Missing struct {
	Needs []string // each with line, name and reason
	Why   string   // what is known about the base as a whole; may be empty
}

func (m Missing) Error() string {
	s := "the base lacks what the recipe needs, and veilor-forge cannot run a package manager:\n  " + strings.Join(m.Needs, "\n  ")
	if m.Why != "" {
		s += "\n  (" + m.Why + ")"
	}
	return s + "\nUse a base that has it, such as the image published last, let BlueBuild build, or name what takes its place with --stand-ins FILE"
}

// settle finds what the base or the table of stand-ins has for every need.
func settle(ctx context.Context, b *Base, all []need, table []Replacement) ([]Outcome, error) {
	if len(all) == 0 {
		return nil, nil
	}
	inv := &inventory{has: b.Has}
	var why string
	var err error
	inv.packages, inv.database, err = b.Packages(ctx)
	switch {
	case errors.Is(err, errNoDatabase):
		inv, why = nil, "the base has no RPM database, so nothing is known about its packages"
	case err != nil:
		return nil, err
	}
	var done []Outcome
	var missing []string
	for _, n := range all {
		o := Outcome{Line: n.line, Module: n.module, What: n.what}
		reason := errors.New("")
		if inv != nil {
			if o.By, reason = n.met(inv); reason == nil {
				o.How = Satisfied
				done = append(done, o)
				continue
			}
		}
		i := slices.IndexFunc(table, func(r Replacement) bool { return r.Module == n.name() })
		if i >= 0 {
			lacks := slices.IndexFunc(table[i].Has, func(p string) bool { return !b.Has(p) })
			if lacks < 0 {
				o.How, o.By = StandIn, table[i].By
				done = append(done, o)
				continue
			}
			reason = fmt.Errorf("its stand-in needs %s, which the base has not", table[i].Has[lacks])
		}
		line := fmt.Sprintf("line %d: %s", n.line, n.name())
		if reason.Error() != "" {
			line += ": " + reason.Error()
		}
		missing = append(missing, line)
	}
	if len(missing) > 0 {
		return nil, Missing{missing, why}
	}
	return done, nil
}
