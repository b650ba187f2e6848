package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/quiet"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/status"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// dnsPort is where resolvers ask.
	dnsPort = 53
	// testLimit bounds `mesh test`: five seconds for each layer, at once, and
	// some for the answer.
	testLimit = 8 * time.Second
)

func (a *app) meshCommand() *cobra.Command {
	cmd := cli.Group(&cobra.Command{
		Use:     "mesh",
		Short:   "What reaches the services: try it, explain it, silence it",
		Example: "  veilor mesh test\n  veilor mesh explain x.veilor\n  veilor mesh log",
	})
	cmd.AddCommand(a.meshTestCommand(), a.meshExplainCommand(), a.meshLogCommand(), a.meshQuietCommand(), a.meshRunCommand(), a.meshPrepareCommand(),
		a.meshImportCommand(), a.meshPinCommand(), a.meshFenceCommand())
	return cmd
}

func (a *app) meshRunCommand() *cobra.Command {
	var (
		resolver string
		debug    bool
	)
	run := &cobra.Command{
		Use:   "run",
		Short: "Answer for the zone and carry connections, until stopped",
		Long: `Run answers DNS questions for the zone of the services, carries connections to
them over whichever layer works, and answers questions on its socket.

veilor-mesh.service runs it; nobody needs to run it by hand.`,
		Example: "  veilor mesh run\n  curl --unix-socket /run/veilor/mesh.sock http://mesh/status",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level, ReplaceAttr: noTime}))
			addr, err := netip.ParseAddrPort(resolver)
			if err != nil {
				return cli.Usagef("--dns: %w", err)
			}
			return a.serve(cmd.Context(), log, addr)
		},
	}
	run.Flags().BoolVar(&debug, "debug", false, "log every connection that no layer answers")
	run.Flags().StringVar(&resolver, "dns", netip.AddrPortFrom(site.Resolver, dnsPort).String(), "where to answer for the zone")
	run.Flags().MarkHidden("dns")
	return run
}

// noTime leaves the time to the journal.
func noTime(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return attr
}

