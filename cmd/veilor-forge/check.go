package main

import (
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/check"
	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/site"
)

// errBroken ends a check that found something; what it is was printed.
type errBroken struct{ failed, open int }

func (e errBroken) Error() string {
	if e.failed > 0 {
		return fmt.Sprintf("%d rules failed", e.failed)
	}
	return fmt.Sprintf("%d rules are not yet kept or not checked, which --strict does not allow", e.open)
}

func checkCommand() *cobra.Command {
	var at checkout
	var built, arch, cache string
	var tools []string
	var asJSON, list, strict bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Check that recipe, overlay, site and image keep what veilor promises",
		Long: `check reads the recipe, the overlay and the site file, and with --image a built
image, and holds them against a table of rules. For what does not hold it says
where, why that matters and how it is put right.

  ok           it holds
  FAILED       it does not
  not yet      it does not, and cannot yet; the reason stands beside it
  not checked  a tool or an input is missing, so nobody knows

What the operator has not supplied yet (keys, addresses) is replaced by stand-ins
for the time of the check, and listed under site-complete.

Exit codes: 0 no rule failed, 1 one did, 2 wrong usage. With --strict, as a release
wants it, "not yet" and "not checked" are 1 too.

The rules ask these programs: desktop-file-validate, firewall-offline-cmd (as
root), shellcheck, systemd-analyze (250 or newer), usbguard-rule-parser, visudo.`,
		Example: `  veilor-forge check
  veilor-forge check --image oci:out/image --strict
  veilor-forge check --list`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			out := c.OutOrStdout()
			if list {
				return listRules(c, asJSON)
			}
			if err := at.find(); err != nil {
				return err
			}
			if at.site == "" {
				at.site = filepath.Join(at.source, "site", "veilor.yaml")
			}
			s, err := site.Load(at.site)
			if err != nil {
				return err
			}
			sub, err := check.Load(os.DirFS(at.source), s, time.Now())
			if err != nil {
				return err
			}
			sub.Tools.Dirs = tools
			if built != "" {
				progs := programs{arch: arch, cache: cache}
				if err := progs.complete(); err != nil {
					return err
				}
				d, err := image.ParseDir(built)
				if err != nil {
					return usageError{err}
				}
				img, err := image.OpenBase(c.Context(), d, progs.arch, progs.cache)
				if err != nil {
					return err
				}
				sub.Image = img
			}
			results, err := check.Run(c.Context(), sub)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(out, map[string]any{"rules": results})
			} else {
				err = check.Write(out, results)
			}
			if err != nil {
				return err
			}
			n := check.Count(results)
			open := n[check.NotYet] + n[check.NotChecked]
			if n[check.Failed] > 0 || (strict && open > 0) {
				return errBroken{n[check.Failed], open}
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().StringVar(&built, "image", "", "built image, oci:`DIR`, to look into as well")
	c.Flags().StringVar(&arch, "arch", "amd64", "architecture of the image: amd64 or arm64")
	c.Flags().StringVar(&cache, "cache", "", "`directory` that outlives checks of images (default: veilor-forge in the user's cache)")
	c.Flags().StringArrayVar(&tools, "tools", nil, "`directory`, or root of a system, with the programs that rules ask; looked through before PATH")
	c.Flags().BoolVar(&asJSON, "json", false, "print the rules as JSON")
	c.Flags().BoolVar(&list, "list", false, "list the rules, what for and where from, and check nothing")
	c.Flags().BoolVar(&strict, "strict", false, "fail on what is not yet kept or not checked too")
	return c
}

func listRules(c *cobra.Command, asJSON bool) error {
	rules := check.Rules()
	if asJSON {
		return printJSON(c.OutOrStdout(), map[string]any{"rules": rules})
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, r := range rules {
		fmt.Fprintf(w, "%s\t%s\n\twhy: %s\n\tfrom: %s\n", r.ID, r.What, r.Why, r.Source)
	}
	return w.Flush()
}
