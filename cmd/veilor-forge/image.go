package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/site"
)

func imageBuild() *cobra.Command {
	var at checkout
	var progs programs
	var base, out, version, revision, compression, recipeFile, standIns string
	var asJSON bool
	c := &cobra.Command{
		Use:   "build",
		Short: "Build the image on a base that is at hand",
		Long: `build renders the overlay, applies the recipe to the base, and writes an OCI
image. A part of the recipe that needs a package manager, or that would run in the
image, counts as done if the base's package database says so, or if the table of
--stand-ins names what takes its place. Otherwise nothing is built, and what is
missing is listed. The image's label ` + image.ModulesLabel + ` says which happened.

The same inputs give the same digest. Everything in the image is dated by
$SOURCE_DATE_EPOCH (seconds since 1970) or, without it, by the base. If the base is
not the one that ` + "`image lock`" + ` pinned, it says so.`,
		Example: `  skopeo copy --preserve-digests docker://ghcr.io/secureblue/kinoite-main-hardened:44 oci:base
  veilor-forge image build --base oci:base --out oci:out/image --version 44.20261123.0`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := at.find(); err != nil {
				return err
			}
			if err := progs.complete(); err != nil {
				return err
			}
			from, err := image.ParseDir(base)
			if err != nil {
				return usageError{err}
			}
			to, err := image.ParseDir(out)
			if err != nil {
				return usageError{err}
			}
			how, err := image.ParseCompression(compression)
			if err != nil {
				return usageError{err}
			}
			created, err := sourceDate()
			if err != nil {
				return usageError{err}
			}
			if recipeFile == "" {
				recipeFile = filepath.Join(at.source, recipeName)
			}
			s, err := at.load()
			if err != nil {
				return err
			}
			r, err := recipe.Load(recipeFile)
			if err != nil {
				return err
			}
			var table []image.Replacement
			if standIns != "" {
				data, err := os.ReadFile(standIns)
				if err != nil {
					return fmt.Errorf("reading the stand-ins: %w", err)
				}
				if table, err = image.ParseReplacements(standIns, data); err != nil {
					return err
				}
			}
			res, err := image.Build(c.Context(), image.Options{
				Site: s, Recipe: r, Overlay: os.DirFS(filepath.Join(at.source, "overlay")),
				Base: from, Out: to, Version: version, Revision: revision, Arch: progs.arch, Cache: progs.cache,
				Compression: how, Created: created, StandIns: table,
				Programs: func(ctx context.Context) (overlay.Tree, error) { return progs.build(ctx, at.source) },
				Step:     newProgress().step,
			})
			if err != nil {
				return err
			}
			sayBase(c.ErrOrStderr(), at.source, progs.arch, res.BaseDigest)
			for _, m := range res.Modules {
				fmt.Fprintf(c.ErrOrStderr(), "  %s:%d: %s\n", recipeFile, m.Line, m)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), res)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s %s\n", res.Image, res.Digest)
			return nil
		},
	}
	at.flags(c)
	progs.flags(c)
	c.Flags().StringVar(&base, "base", "", "base image, oci:`DIR`[:TAG]")
	c.Flags().StringVar(&out, "out", "", "image to write, oci:`DIR`[:TAG]; replaced as a whole")
	c.Flags().StringVar(&version, "version", "", "`version` of the image, for example 44.20261123.0")
	c.Flags().StringVar(&revision, "revision", "", "`commit` of the sources, for the image's annotations")
	c.Flags().StringVar(&compression, "compression", string(image.Gzip), "compression of our layers: gzip or zstd")
	c.Flags().StringVar(&standIns, "stand-ins", "", "`file` that names what takes the place of parts of the recipe that the base cannot have")
	c.Flags().StringVar(&recipeFile, "recipe", "", "recipe `file` (default: bluebuild/recipes/recipe.yml in the sources)")
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	require(c, "base", "out", "version")
	return c
}

// sourceDate reads $SOURCE_DATE_EPOCH (reproducible-builds.org/specs); zero if
// it is not set.
func sourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q; write seconds since 1970, for example $(git log -1 --format=%%ct)", text)
	}
	return time.Unix(n, 0), nil
}

