package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/matrix"
)

func policyMatrix() *cobra.Command {
	var at fleetFlags
	var asJSON, narrow bool
	var measured, svg string
	c := &cobra.Command{
		Use:   "matrix",
		Short: "Show who may reach what, as the site has it or as it was measured",
		Long: `matrix shows for every class of machines what it may open of every class and of
every host that has a service. It is what the site means.

With --measured it shows what was seen instead: real packets of the lab, over
each layer, while an ISP blocks what it can. The exit code is 1 if anything came
through that must not.`,
		Example: `  veilor-forge policy matrix
  veilor-forge policy matrix --measured docs/evidence/tiers.json
  veilor-forge policy matrix --measured docs/evidence/tiers.json --svg tiers.svg`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if measured == "" {
				if svg != "" {
					return usageError{errors.New("--svg draws what was measured; write --measured docs/evidence/tiers.json too")}
				}
				p, err := at.policy()
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), p.Matrix())
				}
				return writeMatrix(c.OutOrStdout(), p.Matrix())
			}
			r, err := readMeasured(measured)
			if err != nil {
				return err
			}
			shape := matrix.Wide
			if narrow {
				shape = matrix.Narrow
			}
			switch {
			case svg != "":
				var picture bytes.Buffer
				if err = r.SVG(&picture, shape); err == nil {
					err = renameio.WriteFile(svg, picture.Bytes(), 0o644)
				}
			case asJSON:
				err = printJSON(c.OutOrStdout(), r)
			default:
				err = r.Text(c.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return r.Holds()
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	c.Flags().StringVar(&measured, "measured", "", "show what was measured, from `file` (JSON)")
	c.Flags().StringVar(&svg, "svg", "", "draw it into `file` instead")
	c.Flags().BoolVar(&narrow, "narrow", false, "with --svg: one layer under the other, for a phone")
	return c
}

func readMeasured(file string) (*matrix.Record, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading what was measured: %w", err)
	}
	defer f.Close()
	r, err := matrix.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; the lab's package forbidden writes it, with -evidence", file, err)
	}
	return r, nil
}
