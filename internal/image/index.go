package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/renameio/v2"
)

const (
	// maxRead bounds a file of the base that a build looks into. Units, policies
	// and os-release have some KiB, CA bundles some hundred.
	maxRead = 4 << 20
	// maxLinks bounds chains of symbolic links, as the kernel does (40) but
	// lower: nothing that a build asks for has more than two.
	maxLinks = 8
	// indexVersion changes with the form of the cached index.
	indexVersion = "2"
	// whiteout begins the name of an entry that removes the rest of the name
	// (OCI image-spec, layer.md).
	whiteout = ".wh."
	// objects is where an ostree-encapsulated image has its contents; its paths
	// are hard links to them (ostree-ext, tar/export.rs).
	objects = "sysroot/ostree/repo/"
)

// node is one entry of a layer's tar.
type node struct {
	Name string
	Type byte   // as in tar
	Mode int64  // permission bits
	Link string // of hard and symbolic links
	Size int64
	Sum  [sha256.Size]byte // of a regular file's content
}

// file is what the base has at a path, seen through all its layers.
type file struct {
	typ   byte // tar.TypeReg, TypeSymlink or TypeDir
	mode  int64
	link  string // target of a symbolic link
	layer int    // where the content is …
	name  string // … and under which name
	size  int64
	sum   [sha256.Size]byte // of a regular file's content
}

// Base is a base image with the index of its files.
type Base struct {
	Image  v1.Image
	Config *v1.ConfigFile
	Digest v1.Hash

	layers []v1.Layer
	files  map[string]file
	cache  string
}

// OpenBase opens the image that d names and indexes its files. Indexes and what
// was read of layers are kept in the directory cache by the layer's digest, so
// that a second build does not read the layers again.
func OpenBase(ctx context.Context, d Dir, arch, cache string) (*Base, error) {
	img, err := d.Open(arch)
	if err != nil {
		return nil, err
	}
	return index(ctx, img, d.String(), cache)
}

