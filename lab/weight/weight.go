// Package weight measures what an update costs a client: the bytes that real
// clients fetch for a typical change, against the compressed content that changed,
// and against the same image with everything of ours in one layer.
package weight

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/overlay"
)

const (
	// Ratio is how much more than the compressed changed content an update may
	// weigh.
	Ratio = 1.2
	// Envelope is what it may weigh besides, whatever changed: the manifest and
	// the configuration name every layer of the base (some 100 bytes each, 128
	// layers), and a small file shares its layer with other small files. A layer
	// for each would cost more than it saves: clients bear 128 (bootc before 1.9).
	Envelope = 64 << 10
)

// Change is one typical change.
type Change struct {
	Name string
	// Overlay changes a copy of the overlay directory, Programs the programs;
	// either may be nil.
	Overlay  func(dir string) error
	Programs func(overlay.Tree) overlay.Tree
}

// Row is one line of the table. All sizes are in bytes.
type Row struct {
	Change string `json:"change"`
	Client string `json:"client"`
	// Ideal is the content of all files that changed, compressed as the layers
	// are.
	Ideal int64 `json:"ideal"`
	// Pulled is what the client fetched, manifest and configuration included.
	Pulled int64 `json:"pulled"`
	// OneLayer is what it fetched of the same image with our layers made one.
	OneLayer int64 `json:"one_layer"`
}

// Ratio is Pulled by Ideal.
func (r Row) Ratio() float64 { return float64(r.Pulled) / float64(r.Ideal) }

// Check returns an error if the update weighs more than it may.
func (r Row) Check() error {
	if limit := Ratio*float64(r.Ideal) + Envelope; float64(r.Pulled) > limit {
		return fmt.Errorf("%s, by %s: %d bytes fetched for %d that changed; at most %.0f are allowed", r.Change, r.Client, r.Pulled, r.Ideal, limit)
	}
	return nil
}

// Table is rows as text.
func Table(rows []Row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-24s %-10s %12s %12s %8s %14s\n", "change", "client", "ideal", "fetched", "ratio", "in one layer")
	for _, r := range rows {
		fmt.Fprintf(&b, "%-24s %-10s %12d %12d %8.2f %14d\n", r.Change, r.Client, r.Ideal, r.Pulled, r.Ratio(), r.OneLayer)
	}
	return b.String()
}

// Client is a program that fetches images and keeps what it has.
type Client interface {
	Name() string
	// Fresh forgets everything.
	Fresh() error
	// Pull fetches the image at host/repository:tag, over HTTP.
	Pull(ctx context.Context, ref string) error
}

