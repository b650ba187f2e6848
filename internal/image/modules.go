package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
)

const (
	osReleasePath = "usr/lib/os-release"
	// kargsPath is where BlueBuild's module writes; bootc reads all of kargs.d.
	kargsPath = "usr/lib/bootc/kargs.d/bluebuild-kargs"
	// filesSource is the one tree below bluebuild/files that we render.
	filesSource = "system"
)

// builder is one build under way.
type builder struct {
	*stage
	tree      overlay.Tree
	undo      []overlay.Undo
	version   string
	authority []byte
	standIns  []Replacement
	derived   bool // the base is an image of ours
	kargs     int  // kargs files so far
	needs     []need
	outcomes  []Outcome
	undone    []string
}

// apply does the modules in order.
func (b *builder) apply(ctx context.Context, r *recipe.Recipe) error {
	for _, m := range r.Modules {
		var err error
		switch spec := m.Spec.(type) {
		case *recipe.Files:
			err = b.files(spec)
		case *recipe.Script:
			err = b.scripts(ctx, m, spec)
		case *recipe.Systemd:
			var absent []string
			absent, err = b.units(ctx, spec)
			for _, n := range absent {
				b.outcomes = append(b.outcomes, Outcome{m.Line, m.Type, n, Moot, errNoUnit.Error()})
			}
		case *recipe.Kargs:
			b.kernelArguments(spec)
		case *recipe.OSRelease:
			err = b.osRelease(ctx, spec)
		}
		if err != nil {
			return fmt.Errorf("applying the module %s of line %d: %w", m.Type, m.Line, err)
		}
	}
	settled, err := settle(ctx, b.base, recipeNeeds(r), b.standIns)
	if err != nil {
		return fmt.Errorf("applying the recipe: %w", err)
	}
	b.outcomes = append(b.outcomes, settled...)
	slices.SortStableFunc(b.outcomes, func(x, y Outcome) int { return x.Line - y.Line })
	return nil
}

func (b *builder) files(m *recipe.Files) error {
	for _, c := range m.Files {
		if c.Source != filesSource || path.Clean(c.Destination) != "/" {
			return fmt.Errorf("copying %s to %s: veilor-forge renders one tree; write source: %s, destination: /", c.Source, c.Destination, filesSource)
		}
		for _, e := range b.tree {
			b.put(e)
		}
	}
	return nil
}

