package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/recipe"
)

// recipeName is the recipe in the sources.
var recipeName = filepath.Join("bluebuild", "recipes", "recipe.yml")

func imageLock() *cobra.Command {
	var at checkout
	var from string
	var asJSON bool
	c := &cobra.Command{
		Use:   "lock",
		Short: "Pin the base image: ask its registry for the digest, and write it down",
		Long: `lock asks the registry which image the recipe's base-image and image-version name
now, and writes its digest into ` + recipe.LockPath + `, from which GitHub builds. A
lock that says the same already is left as it is.

It does not ask who built that image: the workflow that proposes a newer base every
day verifies its provenance first, and by hand you do that with:
  slsa-verifier verify-image IMAGE@DIGEST --source-uri github.com/secureblue/secureblue`,
		Example: `  veilor-forge image lock
  veilor-forge image lock --from 127.0.0.1:5000/kinoite-main-hardened:44`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := at.find(); err != nil {
				return err
			}
			s, err := at.load()
			if err != nil {
				return err
			}
			r, err := recipe.Load(filepath.Join(at.source, recipeName))
			if err != nil {
				return err
			}
			if err := r.Agree(s); err != nil {
				return err
			}
			if from == "" {
				from = fmt.Sprintf("%s:%d", s.Image.Base, s.OS.Release)
			}
			found, err := image.Resolve(c.Context(), from)
			if err != nil {
				return err
			}
			l := &recipe.Lock{Image: s.Image.Base, Release: s.OS.Release, Digest: found.Digest.String(), Date: time.Now().UTC().Format(time.DateOnly)}
			for arch, digest := range found.Platforms {
				if l.Platforms == nil {
					l.Platforms = map[string]string{}
				}
				l.Platforms[arch] = digest.String()
			}
			file := filepath.Join(at.source, filepath.FromSlash(recipe.LockPath))
			old, err := recipe.LoadLockDir(at.source)
			changed := err != nil || !old.Same(l) // one that is damaged is replaced
			if !changed {
				l = old
			} else if _, err := recipe.ParseLock(recipe.LockPath, l.Text()); err != nil {
				return fmt.Errorf("pinning %s: %w", from, err) // an odd registry
			} else if err := renameio.WriteFile(file, l.Text(), 0o644); err != nil {
				return fmt.Errorf("writing the lock of the base: %w", err)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), struct {
					Image   string `json:"image"`
					Release int    `json:"release"`
					Digest  string `json:"digest"`
					Date    string `json:"date"`
					Changed bool   `json:"changed"`
				}{l.Image, l.Release, l.Digest, l.Date, changed})
			}
			said := "as before, of " + l.Date
			if changed {
				said = "written to " + recipe.LockPath
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s:%d %s (%s)\n", l.Image, l.Release, l.Digest, said)
			return err
		},
	}
	at.flags(c)
	c.Flags().StringVar(&from, "from", "", "ask for the digest of this `reference`, a mirror of the base")
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return c
}

func imagePin() *cobra.Command {
	var at checkout
	var out string
	c := &cobra.Command{
		Use:   "pin",
		Short: "Write the recipe with the base's digest in it, for BlueBuild",
		Long: `pin writes the recipe as it is, but for its image-version, which gets the digest of
` + recipe.LockPath + ` behind it. BlueBuild builds on that image then, whatever its
tag names meanwhile. It asks no registry.`,
		Example: "  veilor-forge image pin --out bluebuild/recipes/pinned.yml",
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := at.find(); err != nil {
				return err
			}
			l, err := recipe.LoadLockDir(at.source)
			if err != nil {
				return err
			}
			file := filepath.Join(at.source, recipeName)
			text, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("reading the recipe: %w", err)
			}
			pinned, err := recipe.Pin(file, text, l)
			if err != nil {
				return err
			}
			if err := renameio.WriteFile(out, pinned, 0o644); err != nil {
				return fmt.Errorf("writing the recipe: %w", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s@%s\n", l.Image, l.Digest)
			return err
		},
	}
	at.flags(c)
	c.Flags().StringVar(&out, "out", "", "recipe `file` to write")
	require(c, "out")
	return c
}

// sayBase says on w whether an image was built on the base that is pinned. It is
// no error if not: a desk builds on what it has.
func sayBase(w io.Writer, source, arch, digest string) {
	l, err := recipe.LoadLockDir(source)
	switch {
	case errors.Is(err, recipe.ErrNoLock):
		fmt.Fprintf(w, "  base: nobody knows whether %s is the one that GitHub builds on: there is no %s (veilor-forge image lock)\n", digest, recipe.LockPath)
	case err != nil:
		fmt.Fprintf(w, "  base: nobody knows whether %s is the one that GitHub builds on: %v\n", digest, err)
	case !l.Pins(digest, arch):
		fmt.Fprintf(w, "  base: %s is not the one that GitHub builds on, which is %s of %s; to have that: skopeo copy --preserve-digests docker://%s@%s oci:DIR\n",
			digest, l.Digest, l.Date, l.Image, l.Digest)
	}
}