// index reads the file lists of img, which errors call name.
func index(ctx context.Context, img v1.Image, name, cache string) (*Base, error) {
	b := &Base{Image: img, files: map[string]file{}, cache: cache}
	var err error
	if b.Config, err = img.ConfigFile(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if b.Digest, err = img.Digest(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if b.layers, err = img.Layers(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if n := len(b.Config.RootFS.DiffIDs); n != len(b.layers) {
		return nil, fmt.Errorf("opening %s: its configuration knows %d layers, its manifest %d; fetch it again", name, n, len(b.layers))
	}
	for i := range b.layers {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("indexing %s: %w", name, err)
		}
		nodes, err := b.nodes(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("indexing %s: layer %d of %d: %w", name, i+1, len(b.layers), err)
		}
		b.merge(i, nodes)
	}
	return b, nil
}

// merge puts one layer on top.
func (b *Base) merge(layer int, nodes []node) {
	for _, n := range nodes {
		dir, base := path.Split(n.Name)
		if hidden, ok := strings.CutPrefix(base, whiteout); ok {
			if base == whiteout+whiteout+".opq" {
				b.drop(path.Clean(dir), false)
			} else {
				b.drop(dir+hidden, true)
			}
			continue
		}
		f := file{typ: n.Type, mode: n.Mode, link: n.Link, layer: layer, name: n.Name, size: n.Size, sum: n.Sum}
		switch n.Type {
		case tar.TypeLink:
			target, ok := b.files[n.Link]
			if !ok {
				continue // to something that is no file of the image
			}
			f = target
		case tar.TypeReg, tar.TypeSymlink, tar.TypeDir:
		default:
			continue
		}
		b.files[n.Name] = f
	}
}

// drop removes p and what is below it; with self false only what is below.
func (b *Base) drop(p string, self bool) {
	if self {
		delete(b.files, p)
	}
	for q := range b.files {
		if strings.HasPrefix(q, p+"/") {
			delete(b.files, q)
		}
	}
}

// nodes returns the entries of a layer, from the cache if it has them.
func (b *Base) nodes(ctx context.Context, layer int) ([]node, error) {
	digest, err := b.layers[layer].Digest()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(b.cache, "index", indexVersion+"-"+digest.Hex)
	if body, ok := kept(name); ok {
		var nodes []node
		if gob.NewDecoder(bytes.NewReader(body)).Decode(&nodes) == nil {
			return nodes, nil
		}
	}
	nodes := []node{}
	sum := sha256.New()
	err = b.walk(ctx, layer, func(h *tar.Header, r io.Reader) error {
		n := node{Name: clean(h.Name), Type: h.Typeflag, Mode: h.Mode & 0o7777, Link: h.Linkname, Size: h.Size}
		if n.Type == tar.TypeLink {
			n.Link = clean(n.Link)
		}
		if strings.HasPrefix(n.Name, objects) && (n.Type == tar.TypeDir || !strings.HasSuffix(n.Name, ".file")) {
			return nil // ostree's own metadata
		}
		if n.Type == tar.TypeReg {
			sum.Reset()
			if _, err := io.Copy(sum, r); err != nil {
				return fmt.Errorf("reading the layer: %w; fetch the image again", err)
			}
			sum.Sum(n.Sum[:0])
		}
		nodes = append(nodes, n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(nodes); err != nil {
		return nil, err
	}
	return nodes, keepSummed(name, body.Bytes())
}

// walk calls f for each entry of a layer and checks that what was read is what
// the image's configuration says. f may stop early with [io.EOF], then nothing is checked.
func (b *Base) walk(ctx context.Context, layer int, f func(*tar.Header, io.Reader) error) error {
	l := b.layers[layer]
	// The layer's own DiffID would be computed of what is there.
	want := b.Config.RootFS.DiffIDs[layer]
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	sum := sha256.New()
	r := io.TeeReader(rc, sum)
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the layer: %w; fetch the image again", err)
		}
		if err := f(h, tr); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("reading the layer: %w; fetch the image again", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("reading the layer: its content is sha256:%s, the image says %s; fetch the image again", got, want)
	}
	return nil
}

// find returns what the base has at p, which is relative to the root. A path
// below etc is also looked for below usr/etc, where an ostree image may keep it.
// at is where it was found.
func (b *Base) find(p string) (f file, at string, ok bool) {
	if f, ok = b.files[p]; ok {
		return f, p, true
	}
	if strings.HasPrefix(p, "etc/") {
		f, ok = b.files["usr/"+p]
		return f, "usr/" + p, ok
	}
	return file{}, "", false
}

// Has says whether the base has something at the absolute or relative path p.
func (b *Base) Has(p string) bool {
	_, _, ok := b.find(clean(p))
	return ok
}

// Lstat returns the type and permission bits of what the base has at p, a link's
// target, and the SHA-256 of a regular file's content. Links are not followed.
func (b *Base) Lstat(p string) (mode fs.FileMode, link string, sum [sha256.Size]byte, ok bool) {
	f, _, ok := b.find(clean(p))
	mode = fs.FileMode(f.mode).Perm()
	switch f.typ {
	case tar.TypeSymlink:
		mode |= fs.ModeSymlink
	case tar.TypeDir:
		mode |= fs.ModeDir
	}
	return mode, f.link, f.sum, ok
}

// resolve follows symbolic links from p to a regular file.
func (b *Base) resolve(p string) (file, error) {
	p = clean(p)
	for range maxLinks {
		f, _, ok := b.find(p)
		switch {
		case !ok:
			return file{}, fs.ErrNotExist
		case f.typ == tar.TypeReg:
			return f, nil
		case f.typ == tar.TypeDir:
			return file{}, errors.New("it is a directory")
		case path.IsAbs(f.link):
			p = clean(f.link)
		default:
			p = clean(path.Join(path.Dir(p), f.link))
		}
	}
	return file{}, errors.New("too many levels of symbolic links")
}

// Read returns the content of the regular file at p, following links;
// [fs.ErrNotExist] if there is none.
func (b *Base) Read(ctx context.Context, p string) ([]byte, error) {
	f, err := b.resolve(p)
	if err != nil {
		return nil, err
	}
	name, err := b.content(f)
	if err != nil {
		return nil, err
	}
	if data, ok := kept(name); ok {
		return data, nil
	}
	if err := b.fetch(ctx, f.layer, map[string]string{f.name: name}); err != nil {
		return nil, err
	}
	data, ok := kept(name)
	if !ok {
		return nil, fmt.Errorf("reading the cache: %s is not what was written there just now; give another directory with --cache", name)
	}
	return data, nil
}

// Prefetch reads what exists of paths with one pass per layer, so that many
// calls of Read cost no more than one.
func (b *Base) Prefetch(ctx context.Context, paths []string) error {
	byLayer := map[int]map[string]string{}
	for _, p := range paths {
		f, err := b.resolve(p)
		if err != nil {
			continue
		}
		name, err := b.content(f)
		if err != nil {
			return err
		}
		if _, ok := kept(name); ok {
			continue
		}
		if byLayer[f.layer] == nil {
			byLayer[f.layer] = map[string]string{}
		}
		byLayer[f.layer][f.name] = name
	}
	for layer, names := range byLayer {
		if err := b.fetch(ctx, layer, names); err != nil {
			return err
		}
	}
	return nil
}

// content is the cache file for the content of f.
func (b *Base) content(f file) (string, error) {
	digest, err := b.layers[f.layer].Digest()
	if err != nil {
		return "", err
	}
	return filepath.Join(b.cache, "content-2", digest.Hex, sha([]byte(f.name))), nil
}

// fetch reads the entries of a layer that names has, into the files it gives.
func (b *Base) fetch(ctx context.Context, layer int, names map[string]string) error {
	left := len(names)
	return b.walk(ctx, layer, func(h *tar.Header, r io.Reader) error {
		name, ok := names[clean(h.Name)]
		if !ok || h.Typeflag != tar.TypeReg {
			return nil
		}
		if h.Size > maxRead {
			return fmt.Errorf("reading the base: %s has %d bytes, more than the %d that a build looks into", h.Name, h.Size, maxRead)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := keepSummed(name, data); err != nil {
			return err
		}
		if left--; left == 0 {
			return io.EOF
		}
		return nil
	})
}

// keepSummed writes a file of the cache with its checksum in front, kept reads it
// again. A file that was cut short or changed is as if it were not there.
func keepSummed(name string, data []byte) error {
	return keep(name, append([]byte(sha(data)+"\n"), data...))
}

func kept(name string) ([]byte, bool) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, false
	}
	sum, body, ok := bytes.Cut(data, []byte("\n"))
	return body, ok && string(sum) == sha(body)
}

// keep writes a file of the cache, whole or not at all.
func keep(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("writing the cache: %w", err)
	}
	if err := renameio.WriteFile(name, data, 0o644); err != nil {
		return fmt.Errorf("writing the cache: %w", err)
	}
	return nil
}

func sha(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
