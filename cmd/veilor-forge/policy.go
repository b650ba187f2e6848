package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/firewalld"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/reticulum"
	"github.com/veilor/veilor-os/internal/tier"
)

// policyCommand is "veilor-forge policy".
func policyCommand() *cobra.Command {
	return group("policy", "Say, compile and load who may reach what",
		policyExplain(), policyMatrix(), policyRender(), policyCheck(), policyDiff(), policyLoad(), policyApply(), policyRevoke())
}

// fleetFlags say which site, and which machines beside its hosts.
type fleetFlags struct {
	checkout
	machines string
}

func (f *fleetFlags) flags(c *cobra.Command) {
	f.checkout.flags(c)
	c.Flags().StringVar(&f.machines, "machines", "", "`file` (JSON) with the machines that are not hosts of the site: laptops, and who is revoked")
}

// policy reads the site's tiers.
func (f *fleetFlags) policy() (*tier.Policy, error) {
	s, err := f.load()
	if err != nil {
		return nil, err
	}
	p, err := tier.New(s)
	if err != nil {
		return nil, fmt.Errorf("reading the tiers of %s: %w", f.site, err)
	}
	return p, nil
}

// fleet reads the site and the machines.
func (f *fleetFlags) fleet(more ...tier.Machine) (*tier.Fleet, error) {
	p, err := f.policy()
	if err != nil {
		return nil, err
	}
	listed, err := f.listed()
	if err != nil {
		return nil, err
	}
	return p.Fleet(append(more, listed...)...)
}

// listed are the machines of --machines.
func (f *fleetFlags) listed() ([]tier.Machine, error) {
	if f.machines == "" {
		return nil, nil
	}
	file, err := os.Open(f.machines)
	if err != nil {
		return nil, fmt.Errorf("reading the machines: %w", err)
	}
	defer file.Close()
	ms, err := tier.ReadMachines(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.machines, err)
	}
	return ms, nil
}

func policyExplain() *cobra.Command {
	var at fleetFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain SRC DST PORT",
		Short: "Say whether one machine may open a port of another, and by which rule",
		Long: `explain answers from the site's tiers, as every layer must. SRC and DST are the
name of a host, a service, a tier (some machine of it), a tag, an address, or
one of the words stranger and revoked. PORT is 443, 443/tcp, 53/udp or icmp.

The answer is on stdout and the exit code is 0, whether allowed or denied.`,
		Example: `  veilor-forge policy explain guest x.veilor 443
  veilor-forge policy explain guest nullstone 22 --json
  veilor-forge policy explain 100.64.0.9 failsafe icmp --machines machines.json`,
		Args: exactly(3, "SRC DST PORT"),
		RunE: func(c *cobra.Command, args []string) error {
			f, err := at.fleet()
			if err != nil {
				return err
			}
			e, err := f.Explain(args[0], args[1], args[2])
			if err != nil {
				return usageError{err}
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), e)
			}
			fmt.Fprint(c.OutOrStdout(), e)
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return c
}

// writeMatrix is one row for each source. Nothing is a dot, so that a column
// can be followed by eye.
func writeMatrix(w io.Writer, cells []tier.Cell) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row, source := []string{"from \\ to"}, ""
	for _, c := range cells {
		if source != "" && c.Source != source {
			break
		}
		source = c.Source
		row = append(row, c.Destination)
	}
	source = ""
	for _, c := range cells {
		if c.Source != source {
			fmt.Fprintln(t, strings.Join(row, "\t"))
			row, source = []string{c.Source}, c.Source
		}
		what := strings.Join(c.Opens, ",")
		if what == "" {
			what = "."
		}
		row = append(row, what)
	}
	fmt.Fprintln(t, strings.Join(row, "\t"))
	return t.Flush()
}

// forms are what the tiers compile to.
const forms = "headscale, packetfilter, firewalld or reticulum"

func policyRender() *cobra.Command {
	var at fleetFlags
	var as, host, layer string
	c := &cobra.Command{
		Use:   "render",
		Short: "Compile the tiers into the form of one layer",
		Long: `render writes one compiled form to stdout:

  headscale     the policy (HuJSON) with its tests
  packetfilter  the nftables of a machine on an overlay, as "nft -f" reads them
  firewalld     the zone of a machine on an overlay (XML)
  reticulum     the allow-list of a machine

All but the first are of one machine, named with --host.`,
		Example: `  veilor-forge policy render > policy.hujson
  veilor-forge policy render --as packetfilter --host nullstone --layer yggdrasil --machines machines.json
  veilor-forge policy render --as firewalld --host nullstone --layer tailnet`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := at.fleet()
			if err != nil {
				return err
			}
			text, err := renderPolicy(f, as, host, layer)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	at.flags(c)
	c.Flags().StringVar(&as, "as", "headscale", "`form`: "+forms)
	c.Flags().StringVar(&host, "host", "", "`name` of the machine that enforces it")
	c.Flags().StringVar(&layer, "layer", "yggdrasil", "`overlay`: tailnet or yggdrasil")
	return c
}

func renderPolicy(f *tier.Fleet, as, host, layer string) ([]byte, error) {
	if as == "headscale" {
		d, err := acl.Compile(f)
		if err != nil {
			return nil, err
		}
		return d.Text(), nil
	}
	l, ok := map[string]tier.Layer{"tailnet": tier.Tailnet, "yggdrasil": tier.Yggdrasil}[layer]
	if !ok {
		return nil, usageError{fmt.Errorf("--layer %s: there is no such overlay; write tailnet or yggdrasil", layer)}
	}
	if as != "packetfilter" && as != "firewalld" && as != "reticulum" {
		return nil, usageError{fmt.Errorf("--as %s: there is no such form; write %s", as, forms)}
	}
	self, err := machineNamed(f, host, as)
	if err != nil {
		return nil, err
	}
	switch as {
	case "packetfilter":
		t, err := packetfilter.Compile(f, self, l)
		return []byte(t.String()), err
	case "firewalld":
		z, err := firewalld.Render(f, self, l)
		return z.XML(), err
	}
	var b bytes.Buffer
	_, err = reticulum.Compile(f, self).WriteTo(&b)
	return b.Bytes(), err
}

// machineNamed finds the machine of --host.
func machineNamed(f *tier.Fleet, host, what string) (tier.Machine, error) {
	if host == "" {
		return tier.Machine{}, usageError{fmt.Errorf("--host missing: %s is of one machine; write for example --host %s", what, f.Policy().Site().Hosts[0].Name)}
	}
	self, ok := f.ByName(host)
	if !ok {
		return tier.Machine{}, usageError{fmt.Errorf("--host %s: no such machine in the site or under --machines", host)}
	}
	return self, nil
}
