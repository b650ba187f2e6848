package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ImageLayer is one layer of an image.
type ImageLayer struct {
	// Name is what our builder called it; "base" for a layer of the base.
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // compressed, in bytes
	Type   string `json:"media_type"`
}

type imageLayer struct {
	ImageLayer
	layer v1.Layer
	ours  bool
}

// baseLayer is the name of layers that we did not make.
const baseLayer = "base"

// layersOf names the layers of img by its history.
func layersOf(img v1.Image) ([]imageLayer, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(m.Layers) {
		return nil, fmt.Errorf("its manifest has %d layers and its configuration %d; fetch it again", len(m.Layers), len(layers))
	}
	var history []v1.History
	for _, h := range config.History {
		if !h.EmptyLayer {
			history = append(history, h)
		}
	}
	all := make([]imageLayer, len(layers))
	for i, d := range m.Layers {
		all[i] = imageLayer{ImageLayer{baseLayer, d.Digest.String(), d.Size, string(d.MediaType)}, layers[i], false}
		// History is text; it is believed for names only.
		if i < len(history) && history[i].CreatedBy == createdBy {
			all[i].Name, all[i].ours = strings.TrimPrefix(history[i].Comment, "veilor "), true
		}
	}
	return all, nil
}

// ourLayers are the layers that veilor-forge made.
func ourLayers(img v1.Image) ([]imageLayer, error) {
	all, err := layersOf(img)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(l imageLayer) bool { return !l.ours }), nil
}

// File is one file, link or directory of an image, seen through all its layers.
type File struct {
	Path   string `json:"path"`           // absolute
	Mode   string `json:"mode"`           // as ls writes it
	Size   int64  `json:"size,omitempty"` // in bytes
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"`
	Layer  int    `json:"layer"` // index in Listing.Layers
}

// Listing is what is in an image.
type Listing struct {
	Image   string       `json:"image"`
	Digest  string       `json:"digest"`
	Version string       `json:"version,omitempty"`
	Arch    string       `json:"arch"`
	Base    string       `json:"base,omitempty"` // digest of the base, of an image of ours
	Layers  []ImageLayer `json:"layers"`
	Files   []File       `json:"files,omitempty"`
}

// List opens the image that ref names and lists its layers and files; see [Open].
func List(ctx context.Context, ref, arch, cache string) (*Listing, error) {
	img, err := Open(ctx, ref, arch)
	if err != nil {
		return nil, err
	}
	return list(ctx, img, ref, cache)
}

func list(ctx context.Context, img v1.Image, ref, cache string) (*Listing, error) {
	b, err := index(ctx, img, ref, cache)
	if err != nil {
		return nil, err
	}
	layers, err := layersOf(img)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", ref, err)
	}
	labels := b.Config.Config.Labels
	out := &Listing{
		Image: ref, Digest: b.Digest.String(), Arch: b.Config.Architecture,
		Version: labels["org.opencontainers.image.version"], Base: labels["org.opencontainers.image.base.digest"],
	}
	for _, l := range layers {
		out.Layers = append(out.Layers, l.ImageLayer)
	}
	for p, f := range b.files {
		if !strings.HasPrefix(p, ostreeRepo) {
			out.Files = append(out.Files, f.public(p))
		}
	}
	slices.SortFunc(out.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return out, nil
}

// ostreeRepo holds the same files a second time, by content.
const ostreeRepo = "sysroot/ostree"

func (f file) public(p string) File {
	out := File{Path: "/" + p, Layer: f.layer, Mode: lsMode(f.typ, f.mode)}
	switch f.typ {
	case tar.TypeDir:
	case tar.TypeSymlink:
		out.Link = f.link
	default:
		out.Size, out.SHA256 = f.size, hex.EncodeToString(f.sum[:])
	}
	return out
}

// lsMode writes a type and permission bits as ls does.
func lsMode(typ byte, mode int64) string {
	text := []byte("-rwxrwxrwx")
	switch typ {
	case tar.TypeDir:
		text[0] = 'd'
	case tar.TypeSymlink:
		return "lrwxrwxrwx"
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			text[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit    int64
		at     int
		on, no byte // with and without the execute bit below it
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if mode&s.bit == 0 {
			continue
		}
		if text[s.at] == '-' {
			text[s.at] = s.no
		} else {
			text[s.at] = s.on
		}
	}
	return string(text)
}
