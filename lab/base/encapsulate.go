package base

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/veilor/veilor-os/lab/sandbox"
)

// TwinPath is the second copy of a file of /etc that secureblue's images carry
// under /usr/etc. A commit has nothing but /usr/etc, and its image nothing but
// /etc, so the twin can only come as a layer after the commit's.
const TwinPath = "usr/etc/systemd/user/plasma-kwin_wayland.service.d/override.conf"

// encapsulate commits the tree and writes it to oci as an image whose layers
// follow the parts of the system, with the twin as one more layer.
func encapsulate(ctx context.Context, tools *sandbox.Root, tree, scratch, oci string, log io.Writer) error {
	repo := filepath.Join(scratch, "repo")
	run := func(args ...string) error { return tools.Run(ctx, log, nil, "ostree", args...) }
	if err := run("init", "--repo="+repo, "--mode=bare"); err != nil {
		return err
	}
	err := run("commit", "--repo="+repo, "--branch="+branch, "--bootable", "--no-bindings",
		"--subject=lab base "+release, "--timestamp="+timestamp,
		"--add-metadata-string=version="+release, "--tree=dir="+tree)
	if err != nil {
		return err
	}
	listing, err := tools.Output(ctx, log, "ostree", "ls", "--repo="+repo, "-R", "-C", branch)
	if err != nil {
		return err
	}
	meta, err := contentMeta(listing)
	if err != nil {
		return err
	}
	metaFile := filepath.Join(scratch, "contentmeta.json")
	if err := os.WriteFile(metaFile, meta, 0o644); err != nil {
		return fmt.Errorf("writing the map of layers: %w", err)
	}
	if err := run("container", "encapsulate", "--repo="+repo, "--contentmeta="+metaFile, branch, "oci:"+oci); err != nil {
		return err
	}
	return addTwin(oci)
}

// groups are the layers of the image, by path: what changes together is
// fetched together. The first that fits is taken.
var groups = []struct{ prefix, layer string }{
	{"/usr/lib/modules", "kernel"},
	{"/usr/lib/x86_64-linux-gnu", "libraries"},
	{"/usr/lib", "system"},
	{"/usr/bin", "programs"},
	{"/usr/sbin", "programs"},
	{"/usr/libexec", "programs"},
	{"/usr/share", "data"},
	{"", "rest"},
}

func layerOf(path string) string {
	for _, g := range groups {
		if g.prefix == "" || strings.HasPrefix(path, g.prefix+"/") {
			return g.layer
		}
	}
	panic("unreachable: the last group takes everything")
}

// contentMeta turns the output of `ostree ls -R -C` into the file that
// `ostree container encapsulate --contentmeta` reads (ostree-ext 0.15,
// src/cli.rs): object checksum to layer. Objects are shared between equal files,
// so the first path decides.
func contentMeta(listing string) ([]byte, error) {
	meta := struct {
		Version int               `json:"version"`
		Created string            `json:"created"`
		Labels  map[string]string `json:"labels"`
		Layers  map[string]string `json:"layers"`
		Mapping map[string]string `json:"mapping"`
	}{
		Version: 1, Created: timestamp,
		// What tells bootc that it may run this.
		Labels: map[string]string{"containers.bootc": "1", "org.opencontainers.image.version": release},
		Layers: map[string]string{}, Mapping: map[string]string{},
	}
	for _, line := range strings.Split(listing, "\n") {
		// mode uid gid size checksum path; a directory has two checksums, a
		// link an arrow after its path.
		f := strings.Fields(line)
		if len(f) < 6 || (f[0][0] != '-' && f[0][0] != 'l') {
			continue
		}
		sum, name := f[4], f[5]
		if len(sum) != 64 || !strings.HasPrefix(name, "/") {
			return nil, fmt.Errorf("reading the list of the commit: cannot understand %q", line)
		}
		if _, seen := meta.Mapping[sum]; seen {
			continue
		}
		layer := layerOf(name)
		meta.Mapping[sum] = layer
		meta.Layers[layer] = layer
	}
	if len(meta.Mapping) == 0 {
		return nil, fmt.Errorf("reading the list of the commit: no files in it")
	}
	return json.Marshal(meta)
}

// addTwin appends the layer with the twin to the one image in the layout.
func addTwin(oci string) error {
	twin, err := files.ReadFile("files/" + strings.TrimPrefix(TwinPath, "usr/"))
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	l, err := layout.FromPath(oci)
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	base, err := open(oci)
	if err != nil {
		return err
	}
	digest, err := v1.NewHash(base.Digest)
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	img, err := l.Image(digest)
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	layer, err := fileLayer(TwinPath, twin)
	if err != nil {
		return err
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: epoch()}, CreatedBy: "lab base", Comment: "twin of /etc under /usr/etc"},
	})
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	if img, err = fixedTimes(img); err != nil {
		return err
	}
	if err := l.ReplaceImage(img, match.Digests(digest)); err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	// layout leaves it to the owner alone; the base is for whoever builds on it.
	added, err := layer.Digest()
	if err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	if err := os.Chmod(filepath.Join(oci, "blobs", added.Algorithm, added.Hex), 0o644); err != nil {
		return fmt.Errorf("adding the twin of /etc: %w", err)
	}
	// The manifest without the twin is of no use to anyone.
	return l.RemoveBlob(digest)
}

// fixedTimes takes the clock out of the image's history: equal commits shall be
// equal images.
func fixedTimes(img v1.Image) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the base's configuration: %w", err)
	}
	config = config.DeepCopy()
	for i := range config.History {
		config.History[i].Created = v1.Time{Time: epoch()}
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, fmt.Errorf("writing the base's configuration: %w", err)
	}
	return img, nil
}

// fileLayer is a layer with one file and the directories above it.
func fileLayer(name string, content []byte) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var dirs []string
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		dirs = append([]string{d}, dirs...)
	}
	for _, d := range dirs {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: epoch()}); err != nil {
			return nil, fmt.Errorf("writing a layer: %w", err)
		}
	}
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: epoch()})
	if err != nil {
		return nil, fmt.Errorf("writing a layer: %w", err)
	}
	if _, err := w.Write(content); err != nil {
		return nil, fmt.Errorf("writing a layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("writing a layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

func epoch() time.Time {
	t, err := time.Parse(time.RFC3339, timestamp)
	if err != nil {
		panic(err) // a constant
	}
	return t
}
