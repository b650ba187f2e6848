package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Change is a file that differs between two images.
type Change struct {
	Path string `json:"path"`
	// Kind is added, removed or changed.
	Kind string `json:"kind"`
	// What says of a changed file what changed: content, mode, link or type.
	What   []string `json:"what,omitempty"`
	Before int64    `json:"before,omitempty"` // size in bytes
	After  int64    `json:"after,omitempty"`
}

// LayerChange is a layer that only one of two images has.
type LayerChange struct {
	Kind string `json:"kind"` // added or removed
	ImageLayer
}

// Kinds of change.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Diff says what a client that has image A gets with image B.
type Diff struct {
	A      string        `json:"a"` // digest
	B      string        `json:"b"`
	Layers []LayerChange `json:"layers"`
	// Download is what a client that has A fetches, in bytes: the manifest, the
	// configuration and every layer of B that A has not.
	Download int64 `json:"download"`
	// Total is what a client that has nothing fetches.
	Total int64    `json:"total"`
	Files []Change `json:"files"`
}

// Compare opens two images and compares them; see [Open].
func Compare(ctx context.Context, a, b, arch, cache string) (*Diff, error) {
	before, err := Open(ctx, a, arch)
	if err != nil {
		return nil, err
	}
	after, err := Open(ctx, b, arch)
	if err != nil {
		return nil, err
	}
	old, err := list(ctx, before, a, cache)
	if err != nil {
		return nil, err
	}
	new, err := list(ctx, after, b, cache)
	if err != nil {
		return nil, err
	}
	if old.Arch != new.Arch {
		return nil, fmt.Errorf("comparing %s (%s) and %s (%s): they are for different machines; choose one with --arch", a, old.Arch, b, new.Arch)
	}
	m, err := after.Manifest()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", b, err)
	}
	size, err := after.Size()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", b, err)
	}
	d := &Diff{A: old.Digest, B: new.Digest, Layers: []LayerChange{}, Files: []Change{}}
	if old.Digest != new.Digest {
		d.Download = size
		c, err := before.ConfigName()
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", a, err)
		}
		if c != m.Config.Digest {
			d.Download += m.Config.Size
		}
	}
	d.Total = size + m.Config.Size
	d.layers(old.Layers, new.Layers)
	d.files(old.Files, new.Files)
	return d, nil
}

func (d *Diff) layers(old, new []ImageLayer) {
	digests := func(layers []ImageLayer) map[string]bool {
		set := map[string]bool{}
		for _, l := range layers {
			set[l.Digest] = true
		}
		return set
	}
	inOld, inNew := digests(old), digests(new)
	for _, l := range old {
		if !inNew[l.Digest] {
			d.Layers = append(d.Layers, LayerChange{Removed, l})
		}
	}
	seen := map[string]bool{}
	for _, l := range new {
		if seen[l.Digest] {
			continue // fetched once, however often it is used
		}
		seen[l.Digest] = true
		d.Total += l.Size
		if !inOld[l.Digest] {
			d.Layers = append(d.Layers, LayerChange{Added, l})
			d.Download += l.Size
		}
	}
}

func (d *Diff) files(old, new []File) {
	before := map[string]File{}
	for _, f := range old {
		before[f.Path] = f
	}
	changes := map[string]Change{}
	for _, f := range new {
		o, ok := before[f.Path]
		delete(before, f.Path)
		if !ok {
			changes[f.Path] = Change{Path: f.Path, Kind: Added, After: f.Size}
			continue
		}
		if what := differences(o, f); len(what) > 0 {
			changes[f.Path] = Change{f.Path, Changed, what, o.Size, f.Size}
		}
	}
	for p, f := range before {
		changes[p] = Change{Path: p, Kind: Removed, Before: f.Size}
	}
	for _, p := range slices.Sorted(maps.Keys(changes)) {
		d.Files = append(d.Files, changes[p])
	}
}

// differences names what differs of a file that both images have.
func differences(a, b File) (what []string) {
	if a.Mode[0] != b.Mode[0] {
		return []string{"type"}
	}
	if a.SHA256 != b.SHA256 {
		what = append(what, "content")
	}
	if a.Link != b.Link {
		what = append(what, "link")
	}
	if a.Mode != b.Mode {
		what = append(what, "mode")
	}
	return what
}