// scripts does what it knows of a script module natively. Everything else would
// run in the image; see [scriptNeeds].
func (b *builder) scripts(ctx context.Context, m recipe.Module, spec *recipe.Script) error {
	if slices.Contains(spec.Scripts, overlay.UndoScript) {
		if err := b.undoTraps(ctx, m); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(spec.Snippets, func(s string) bool { return strings.TrimSpace(s) == trustSnippet }) {
		return b.trust(ctx)
	}
	return nil
}

// undoTraps removes what the undo list says. In a base that is an image of ours
// it was done when that was built; only what must be gone is looked for.
func (b *builder) undoTraps(ctx context.Context, m recipe.Module) error {
	if b.derived {
		for _, u := range b.undo {
			if u.Action != overlay.Remove {
				continue
			}
			for _, p := range append([]string{u.Path}, u.Also...) {
				if b.base.Has(p) {
					return fmt.Errorf("%s is there, and the base calls itself an image of ours; build that one again", p)
				}
			}
		}
		b.outcomes = append(b.outcomes, Outcome{m.Line, m.Type, overlay.UndoScript, Satisfied, "the base is an image of ours"})
		return nil
	}
	gone, err := overlay.Plan(b.undo, b.tree, func(p string) ([]byte, error) { return b.base.Read(ctx, p) })
	if err != nil {
		return err
	}
	for _, p := range gone {
		_, at, _ := b.base.find(clean(p))
		b.remove[at] = true
	}
	b.undone = gone
	added, err := overlay.Appended(b.undo, func(p string) ([]byte, error) { return b.base.Read(ctx, p) })
	if err != nil {
		return err
	}
	for _, e := range added {
		b.put(e)
	}
	return nil
}

// bundles are the PEM files in which programs look for authorities: Fedora's,
// which update-ca-trust writes, and Debian's. Of update-ca-trust's other forms
// (Java, EDK II, OpenSSL's trusted certificates) none is read by what we ship.
var bundles = []string{
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"etc/ssl/certs/ca-certificates.crt",
}

// trust appends the site's authority to the bundles that the base has. A base
// with none gets Fedora's, of which Go programs and curl know the path. The bundle
// is large and changes with the base and the authority, so it does not lie in the
// layer of os-release, which changes with every version.
func (b *builder) trust(ctx context.Context) error {
	pem := append([]byte("# veilor: the site's authority\n"), b.authority...)
	done := false
	for _, p := range bundles {
		if f, err := b.base.resolve(p); err != nil || f.name == "" {
			continue
		}
		if f, at, ok := b.base.find(p); ok && f.link != "" {
			return fmt.Errorf("adding the authority: /%s is a link to %s in the base; add that file to the list of bundles", at, f.link)
		}
		data, err := b.base.Read(ctx, p)
		if err != nil {
			return fmt.Errorf("adding the authority: reading /%s: %w", p, err)
		}
		if bytes.Contains(data, bytes.TrimSpace(b.authority)) {
			done = true // an image of ours as the base
			continue
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(data, '\n')
		}
		b.put(overlay.Entry{Path: p, Data: append(slices.Clip(data), pem...), Group: overlay.Config})
		done = true
	}
	if !done {
		b.put(overlay.Entry{Path: bundles[0], Data: pem, Group: overlay.Config})
	}
	return nil
}

// kernelArguments writes a file as BlueBuild's kargs module does.
func (b *builder) kernelArguments(m *recipe.Kargs) {
	name := kargsPath
	if b.kargs > 0 {
		name += "-" + strconv.Itoa(b.kargs)
	}
	b.kargs++
	list := func(words []string) string {
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = strconv.Quote(w)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	text := "kargs = " + list(m.Kargs) + "\n"
	if arch := m.Architectures(); len(arch) > 0 {
		text += "match-architectures = " + list(arch) + "\n"
	}
	b.put(overlay.Entry{Path: name + ".toml", Data: []byte(text), Group: overlay.Config})
}

// osRelease merges properties into the base's os-release, and the version under
// every name by which Fedora's atomic desktops and bootc look for it.
func (b *builder) osRelease(ctx context.Context, m *recipe.OSRelease) error {
	data, err := b.base.Read(ctx, osReleasePath)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the base has no /%s; is it an operating system?", osReleasePath)
	}
	if err != nil {
		return fmt.Errorf("reading /%s of the base: %w", osReleasePath, err)
	}
	set := maps.Clone(m.Properties)
	for _, k := range []string{"VERSION", "OSTREE_VERSION", "IMAGE_VERSION"} {
		set[k] = b.version
	}
	b.put(overlay.Entry{Path: osReleasePath, Data: mergeOSRelease(data, set), Group: overlay.Site})
	return nil
}

// mergeOSRelease sets properties where they stand and appends new ones, sorted.
func mergeOSRelease(data []byte, set map[string]string) []byte {
	var out bytes.Buffer
	line := func(k string) { fmt.Fprintf(&out, "%s=\"%s\"\n", k, set[k]) }
	done := map[string]bool{}
	for l := range strings.Lines(string(data)) {
		k, _, ok := strings.Cut(strings.TrimSpace(l), "=")
		if _, ours := set[k]; !ok || !ours {
			out.WriteString(strings.TrimRight(l, "\n") + "\n")
			continue
		}
		if !done[k] {
			line(k)
		}
		done[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(set)) {
		if !done[k] {
			line(k)
		}
	}
	return out.Bytes()
}
