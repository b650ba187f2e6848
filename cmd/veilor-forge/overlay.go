package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/overlay"
	"golang.org/x/sys/unix"
)

// programs says where the image's programs come from.
type programs struct {
	dir, cache, arch string
}

func (p *programs) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.dir, "programs", "", "take the programs from this `directory` instead of compiling them")
	c.Flags().StringVar(&p.cache, "cache", "", "`directory` that outlives builds (default: veilor-forge in the user's cache)")
	c.Flags().StringVar(&p.arch, "arch", "amd64", "architecture of the image: amd64 or arm64")
}

// complete checks the flags.
func (p *programs) complete() (err error) {
	if p.arch, err = image.GoArch(p.arch); err != nil {
		return usageError{err}
	}
	if p.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return usageError{fmt.Errorf("finding a cache: %w; name one with --cache DIR", err)}
		}
		p.cache = filepath.Join(dir, "veilor-forge")
	}
	p.cache, err = filepath.Abs(p.cache)
	return err
}

func (p *programs) build(ctx context.Context, source string) (overlay.Tree, error) {
	if p.dir != "" {
		return overlay.ReadPrograms(p.dir)
	}
	return overlay.BuildPrograms(ctx, source, filepath.Join(p.cache, "programs", p.arch), p.arch)
}

func overlayRender() *cobra.Command {
	var at checkout
	var progs programs
	var out, base string
	c := &cobra.Command{
		Use:   "render",
		Short: "Write the files and scripts that BlueBuild copies into the image",
		Long: `render writes DIR/system, which the recipe's files module copies into the image,
and DIR/scripts, which its script module runs. It is the same tree that
"image build" puts into an image. DIR is replaced as a whole.`,
		Example: `  veilor-forge overlay render
  veilor-forge overlay render --site site/veilor.yaml --out bluebuild/files`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := at.find(); err != nil {
				return err
			}
			if err := progs.complete(); err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(at.source, "bluebuild", "files")
			}
			s, err := at.load()
			if err != nil {
				return err
			}
			src := os.DirFS(filepath.Join(at.source, "overlay"))
			tree, err := overlay.Render(src, s)
			if err != nil {
				return err
			}
			undo, err := overlay.LoadUndo(src)
			if err != nil {
				return err
			}
			has, err := baseHas(c.Context(), base, progs)
			if err != nil {
				return err
			}
			built, err := progs.build(c.Context(), at.source)
			if err != nil {
				return err
			}
			if tree, err = tree.Join(built...); err != nil {
				return err
			}
			if err := tree.Check(has); err != nil {
				return err
			}
			scripts, err := overlay.Scripts(src, undo, tree)
			if err != nil {
				return err
			}
			if err := writeRendered(out, tree, scripts); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d files, %d scripts\n", out, len(tree), len(scripts))
			return nil
		},
	}
	at.flags(c)
	progs.flags(c)
	c.Flags().StringVar(&out, "out", "", "`directory` to write (default: bluebuild/files in the sources)")
	c.Flags().StringVar(&base, "base", "", "base image, oci:`DIR`, to check links into it")
	return c
}

// baseHas returns what says whether the base has a path; nil without a base.
func baseHas(ctx context.Context, base string, p programs) (func(string) bool, error) {
	if base == "" {
		return nil, nil
	}
	d, err := image.ParseDir(base)
	if err != nil {
		return nil, usageError{err}
	}
	b, err := image.OpenBase(ctx, d, p.arch, p.cache)
	if err != nil {
		return nil, err
	}
	return b.Has, nil
}

// Directories in the rendered one, as the recipe's modules know them.
const (
	systemDir  = "system"
	scriptsDir = "scripts"
)

// writeRendered replaces out as a whole. An existing out must be of an earlier
// run.
func writeRendered(out string, system, scripts overlay.Tree) (err error) {
	entries, err := os.ReadDir(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	for _, e := range entries {
		if e.Name() != systemDir && e.Name() != scriptsDir {
			return fmt.Errorf("writing the overlay: %s has other things in it (%s), and it is replaced as a whole; name a new directory with --out", out, e.Name())
		}
	}
	if out, err = filepath.Abs(out); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	tmp, free, err := image.WorkDir(out)
	if err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp), free()) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	for name, tree := range map[string]overlay.Tree{systemDir: system, scriptsDir: scripts} {
		dir := filepath.Join(tmp, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("writing the overlay: %w", err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			return fmt.Errorf("writing the overlay: %w", err)
		}
		if err := tree.Write(dir); err != nil {
			return err
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, out, unix.RENAME_EXCHANGE); err == nil {
		return nil
	}
	// Nothing there yet, or a file system that cannot exchange.
	if err := os.RemoveAll(out); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	if err := os.Rename(tmp, out); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	return nil
}