func (a *app) meshTestCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test [NAME]",
		Short: "Try every layer of every service now, and say how long each took",
		Long: `Test connects to every service, or to the one that is named, over every layer at
once, as a browser would: TCP, then TLS, in which the server must prove its name.
It asks for nothing and changes nothing.

It exits 1 if a service works over no layer.`,
		Example: "  veilor mesh test\n  veilor mesh test x.veilor --json",
		Args:    cli.AtMostOne("a service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, _, err := a.inForce()
			if err != nil {
				return err
			}
			var names []string
			for _, v := range s.Services {
				names = append(names, v.Name)
			}
			if len(args) == 1 {
				name, err := serviceName(s, args[0])
				if err != nil {
					return err
				}
				names = []string{name}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), testLimit)
			defer cancel()
			results := []status.Trials{}
			var dead []string
			for _, name := range names {
				var t status.Trials
				if err := a.mesh().Get(ctx, "/test?name="+url.QueryEscape(name), &t); err != nil {
					return meshError(err)
				}
				results = append(results, t)
				if !t.Works() {
					dead = append(dead, name)
				}
			}
			if err := output(cmd.OutOrStdout(), asJSON, results, func(w io.Writer) error {
				for _, t := range results {
					if err := t.Text(w); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
			if len(dead) > 0 {
				return &advice.Error{
					Text: strings.Join(dead, ", ") + " works over no layer   [unreachable]",
					Todo: "`veilor status` says what is the matter; `veilor mesh explain " + dead[0] + "` what is tried.",
				}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) meshExplainCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain NAME",
		Short: "Say why a service is reached as it is",
		Long: `Explain says over which layer a service is reached and why: what a new connection
would try and in which order, what is known of each layer, whether this laptop
may open the service at all, and what happened lately. It asks no layer.`,
		Example: "  veilor mesh explain x.veilor\n  veilor mesh explain x.veilor --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usagef("one service is wanted; write for example: veilor mesh explain x.veilor")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, _, err := a.inForce()
			if err != nil {
				return err
			}
			name, err := serviceName(s, args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askLimit)
			defer cancel()
			var e status.Explanation
			if err := a.mesh().Get(ctx, "/explain?name="+url.QueryEscape(name), &e); err != nil {
				return meshError(err)
			}
			if e.Access, err = a.access(ctx, s, name); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), asJSON, e, e.Text)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// access asks the policy whether this laptop may open the service; nil if it is
// not known what this laptop is.
func (a *app) access(ctx context.Context, s *site.Site, service string) (*status.Access, error) {
	policy, err := tier.New(s)
	if err != nil {
		return nil, fmt.Errorf("reading who may reach what: %w", err)
	}
	fleet, err := policy.Fleet()
	if err != nil {
		return nil, fmt.Errorf("reading who may reach what: %w", err)
	}
	tn, err := tailnet.New(a.tailscaledSocket).State(ctx)
	if err != nil || !tn.Joined {
		return nil, nil
	}
	who, err := policy.OfTags(tn.Tags)
	if err != nil {
		return nil, nil // tags that the site does not know
	}
	for _, v := range s.Services {
		host, ok := fleet.ByName(v.Host)
		if v.Name != service || !ok || len(v.Ports) == 0 {
			continue
		}
		d := policy.Decide(tier.Machine{Tier: who}, host, tier.TCP, v.Ports[0])
		return &status.Access{Tier: who, Allow: d.Allow, Rule: d.Rule, Why: d.Why}, nil
	}
	return nil, nil
}

func (a *app) meshLogCommand() *cobra.Command {
	var (
		asJSON bool
		lines  int
	)
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Say what happened: layers lost and back, switches, trials of the fallback",
		Long: `Log prints what happened to the services, oldest first. The last 500 events are
kept over restarts.`,
		Example: "  veilor mesh log\n  veilor mesh log --lines 20\n  veilor mesh log --json",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 {
				return cli.Usagef("--lines %d: write how many, or 0 for all", lines)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askLimit)
			defer cancel()
			var l status.Log
			if err := a.mesh().Get(ctx, "/log", &l); err != nil {
				return meshError(err)
			}
			if lines > 0 {
				l.Events = l.Events[max(0, len(l.Events)-lines):]
			}
			return output(cmd.OutOrStdout(), asJSON, l, func(w io.Writer) error { return l.Text(w, time.Now()) })
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().IntVar(&lines, "lines", 0, "print the last `N` events only; 0 is all")
	return cmd
}

// mesh is the daemon.
func (a *app) mesh() meshsock.Client { return meshsock.Client{Path: a.meshSocket} }

// meshError is err of asking the daemon, with what to do.
func meshError(err error) error {
	return &advice.Error{
		Text:  fmt.Sprintf("veilor-mesh does not answer: %v   [mesh-stopped]", err),
		Todo:  status.Remedy("mesh-stopped"),
		Cause: err,
	}
}

// serviceName is the service that a person means: by its name, or by the part
// before the zone.
func serviceName(s *site.Site, said string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(said, "."))
	var names []string
	for _, v := range s.Services {
		if v.Name == name || v.Name == name+"."+s.Zone {
			return v.Name, nil
		}
		names = append(names, v.Name)
	}
	return "", &advice.Error{
		Text: fmt.Sprintf("no service is called %q", said),
		Todo: "The services are: " + strings.Join(names, ", "),
	}
}

// output prints v as JSON, or as text.
func output(w io.Writer, asJSON bool, v any, text func(io.Writer) error) error {
	if !asJSON {
		return text(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func jsonFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON; fields are added over time, never changed")
}

// quietState reads whether the laptop is to be quiet. A damaged file counts as
// yes.
func (a *app) quietState() *quiet.State {
	s, _ := quiet.Read(a.quietFile)
	return s
}
