// Command veilor-forge is the maintainer's desk: it renders the overlay, builds,
// signs, pushes and checks the image, and makes the keys for that.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// Exit codes, as for all of veilor's programs.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := newRoot().ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted; nothing was left half-written")
	}
	fmt.Fprintf(os.Stderr, "veilor-forge: %v\n", err)
	if errors.As(err, new(usageError)) {
		fmt.Fprintf(os.Stderr, "  See: %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "veilor-forge",
		Short: "Make the veilor image: render, build, sign, push, check",
		Long: `veilor-forge makes the veilor image of three things: the recipe
(bluebuild/recipes/recipe.yml), the overlay (overlay/) and the site file
(site/veilor.yaml).

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed,
2 wrong usage.`,
		Example: `  veilor-forge image build --base oci:base --out oci:out/image --version 44.20261123.0
  veilor-forge image push oci:out/image ghcr.io/veilor/veilor-os:44
  veilor-forge image sign --key ci.key --key release.key ghcr.io/veilor/veilor-os:44
  veilor-forge image verify ghcr.io/veilor/veilor-os:44`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		group("overlay", "Render the overlay for BlueBuild", overlayRender()),
		group("image", "Build, compare, push, sign and check images", imageBuild(), imageDiff(), imageList(), imageLock(), imagePin(), imagePush(), imageSBOM(), imageSign(), imageVerify()),
		group("key", "Make the keys that sign images", keyGenerate()),
		group("authority", "Make the site's certificate authority and its certificates", authorityCreate(), authorityIssue()),
		policyCommand(),
		directoryCommand(),
		checkCommand(),
	)
	needCommand(root)
	return root
}

// group is a command that only has others below it.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: subs[0].Example}
	c.AddCommand(subs...)
	needCommand(c)
	return c
}

// needCommand makes c help without, and refuse with, arguments that name no
// command below it.
func needCommand(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		var names []string
		for _, s := range c.Commands() {
			if !s.Hidden {
				names = append(names, s.Name())
			}
		}
		return usageError{fmt.Errorf("there is no command %q; write one of %s", args[0], strings.Join(names, ", "))}
	}
}

// exactly wants the arguments that use names.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%d arguments; write %s", len(args), what)}
		}
		return nil
	}
}

// require makes flags mandatory, with our own words and exit code.
func require(c *cobra.Command, flags ...string) {
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, f := range flags {
			if !c.Flags().Changed(f) {
				return usageError{fmt.Errorf("--%s missing: %s", f, strings.ReplaceAll(c.Flags().Lookup(f).Usage, "`", ""))}
			}
		}
		return run(c, args)
	}
}

// checkout is where the overlay, recipe, site and programs' source are.
type checkout struct {
	source, site string
}

func (c *checkout) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.source, "source", "", "veilor's `directory` of sources (default: this one or the nearest above that has go.mod and overlay/)")
	cmd.Flags().StringVar(&c.site, "site", "", "site `file` (default: site/veilor.yaml in the sources)")
}

// find fills in what was not given.
func (c *checkout) find() error {
	if c.source != "" {
		return nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		if isDir(filepath.Join(dir, "overlay")) && isFile(filepath.Join(dir, "go.mod")) {
			c.source = dir
			return nil
		}
		if dir == filepath.Dir(dir) {
			return usageError{errors.New("this is not veilor's directory of sources; go there or name it with --source DIR")}
		}
	}
}

// load reads the site file.
func (c *checkout) load() (*site.Site, error) {
	if c.site == "" {
		if err := c.find(); err != nil {
			return nil, err
		}
		c.site = filepath.Join(c.source, "site", "veilor.yaml")
	}
	s, err := site.Load(c.site)
	if err != nil {
		return nil, err
	}
	// Nothing is made of a site that opens more to a guest than it names.
	if _, err := tier.New(s); err != nil {
		return nil, fmt.Errorf("%s: %w", c.site, err)
	}
	return s, nil
}

func isDir(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.IsDir()
}

func isFile(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.Mode().IsRegular()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