// Measure builds the image of o before and after each change and lets each client,
// which has the old one, fetch the new one. scratch is a directory for what that
// takes; o.Overlay, o.Out and o.Version are set here, source is the overlay
// directory.
func Measure(ctx context.Context, o image.Options, source, scratch string, changes []Change, clients []Client) ([]Row, error) {
	reg := newRegistry()
	defer reg.close()
	m := &measure{options: o, source: source, scratch: scratch, registry: reg}
	before, err := m.build(ctx, "before", Change{})
	if err != nil {
		return nil, err
	}
	var after []string
	var ideal []int64
	for i, c := range changes {
		tag, err := m.build(ctx, fmt.Sprintf("after-%d", i), c)
		if err != nil {
			return nil, err
		}
		size, err := m.ideal(ctx, before, tag)
		if err != nil {
			return nil, err
		}
		after, ideal = append(after, tag), append(ideal, size)
	}
	var rows []Row
	for _, client := range clients {
		if err := client.Fresh(); err != nil {
			return nil, err
		}
		// What a client keeps of one change serves no other: each has its version.
		for _, tag := range []string{before, before + oneLayer} {
			if _, err := m.pull(ctx, client, tag); err != nil {
				return nil, err
			}
		}
		for i, c := range changes {
			r := Row{Change: c.Name, Client: client.Name(), Ideal: ideal[i]}
			if r.Pulled, err = m.pull(ctx, client, after[i]); err != nil {
				return nil, err
			}
			if r.OneLayer, err = m.pull(ctx, client, after[i]+oneLayer); err != nil {
				return nil, err
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// oneLayer ends the tag of an image whose layers were made one.
const oneLayer = "-one-layer"

type measure struct {
	options         image.Options
	source, scratch string
	registry        *registry
}

// build makes the image with a change and pushes it under tag, and once more with
// one layer.
func (m *measure) build(ctx context.Context, tag string, c Change) (string, error) {
	o := m.options
	dir := filepath.Join(m.scratch, tag+"-overlay")
	if err := copyFiles(m.source, dir); err != nil {
		return "", fmt.Errorf("copying the overlay: %w", err)
	}
	if c.Overlay != nil {
		if err := c.Overlay(dir); err != nil {
			return "", fmt.Errorf("making the change %q: %w", c.Name, err)
		}
	}
	o.Overlay = os.DirFS(dir)
	if c.Programs != nil {
		programs := o.Programs
		o.Programs = func(ctx context.Context) (overlay.Tree, error) {
			t, err := programs(ctx)
			if err != nil {
				return nil, err
			}
			return c.Programs(t), nil
		}
	}
	o.Out = image.Dir{Path: filepath.Join(m.scratch, tag)}
	o.Version = "44." + tag // every real update has a version of its own
	if _, err := image.Build(ctx, o); err != nil {
		return "", err
	}
	if _, err := image.Push(ctx, o.Out, m.registry.ref(tag), nil); err != nil {
		return "", err
	}
	single := image.Dir{Path: filepath.Join(m.scratch, tag+oneLayer)}
	if err := merge(o.Base, o.Out, single.Path); err != nil {
		return "", fmt.Errorf("making one layer of ours: %w", err)
	}
	if _, err := image.Push(ctx, single, m.registry.ref(tag+oneLayer), nil); err != nil {
		return "", err
	}
	return tag, nil
}

// pull returns what client fetches for the image at tag.
func (m *measure) pull(ctx context.Context, client Client, tag string) (int64, error) {
	had := m.registry.sent.Load()
	if err := client.Pull(ctx, m.registry.ref(tag)); err != nil {
		return 0, err
	}
	return m.registry.sent.Load() - had, nil
}

// ideal is the compressed size of the files that differ.
func (m *measure) ideal(ctx context.Context, before, after string) (int64, error) {
	ref := func(tag string) string { return image.Dir{Path: filepath.Join(m.scratch, tag)}.String() }
	d, err := image.Compare(ctx, ref(before), ref(after), "", m.options.Cache)
	if err != nil {
		return 0, err
	}
	var changed []string
	for _, f := range d.Files {
		if f.Kind != image.Removed {
			changed = append(changed, strings.TrimPrefix(f.Path, "/"))
		}
	}
	img, err := image.Open(ctx, ref(after), "")
	if err != nil {
		return 0, err
	}
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	var size counter
	zw, err := gzip.NewWriterLevel(&size, gzip.DefaultCompression)
	if err != nil {
		return 0, err
	}
	// Ours lie on top: from the last layer down, the first hit is what counts.
	for _, l := range slices.Backward(layers) {
		if len(changed) == 0 {
			break
		}
		err := entries(l, func(h *tar.Header, r io.Reader) error {
			i := slices.Index(changed, strings.TrimSuffix(h.Name, "/"))
			if i < 0 || h.Typeflag == tar.TypeDir {
				return nil
			}
			changed = slices.Delete(changed, i, i+1)
			_, err := io.Copy(zw, r)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	if err := zw.Close(); err != nil {
		return 0, err
	}
	return int64(size), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// entries calls f for each entry of a layer.
func entries(l v1.Layer, f func(*tar.Header, io.Reader) error) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	tr := tar.NewReader(rc)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(h, tr); err != nil {
			return err
		}
	}
}

// merge writes to dir the image at from with the layers that it has over base made
// one.
func merge(base, from image.Dir, dir string) error {
	under, err := base.Open("")
	if err != nil {
		return err
	}
	img, err := from.Open("")
	if err != nil {
		return err
	}
	below, err := under.Layers()
	if err != nil {
		return err
	}
	all, err := img.Layers()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	seen := map[string]bool{}
	for _, l := range all[len(below):] {
		err := entries(l, func(h *tar.Header, r io.Reader) error {
			if seen[h.Name] {
				return nil // a directory that several layers have
			}
			seen[h.Name] = true
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			_, err := io.Copy(tw, r)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	one, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(out.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	merged, err := mutate.Append(under, mutate.Addendum{Layer: one, History: v1.History{CreatedBy: "lab"}, MediaType: types.OCILayer})
	if err != nil {
		return err
	}
	had, err := merged.ConfigFile()
	if err != nil {
		return err
	}
	had = had.DeepCopy()
	had.Config = config.Config
	if merged, err = mutate.ConfigFile(merged, had); err != nil {
		return err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return l.AppendImage(merged)
}

// copyFiles copies the regular files of a directory. Links weigh nothing, and may
// lead into a base that is not there.
func copyFiles(from, to string) error {
	return filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		at := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		return os.WriteFile(at, data, info.Mode().Perm())
	})
}