func imagePush() *cobra.Command {
	c := &cobra.Command{
		Use:   "push oci:DIR REF",
		Short: "Upload an image to a registry",
		Long: `push uploads an image. What the registry has already is not sent, so that a push
that was cut off is simply run again; a connection that drops is tried again by itself.
At the end the registry is asked for the image: our layers are read back whole.
Credentials are those of docker or podman login. A registry on loopback is spoken
to without TLS.`,
		Example: `  veilor-forge image push oci:out/image ghcr.io/veilor/veilor-os:44`,
		Args:    exactly(2, "oci:DIR and REF"),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := image.ParseDir(args[0])
			if err != nil {
				return usageError{err}
			}
			p := newProgress()
			end := p.step("push")
			digest, err := image.Push(c.Context(), from, args[1], p.bytes)
			if err != nil {
				return err
			}
			end(args[1])
			fmt.Fprintln(c.OutOrStdout(), digest)
			return nil
		},
	}
	return c
}

func imageSign() *cobra.Command {
	var at checkout
	var keys []string
	var identity string
	c := &cobra.Command{
		Use:   "sign REF",
		Short: "Sign an image in its registry",
		Long: `sign adds a signature by each key to the image at REF, in the format that
containers' policy.json reads. Signatures that are there stay; signing twice with
a key changes nothing. The passphrase is $COSIGN_PASSWORD or is asked. A key that
the site does not name is refused, because clients would refuse what it signs.

A signature is for a repository. If REF is a mirror, --identity names the
repository by which clients know the image.`,
		Example: `  veilor-forge image sign --key keys/ci.key --key keys/release.key ghcr.io/veilor/veilor-os:44
  veilor-forge image sign --key keys/ci.key --identity ghcr.io/veilor/veilor-os 127.0.0.1:5000/veilor/veilor-os:44`,
		Args: exactly(1, "REF, for example ghcr.io/veilor/veilor-os:44"),
		RunE: func(c *cobra.Command, args []string) error {
			var s *site.Site // nil if --identity makes it needless
			if identity == "" {
				var err error
				if s, err = at.load(); err != nil {
					return err
				}
				identity = s.Image.Ref
			}
			var loaded []*signing.Private
			for _, f := range keys {
				k, err := signing.Load(f, passphrase)
				if err != nil {
					return err
				}
				if s != nil {
					if err := signing.Trusts(s, k, f); err != nil {
						return err
					}
				}
				loaded = append(loaded, k)
			}
			digest, added, err := signing.Sign(c.Context(), args[0], identity, loaded)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s@%s: %d new signatures of %d keys\n", identity, digest, added, len(loaded))
			return nil
		},
	}
	at.flags(c)
	c.Flags().StringArrayVar(&keys, "key", nil, "private key `file`; may be given several times")
	c.Flags().StringVar(&identity, "identity", "", "`repository` that the signature is for (default: image.ref of the site)")
	require(c, "key")
	return c
}

func imageVerify() *cobra.Command {
	var at checkout
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify REF",
		Short: "Check that clients of the site will accept an image",
		Long: `verify looks for a good signature of every signature group of the site, as the
policy.json in the image does. It fails if a group is missing.`,
		Example: `  veilor-forge image verify ghcr.io/veilor/veilor-os:44
  veilor-forge image verify --json ghcr.io/veilor/veilor-os@sha256:…`,
		Args: exactly(1, "REF, for example ghcr.io/veilor/veilor-os:44"),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := at.load()
			if err != nil {
				return err
			}
			r, err := signing.Verify(c.Context(), s, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(c.OutOrStdout(), r); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(c.OutOrStdout(), "%s@%s\n", r.Identity, r.Digest)
				for _, g := range r.Groups {
					what := "NOT SIGNED"
					if g.Key > 0 {
						what = fmt.Sprintf("signed by key %d", g.Key)
					}
					fmt.Fprintf(c.OutOrStdout(), "  %-12s %s\n", g.Name, what)
				}
			}
			if m := r.Missing(); len(m) > 0 {
				return fmt.Errorf("verifying %s: no good signature of %s; clients will refuse the image; sign it with: veilor-forge image sign --key FILE %s",
					args[0], strings.Join(m, ", "), args[0])
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return c
}

// errNoPassphrase says how to give one.
var errNoPassphrase = errors.New("no passphrase: set COSIGN_PASSWORD, or run this on a terminal")
