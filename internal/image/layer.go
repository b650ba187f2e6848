package image

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/overlay"
)

// stage is what a build puts on the base.
type stage struct {
	base    *Base
	entries map[string]overlay.Entry
	remove  map[string]bool // paths, relative, as the base has them
}

func newStage(b *Base) *stage {
	return &stage{base: b, entries: map[string]overlay.Entry{}, remove: map[string]bool{}}
}

func (s *stage) put(e overlay.Entry) { s.entries[e.Path] = e }

// parents returns the directories above p, outermost first.
func parents(p string) []string {
	var dirs []string
	for i, c := range p {
		if c == '/' {
			dirs = append(dirs, p[:i])
		}
	}
	return dirs
}

// check returns an error for an entry that the base gives no room: a link or a
// file where the entry needs a directory, or the reverse.
func (s *stage) check() error {
	for p := range s.entries {
		for _, d := range parents(p) {
			f, _, ok := s.base.find(d)
			if ok && f.typ == tar.TypeSymlink {
				return fmt.Errorf("placing /%s: the base has a link at /%s, to %s; put the file below its target", p, d, f.link)
			}
			if ok && f.typ != tar.TypeDir {
				return fmt.Errorf("placing /%s: the base has a file at /%s", p, d)
			}
		}
		if f, _, ok := s.base.find(p); ok && f.typ == tar.TypeDir {
			return fmt.Errorf("placing /%s: the base has a directory there", p)
		}
		if s.remove[p] {
			return fmt.Errorf("placing /%s: it is also removed; take it out of overlay/%s or out of the overlay", p, overlay.UndoFile)
		}
	}
	return nil
}

// part is what goes into one layer.
type part struct {
	name    string
	entries []overlay.Entry
	remove  []string
}

// trustPart is the layer of the bundles of authorities.
const trustPart = "trust"

// partOf is the layer in which an entry lies. A client fetches a layer whole, so
// what is large and changes alone lies alone: each program, the bundles, each kind
// of branding. What is small shares one.
func partOf(e overlay.Entry) string {
	switch e.Group {
	case overlay.Programs:
		return e.Group.String() + "/" + path.Base(e.Path)
	case overlay.Branding:
		if kind := strings.Split(e.Path, "/"); len(kind) > 3 && kind[0] == "usr" && kind[1] == "share" {
			return e.Group.String() + "/" + kind[2]
		}
	case overlay.Config:
		if slices.Contains(bundles, e.Path) {
			return trustPart
		}
	}
	return e.Group.String()
}

// parts are the layers, the one that changes least first: what the base decides,
// then the groups in their order.
func (s *stage) parts() []part {
	byName := map[string]*part{}
	get := func(name string) *part {
		if byName[name] == nil {
			byName[name] = &part{name: name}
		}
		return byName[name]
	}
	for _, e := range s.entries {
		p := get(partOf(e))
		p.entries = append(p.entries, e)
	}
	for f := range s.remove {
		p := get(overlay.Config.String())
		p.remove = append(p.remove, f)
	}
	order := map[string]int{trustPart: -1}
	for i, g := range overlay.Groups {
		order[g.String()] = i
	}
	var all []part
	for _, p := range byName {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b part) int {
		ga, _, _ := strings.Cut(a.name, "/")
		gb, _, _ := strings.Cut(b.name, "/")
		return cmp.Or(order[ga]-order[gb], strings.Compare(a.name, b.name))
	})
	return all
}

// tar writes what part p adds and removes, in one order and with one date.
func (s *stage) tar(w io.Writer, p part, date time.Time) error {
	headers := map[string]*tar.Header{}
	content := map[string][]byte{}
	add := func(h tar.Header, data []byte) {
		h.ModTime = date
		headers[h.Name], content[h.Name] = &h, data
		for _, d := range parents(h.Name) {
			mode := int64(0o755)
			if f, _, ok := s.base.find(d); ok && f.typ == tar.TypeDir {
				mode = f.mode
			}
			headers[d] = &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode, ModTime: date}
		}
	}
	for _, e := range p.entries {
		if e.Link != "" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: e.Path, Linkname: e.Link, Mode: int64(e.Perm())}, nil)
			continue
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: e.Path, Mode: int64(e.Perm()), Size: int64(len(e.Data))}, e.Data)
	}
	for _, f := range p.remove {
		add(tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(f), whiteout+path.Base(f)), Mode: 0o644}, nil)
	}
	names := slices.Collect(maps.Keys(headers))
	// By components, so that a directory stands right before what is in it.
	slices.SortFunc(names, func(a, b string) int {
		return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
	})
	tw := tar.NewWriter(w) // USTAR; PAX records only where a name needs them
	for _, n := range names {
		if err := tw.WriteHeader(headers[n]); err != nil {
			return fmt.Errorf("writing %s into a layer: %w", n, err)
		}
		if _, err := tw.Write(content[n]); err != nil {
			return fmt.Errorf("writing %s into a layer: %w", n, err)
		}
	}
	return tw.Close()
}
