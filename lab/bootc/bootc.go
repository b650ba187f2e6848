// Package bootc builds the lab's stand-in for bootc, the Rust program beside
// this file, which is also ostree's container extension.
package bootc

import (
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

//go:embed Cargo.toml Cargo.lock src/*.rs
var source embed.FS

const (
	// version of what Build makes of the source.
	version = "1"

	// ExtensionPath is where libostree looks for `ostree container`.
	ExtensionPath = "/usr/libexec/libostree/ext/ostree-container"

	// Path is where an image has bootc.
	Path = "/usr/bin/bootc"
)

// Build compiles the program with the machine's cargo, from the committed lock
// file, and returns the path of the binary. The compiled dependencies stay in
// the cache too: a change to our part costs under a minute, not six.
func Build(ctx context.Context, c *cache.Cache, log io.Writer) (string, error) {
	inputs := cache.NewInputs(version)
	err := fs.WalkDir(source, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := source.ReadFile(path)
		inputs.String(path).Bytes(b)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading bootc's source: %w", err)
	}
	dir, err := c.Get(ctx, "bootc", inputs, func(ctx context.Context, dir string) error {
		// Beside the artefacts, and always at the same place: cargo knows a
		// package by its path.
		work := filepath.Join(c.Dir, "cargo")
		return build(ctx, filepath.Join(work, "source"), filepath.Join(work, "target"), filepath.Join(dir, "bootc"), log)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bootc"), nil
}

func build(ctx context.Context, src, target, binary string, log io.Writer) error {
	if err := os.RemoveAll(src); err != nil {
		return fmt.Errorf("clearing bootc's source: %w", err)
	}
	if err := os.CopyFS(src, source); err != nil {
		return fmt.Errorf("laying out bootc's source: %w", err)
	}
	cmd := exec.CommandContext(ctx, "cargo", "build", "--release", "--locked", "--color=never")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CARGO_TARGET_DIR="+target)
	sandbox.Gentle(cmd)
	if err := sandbox.RunLogged(ctx, cmd, log); err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(target, "release", "bootc"))
	if err != nil {
		return fmt.Errorf("taking bootc: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(binary, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("taking bootc: %w", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("taking bootc: %w", err)
	}
	return out.Close()
}

// Install gives a root `ostree container`.
func Install(root *sandbox.Root, binary string) error {
	return root.Bind(binary, ExtensionPath)
}
