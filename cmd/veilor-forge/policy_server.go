package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/firewalld"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// apiKeyEnv is Headscale's own name, so that one secret serves both.
	apiKeyEnv = "HEADSCALE_CLI_API_KEY"
	// callLimit is for one call. Headscale (0.29) drops an answer that takes it more
	// than 30 s; package headscale then asks what became of it.
	callLimit = time.Minute
)

// serverFlags say which Headscale.
type serverFlags struct {
	fleetFlags
	server string
}

func (s *serverFlags) flags(c *cobra.Command) {
	s.fleetFlags.flags(c)
	c.Flags().StringVar(&s.server, "server", "", "`URL` of Headscale (default: control.url of the site)")
}

// open connects, and joins the tailnet's nodes with the site's hosts.
func (s *serverFlags) open(ctx context.Context) (*headscale.Client, *tier.Fleet, error) {
	p, err := s.policy()
	if err != nil {
		return nil, nil, err
	}
	if s.server == "" {
		s.server = p.Site().Control.URL
	}
	u, err := url.Parse(s.server)
	if err != nil || u.Host == "" || (u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname()))) {
		return nil, nil, usageError{fmt.Errorf("--server %q: the API key goes there, so it must be an https URL", s.server)}
	}
	key := os.Getenv(apiKeyEnv)
	if key == "" {
		return nil, nil, usageError{fmt.Errorf("no API key: make one with `headscale apikeys create` on the server and put it into $%s", apiKeyEnv)}
	}
	c := headscale.NewClient(s.server, key, &http.Client{Timeout: callLimit})
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	ms, err := headscale.Machines(p, nodes)
	if err != nil {
		return nil, nil, err
	}
	listed, err := s.listed()
	if err != nil {
		return nil, nil, err
	}
	if ms, err = headscale.Join(ms, listed); err != nil {
		return nil, nil, err
	}
	f, err := p.Fleet(ms...)
	if err != nil {
		return nil, nil, fmt.Errorf("comparing the tailnet with the site: %w", err)
	}
	return c, f, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func policyCheck() *cobra.Command {
	var at fleetFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Check the site's tiers, and that every form can be compiled of them",
		Long: `check reads the tiers as strictly as an image build does: a guest may open
services of the zone by their names, and nothing else. Then it compiles every
form for every host. It speaks to no server; "policy diff" does.`,
		Example: `  veilor-forge policy check
  veilor-forge policy check --site site/veilor.yaml --machines machines.json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := at.fleet()
			if err != nil {
				return err
			}
			d, err := acl.Compile(f)
			if err != nil {
				return err
			}
			tables := 0
			for _, m := range f.Machines() {
				for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
					if _, err := packetfilter.Compile(f, m, l); err != nil {
						return err
					}
					if _, err := firewalld.Render(f, m, l); err != nil {
						return err
					}
					tables++
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "good: %d rules for %d tiers; headscale policy of %d bytes with %d tests, %d packet filters and zones\n",
				len(d.ACLs), len(f.Policy().Tiers()), len(d.Text()), len(d.Tests), tables)
			return nil
		},
	}
	at.flags(c)
	return c
}

func policyDiff() *cobra.Command {
	var at serverFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "diff",
		Short: "Compare the policy that Headscale has with the site's",
		Long: `diff asks Headscale for its policy and its nodes. A line that begins with + is
what only the server has, with - what only the site has. Exit code 0 means that
there is no difference, 1 that there are some.

The API key is taken from $` + apiKeyEnv + `.`,
		Example: `  veilor-forge policy diff
  veilor-forge policy diff --json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			client, f, err := at.open(c.Context())
			if err != nil {
				return err
			}
			ds, err := differences(c.Context(), client, f)
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(c.OutOrStdout(), ds); err != nil {
					return err
				}
			}
			opens := 0
			for _, d := range ds {
				if !asJSON {
					fmt.Fprintln(c.OutOrStdout(), d)
				}
				if d.Opens {
					opens++
				}
			}
			switch {
			case opens > 0:
				return fmt.Errorf("%d differences, %d of which can let somebody in; write the site's policy with `veilor-forge policy load`", len(ds), opens)
			case len(ds) > 0:
				return fmt.Errorf("%d differences; write the site's policy with `veilor-forge policy load`", len(ds))
			}
			fmt.Fprintln(c.ErrOrStderr(), "no difference")
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return c
}

// differences compares with what can be in force: tests of a tag that no node
// has cannot be.
func differences(ctx context.Context, client *headscale.Client, f *tier.Fleet) ([]acl.Difference, error) {
	want, err := acl.Compile(f)
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, m := range f.Machines() {
		if len(m.Tailnet) > 0 {
			tags = append(tags, f.Policy().Tag(m.Tier))
		}
	}
	want, _ = want.TestedBy(tags)
	text, err := client.Policy(ctx)
	if errors.Is(err, headscale.ErrNoPolicy) {
		return acl.Diff(&acl.Document{}, nil, want), nil
	}
	if err != nil {
		return nil, err
	}
	have, others, err := acl.Parse(text)
	if err != nil {
		return nil, err
	}
	ds := acl.Diff(have, others, want)
	if ds == nil {
		ds = []acl.Difference{}
	}
	return ds, nil
}

func policyLoad() *cobra.Command {
	var at serverFlags
	c := &cobra.Command{
		Use:   "load",
		Short: "Put the site's policy in force on Headscale",
		Long: `load asks Headscale whether it would take the site's policy, then writes the
rules, then the same rules with the tests that the tailnet can run, and reads
back what is in force after each step. Whenever it ends, the old policy or the
site's rules are in force. Run it again after the first machine of a tier has
joined: a test of a tag that no machine has cannot run.

The API key is taken from $` + apiKeyEnv + `.`,
		Example: `  veilor-forge policy load`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			client, f, err := at.open(c.Context())
			if err != nil {
				return err
			}
			d, err := acl.Compile(f)
			if err != nil {
				return err
			}
			l, err := client.LoadPolicy(c.Context(), d)
			if err != nil {
				return err
			}
			text := l.Step.String()
			if l.Already {
				text += "; they were before"
			}
			fmt.Fprintln(c.OutOrStdout(), text)
			if l.Unsupported {
				fmt.Fprintln(c.ErrOrStderr(), "This Headscale is older than 0.29 and knows no tests.")
			}
			if len(l.Untested) > 0 {
				fmt.Fprintf(c.ErrOrStderr(), "No machine has %s yet: their tests are left out. Load again when one has.\n", strings.Join(l.Untested, ", "))
			}
			return nil
		},
	}
	at.flags(c)
	return c
}
