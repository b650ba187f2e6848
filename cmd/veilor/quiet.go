package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/loopfilter"
	"github.com/veilor/veilor-os/internal/quiet"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/unit"
)

// quietUnits are what says something of the mesh to the network. Their units do
// not start while the quiet file exists. veilor-mesh goes on, since names and
// refusals stay on loopback.
var quietUnits = []string{"tailscaled.service", "veilor-ygg.service"}

const (
	// quietTimer ends a quiet for some time.
	quietTimer = "veilor-quiet-end"
	// maxQuiet is a day more than a year: whoever means longer means for good.
	maxQuiet = 366 * 24 * time.Hour
)

func (a *app) meshQuietCommand() *cobra.Command {
	var (
		asJSON bool
		length time.Duration
	)
	cmd := &cobra.Command{
		Use:   "quiet [on|off]",
		Short: "Say nothing of the mesh to the network, until told otherwise",
		Long: `Quiet stops everything of veilor that an observer of the network could see:
tailscaled, veilor-ygg, every connection to a service and every probe. It holds
over a restart. With --for it ends by itself; if the machine is off at that time,
it ends when it is next switched on.

It does not silence the rest of the laptop: the network's own programs, the
clock, updates, the browser. Without an argument it says how it is.`,
		Example: "  run0 veilor mesh quiet on\n  run0 veilor mesh quiet on --for 2h\n  run0 veilor mesh quiet off\n  veilor mesh quiet",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] != "on" && args[0] != "off" {
				return cli.Usagef("%q: write on, off, or nothing to ask", args[len(args)-1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			timed := cmd.Flags().Changed("for")
			word := strings.Join(args, "")
			switch {
			case timed && word == "":
				word = "on" // `quiet --for 2h` says enough
			case timed && word == "off":
				return cli.Usagef("--for goes with on")
			}
			if timed && (length < time.Minute || length > maxQuiet) {
				return cli.Usagef("--for %v: write a minute or more, such as 2h, and no more than a year", length)
			}
			switch word {
			case "on":
				if err := a.needRoot("mesh quiet on"); err != nil {
					return err
				}
				if err := a.quietOn(cmd.Context(), length); err != nil {
					return err
				}
			case "off":
				if err := a.needRoot("mesh quiet off"); err != nil {
					return err
				}
				if err := a.quietOff(cmd.Context()); err != nil {
					return err
				}
			}
			state, err := quiet.Read(a.quietFile)
			if err != nil {
				return &advice.Error{Text: err.Error() + "; it counts as quiet", Todo: "`run0 veilor mesh quiet off` ends it and removes the file.", Cause: err}
			}
			view := quietView{Quiet: state != nil, State: state, now: time.Now()}
			if s, err := site.Load(a.site); err == nil {
				for _, v := range s.Services {
					view.services = append(view.services, v.Name)
				}
			}
			return output(cmd.OutOrStdout(), asJSON, view, view.text)
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().DurationVar(&length, "for", 0, "end it after this `time`, such as 2h")
	return cmd
}

// quietView is the answer of `mesh quiet`.
type quietView struct {
	Quiet    bool         `json:"quiet"`
	State    *quiet.State `json:"state,omitempty"`
	services []string
	now      time.Time
}

func (v quietView) text(w io.Writer) error {
	if !v.Quiet {
		_, err := fmt.Fprintln(w, "Not quiet: veilor says to the network what it needs to.")
		return err
	}
	when := "until you say otherwise, also after a restart"
	if u := v.State.Until; u != nil {
		when = "until " + u.Local().Format("2006-01-02 15:04")
		if v.State.Over(v.now) {
			when = "although it was to end at " + u.Local().Format("2006-01-02 15:04")
		}
	}
	_, err := fmt.Fprintf(w, `Quiet %s.
  stopped     tailscaled, veilor-ygg, connections to services, probes
  so          %s: not reachable; nobody in the tailnet reaches this laptop
  not ours    the clock, updates, the browser and the network's own programs go on
  the end     run0 veilor mesh quiet off
`, when, strings.Join(v.services, ", "))
	return err
}

// quietOn writes the wish first, so that nothing starts again behind it, and
// then stops what runs. What fails leaves the wish in place.
func (a *app) quietOn(ctx context.Context, length time.Duration) error {
	now := time.Now().Truncate(time.Second)
	wish := quiet.State{Since: now}
	if was := a.quietState(); was != nil {
		wish.Since, wish.Units = was.Since, was.Units
	}
	for _, u := range quietUnits {
		if unit.Active(ctx, u) && !slices.Contains(wish.Units, u) {
			wish.Units = append(wish.Units, u)
		}
	}
	if length > 0 {
		until := now.Add(length)
		wish.Until = &until
	}
	if err := quiet.Write(a.quietFile, wish); err != nil {
		return err
	}
	err := errors.Join(a.tellMesh(ctx, "/quiet", quietWish{true}), unit.Pause(ctx, quietUnits...))
	unit.Pause(ctx, quietTimer+".timer") // of an earlier wish, if there was one
	if length > 0 {
		err = errors.Join(err, unit.Later(ctx, length, quietTimer, a.self, "mesh", "quiet", "off"))
	}
	if err != nil {
		return &advice.Error{
			Text:  fmt.Sprintf("not everything is quiet: %v", err),
			Todo:  "Nothing of it starts again by itself. To be sure now, switch the network off: nmcli networking off",
			Cause: err,
		}
	}
	return nil
}

// quietOff ends the wish and starts what ran before it.
func (a *app) quietOff(ctx context.Context) error {
	wish := a.quietState()
	if err := quiet.Remove(a.quietFile); err != nil {
		return err
	}
	unit.Pause(ctx, quietTimer+".timer") // if there is one
	err := a.tellMesh(ctx, "/quiet", quietWish{false})
	if wish != nil && len(wish.Units) > 0 {
		err = errors.Join(err, unit.Resume(ctx, wish.Units...))
	}
	if err != nil {
		return &advice.Error{Text: fmt.Sprintf("the quiet is over, but not everything runs again: %v", err), Todo: "`veilor status` says what is missing.", Cause: err}
	}
	return nil
}

// tellMesh tells the daemon. One that does not run reads everything when it
// starts.
func (a *app) tellMesh(ctx context.Context, path string, what any) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	err := a.mesh().Post(ctx, path, what)
	if err != nil && !unit.Active(ctx, "veilor-mesh.service") {
		return nil
	}
	return err
}

// meshPrepareCommand is what veilor-mesh.service does as root before it starts.
func (a *app) meshPrepareCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "prepare",
		Hidden: true,
		Short:  "Do what needs root before the daemon starts",
		Long: `Prepare loads the filter that says which users of this machine may connect to the
services, and ends a quiet whose time is over. veilor-mesh.service runs it.`,
		Example: "  veilor mesh prepare",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot("mesh prepare"); err != nil {
				return err
			}
			f, err := loopfilter.ForMachine(os.DirFS(a.root), site.Resolver, loopfilter.Forwarder)
			if err != nil {
				return err
			}
			if err := f.Load(); err != nil {
				return err
			}
			wish := a.quietState()
			switch {
			case wish == nil || wish.Until == nil:
				return nil
			case wish.Over(time.Now()):
				return a.quietOff(cmd.Context())
			}
			// The timer that was to end it is gone with the last boot, or is
			// there and refuses to be made twice.
			if unit.Active(cmd.Context(), quietTimer+".timer") {
				return nil
			}
			left := max(time.Until(*wish.Until), time.Second)
			return unit.Later(cmd.Context(), left, quietTimer, a.self, "mesh", "quiet", "off")
		},
	}
}
