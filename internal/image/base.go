// Package image builds a veilor image: layers of our own on a base image, as an
// OCI image directory, without root, containers or a package manager. It also
// pushes images, compares them, and lists what is in them.
//
// What of the recipe needs no package manager is applied. The rest must be in the
// base already, by its package database, or have a stand-in by a table; otherwise
// nothing is built. A label of the image says which; see [ModulesLabel].
//
// A client fetches layers whole, so what is large and changes alone has a layer of
// its own; see [Layer]. The same inputs give the same digest: entries are sorted,
// owned by root and dated by the base (or SOURCE_DATE_EPOCH); no clock, host name,
// user, umask or order of a directory gets in.
package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// refAnnotation is where an OCI image directory keeps an image's tag
// (OCI image-spec, annotations.md).
const refAnnotation = "org.opencontainers.image.ref.name"

// A Dir names an image in an OCI image directory, written oci:PATH or
// oci:PATH:TAG as skopeo does.
type Dir struct {
	Path string
	Tag  string // empty: the only one
}

// ParseDir reads oci:PATH[:TAG].
func ParseDir(s string) (Dir, error) {
	rest, ok := strings.CutPrefix(s, "oci:")
	if !ok || rest == "" {
		return Dir{}, fmt.Errorf("reading %q: not an OCI image directory; write oci:DIR (get one with: skopeo copy docker://REF oci:DIR)", s)
	}
	d := Dir{Path: rest}
	if i := strings.LastIndexByte(rest, ':'); i > 0 && !strings.ContainsRune(rest[i:], '/') {
		d.Path, d.Tag = rest[:i], rest[i+1:]
	}
	return d, nil
}

func (d Dir) String() string {
	if d.Tag == "" {
		return "oci:" + d.Path
	}
	return "oci:" + d.Path + ":" + d.Tag
}

// Open returns the image that d names. arch is a Go architecture name; an image
// for another one is an error. An empty arch takes any.
func (d Dir) Open(arch string) (v1.Image, error) {
	if err := isLayout(d.Path); err != nil {
		return nil, err
	}
	l, err := layout.FromPath(d.Path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: not an OCI image directory: %w", d, err)
	}
	index, err := l.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", d, err)
	}
	img, err := d.pick(index, arch)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("opening %s: reading the image's configuration: %w", d, err)
	}
	if config.OS != "linux" || (arch != "" && config.Architecture != arch) {
		return nil, fmt.Errorf("opening %s: it is for %s/%s, not for linux/%s; give --arch %s or another image", d, config.OS, config.Architecture, arch, config.Architecture)
	}
	return img, nil
}

// isLayout returns nil if dir is an OCI image directory.
func isLayout(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "oci-layout"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("opening oci:%s: %w", dir, errors.Unwrap(err))
		}
		return fmt.Errorf("opening oci:%s: not an OCI image directory (no file oci-layout in it); make one with: skopeo copy docker://REF oci:DIR", dir)
	}
	if err != nil {
		return fmt.Errorf("opening oci:%s: %w", dir, err)
	}
	var l struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(data, &l); err != nil || !strings.HasPrefix(l.Version, "1.") {
		return fmt.Errorf("opening oci:%s: its oci-layout says version %q; only 1.x is known", dir, l.Version)
	}
	return nil
}

// pick finds the one image in index that has d's tag and arch.
func (d Dir) pick(index v1.ImageIndex, arch string) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", d, err)
	}
	var found []v1.Descriptor
	var tags []string
	for _, desc := range m.Manifests {
		tag := desc.Annotations[refAnnotation]
		tags = append(tags, tag)
		if d.Tag != "" && tag != d.Tag {
			continue
		}
		if arch != "" && desc.MediaType.IsImage() && desc.Platform != nil && desc.Platform.Architecture != "" && desc.Platform.Architecture != arch && len(m.Manifests) > 1 {
			continue
		}
		found = append(found, desc)
	}
	switch {
	case len(found) == 0 && d.Tag != "":
		return nil, fmt.Errorf("opening %s: no image with this tag; there is %s", d, strings.Join(tags, ", "))
	case len(found) == 0:
		return nil, fmt.Errorf("opening %s: no image for linux/%s in it", d, arch)
	case len(found) > 1:
		return nil, fmt.Errorf("opening %s: %d images in it; name one of %s as oci:%s:TAG", d, len(found), strings.Join(tags, ", "), d.Path)
	}
	desc := found[0]
	switch {
	case desc.MediaType.IsIndex():
		child, err := index.ImageIndex(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", d, err)
		}
		return Dir{Path: d.Path}.pick(child, arch)
	case desc.MediaType.IsImage():
		img, err := index.Image(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", d, err)
		}
		if err := d.whole(img, desc.Digest); err != nil {
			return nil, fmt.Errorf("opening %s: %w", d, err)
		}
		return img, nil
	}
	return nil, fmt.Errorf("opening %s: it holds %s, not an image", d, desc.MediaType)
}

// whole returns an error if the manifest or the configuration of img is not what its
// name says, for the directory's reader takes them as they are. Layers are compared
// where they are read.
func (d Dir) whole(img v1.Image, digest v1.Hash) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	for _, b := range []struct {
		what string
		name v1.Hash
		data []byte
	}{{"manifest", digest, manifest}, {"configuration", m.Config.Digest, config}} {
		if got := sha(b.data); got != b.name.Hex {
			return fmt.Errorf("the image's %s %s is damaged or was changed: its content is sha256:%s; delete this file and fetch the image again", b.what, filepath.Join(d.Path, "blobs", "sha256", b.name.Hex), got)
		}
	}
	return nil
}

// clean makes the name of a tar entry a path relative to the root: "usr/bin/x".
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
