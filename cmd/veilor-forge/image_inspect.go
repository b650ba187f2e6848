package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/image"
)

// inspected are the flags of commands that look into an image.
type inspected struct {
	programs // for --cache and --arch; nothing is compiled
	asJSON   bool
}

func (i *inspected) flags(c *cobra.Command) {
	c.Flags().StringVar(&i.cache, "cache", "", "`directory` that outlives builds (default: veilor-forge in the user's cache)")
	c.Flags().StringVar(&i.arch, "arch", "", "architecture, of an image that has several: amd64 or arm64")
}

func (i *inspected) complete() error {
	if i.arch != "" {
		return i.programs.complete()
	}
	i.arch = "amd64"
	err := i.programs.complete()
	i.arch = ""
	return err
}

// imageRef explains what the commands take.
const imageRef = "oci:DIR[:TAG] or a reference into a registry"

func imageList() *cobra.Command {
	var at inspected
	var layersOnly bool
	c := &cobra.Command{
		Use:   "ls IMAGE [PATH]",
		Short: "List the layers or files of an image",
		Long: `ls lists the files of an image as a machine that runs it sees them: all, or those
at and below PATH. With --layers it lists the layers instead, the base's first. IMAGE is
` + imageRef + `.`,
		Example: `  veilor-forge image ls oci:out/image /usr/lib/systemd/system
  veilor-forge image ls --layers ghcr.io/veilor/veilor-os:44`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return exactly(1, "IMAGE [PATH]")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := at.complete(); err != nil {
				return err
			}
			l, err := image.List(c.Context(), args[0], at.arch, at.cache)
			if err != nil {
				return err
			}
			if layersOnly {
				l.Files = nil
			}
			if len(args) == 2 {
				if l.Files = below(l.Files, args[1]); len(l.Files) == 0 && !layersOnly {
					return fmt.Errorf("listing %s: it has nothing at %s", args[0], args[1])
				}
			}
			if at.asJSON {
				return printJSON(c.OutOrStdout(), l)
			}
			var out bytes.Buffer
			if layersOnly {
				for _, layer := range l.Layers {
					fmt.Fprintf(&out, "%-24s %12d  %s\n", layer.Name, layer.Size, layer.Digest)
				}
			}
			for _, f := range l.Files {
				name := f.Path
				if f.Link != "" {
					name += " -> " + f.Link
				}
				fmt.Fprintf(&out, "%s %12d  %-20s %s\n", f.Mode, f.Size, l.Layers[f.Layer].Name, name)
			}
			_, err = c.OutOrStdout().Write(out.Bytes())
			return err
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&layersOnly, "layers", false, "list the layers")
	c.Flags().BoolVar(&at.asJSON, "json", false, "answer in JSON")
	return c
}

// below keeps the files at and below dir.
func below(files []image.File, dir string) []image.File {
	dir = "/" + strings.Trim(dir, "/")
	var kept []image.File
	for _, f := range files {
		if dir == "/" || f.Path == dir || strings.HasPrefix(f.Path, dir+"/") {
			kept = append(kept, f)
		}
	}
	return kept
}

func imageDiff() *cobra.Command {
	var at inspected
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say what changes between two images, and what a client fetches",
		Long: `diff compares two images: which layers a client that has OLD fetches for NEW, how
many bytes that is, and which files change. Each image is ` + imageRef + `.
Times of files are not compared.`,
		Example: `  veilor-forge image diff ghcr.io/veilor/veilor-os:44 oci:out/image
  veilor-forge image diff --json oci:out/before oci:out/after`,
		Args: exactly(2, "OLD and NEW"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := at.complete(); err != nil {
				return err
			}
			d, err := image.Compare(c.Context(), args[0], args[1], at.arch, at.cache)
			if err != nil {
				return err
			}
			if at.asJSON {
				return printJSON(c.OutOrStdout(), d)
			}
			return writeDiff(c.OutOrStdout(), d)
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&at.asJSON, "json", false, "answer in JSON")
	return c
}

func writeDiff(w io.Writer, d *image.Diff) error {
	var out bytes.Buffer
	sign := map[string]string{image.Added: "+", image.Removed: "-", image.Changed: "~"}
	if d.A == d.B {
		fmt.Fprintf(&out, "the same image: %s\n", d.A)
	}
	for _, l := range d.Layers {
		fmt.Fprintf(&out, "%s layer %-24s %12d  %s\n", sign[l.Kind], l.Name, l.Size, l.Digest)
	}
	for _, f := range d.Files {
		switch f.Kind {
		case image.Changed:
			fmt.Fprintf(&out, "~ %s (%s) %d -> %d\n", f.Path, strings.Join(f.What, ", "), f.Before, f.After)
		case image.Added:
			fmt.Fprintf(&out, "+ %s %d\n", f.Path, f.After)
		default:
			fmt.Fprintf(&out, "- %s %d\n", f.Path, f.Before)
		}
	}
	fmt.Fprintf(&out, "a client fetches %.2f MB of %.2f MB; %d files differ\n", float64(d.Download)/1e6, float64(d.Total)/1e6, len(d.Files))
	_, err := w.Write(out.Bytes())
	return err
}

func imageSBOM() *cobra.Command {
	var at inspected
	var out string
	c := &cobra.Command{
		Use:   "sbom IMAGE",
		Short: "List what is in an image, as SPDX 2.3",
		Long: `sbom writes an SPDX 2.3 document in JSON: our files with their hashes, the Go
modules of our programs, the base by its digest, and the base's packages if it has
an RPM database. The same image gives the same document. IMAGE is
` + imageRef + `.`,
		Example: `  veilor-forge image sbom oci:out/image --out out/veilor-os.spdx.json`,
		Args:    exactly(1, "IMAGE"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := at.complete(); err != nil {
				return err
			}
			img, err := image.Open(c.Context(), args[0], at.arch)
			if err != nil {
				return err
			}
			var text bytes.Buffer
			if err := image.BillOfMaterials(c.Context(), img, args[0], at.cache, &text); err != nil {
				return err
			}
			if out == "" {
				_, err := c.OutOrStdout().Write(text.Bytes())
				return err
			}
			if err := renameio.WriteFile(out, text.Bytes(), 0o644); err != nil {
				return fmt.Errorf("writing the list: %w", err)
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().StringVar(&out, "out", "", "`file` to write (default: standard output)")
	return c
}
