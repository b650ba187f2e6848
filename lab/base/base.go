// Package base makes the lab base: the image that stands in for secureblue's
// Kinoite, which cannot be had without its registry.
//
// It is a Debian root, brought into the shape of an ostree commit, committed
// and encapsulated as an OCI image by the same code that makes Fedora's. What
// our recipe has to undo or survive in secureblue is there under secureblue's
// own paths (see files/ and Traps), so that undoing it is tested.
package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

const (
	// version of what Build makes; raise it when the code changes that.
	version = "2"

	// release is the base's own version, in its labels and commit.
	release = "13.lab.1"

	// timestamp of the commit and of everything in it that has one: a fixed
	// day, so that equal inputs give equal images.
	timestamp = "2026-01-01T00:00:00Z"

	// branch of the commit, in the repository that exists only during a build.
	branch = "lab/base"

	// ociName is the image's directory in its artefact.
	ociName = "oci"
)

// Spec is what a base is made of, other than the files of this package.
type Spec struct {
	Tools string // root of debian.Tools
	Root  string // root of debian.Base
	Bootc string // binary of bootc.Build

	// Tailscaled and Tailscale are static binaries for the machine. The base
	// has them as Fedora's package has: in /usr/sbin and /usr/bin, with a unit,
	// not enabled.
	Tailscaled, Tailscale string

	// WebCA is a PEM certificate that the base trusts: the stand-in for the
	// public web's authorities, which issue for the lab's names too.
	WebCA []byte
}

// Image is a base in the cache.
type Image struct {
	// Dir is an OCI layout with one image.
	Dir string
	// Digest of its manifest, sha256:...
	Digest string
}

// Build returns the image, making it if the cache has none.
func Build(ctx context.Context, c *cache.Cache, s Spec, log io.Writer) (*Image, error) {
	inputs := cache.NewInputs(version).String(release, timestamp).
		String(artefact(s.Tools), artefact(s.Root)).
		File(s.Bootc).File(s.Tailscaled).File(s.Tailscale).Bytes(s.WebCA)
	if err := addFiles(inputs); err != nil {
		return nil, err
	}
	dir, err := c.Get(ctx, "base", inputs, func(ctx context.Context, dir string) error {
		return build(ctx, dir, s, log)
	})
	if err != nil {
		return nil, err
	}
	return open(filepath.Join(dir, ociName))
}

// artefact is the part of a root's path that names its content.
func artefact(root string) string { return filepath.Base(filepath.Dir(root)) }

func open(dir string) (*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the base: %w", err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("opening the base: %w", err)
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("opening the base: %s has %d images, want one", dir, len(m.Manifests))
	}
	return &Image{Dir: dir, Digest: m.Manifests[0].Digest.String()}, nil
}

func build(ctx context.Context, dir string, s Spec, log io.Writer) (err error) {
	// All that is scratch goes here, and goes away.
	scratch := filepath.Join(dir, "scratch")
	defer func() {
		if err == nil {
			err = cache.RemoveTree(scratch)
		}
	}()

	// Twice the same tree: first to run programs in, then bare, because ostree
	// must not see what is mounted in /proc, /dev and /sys.
	changes := filepath.Join(scratch, "base")
	root, err := sandbox.Overlay(s.Root, changes)
	if err != nil {
		return err
	}
	if err := errors.Join(configure(ctx, root, s, log), root.Close()); err != nil {
		return err
	}
	tree, err := sandbox.Layer(s.Root, changes)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := shape(ctx, tree, log); err != nil {
		return err
	}

	tools, err := sandbox.Overlay(s.Tools, filepath.Join(scratch, "tools"))
	if err != nil {
		return err
	}
	defer tools.Close()
	if err := bootc.Install(tools, s.Bootc); err != nil {
		return err
	}
	if err := tools.Share(dir); err != nil { // with the tree mounted in it
		return err
	}
	return encapsulate(ctx, tools, tree.Dir(), scratch, filepath.Join(dir, ociName), log)
}
