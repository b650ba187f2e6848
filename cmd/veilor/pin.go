package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/fence"
	"github.com/veilor/veilor-os/internal/pins"
	"github.com/veilor/veilor-os/internal/site"
)

// meshPinCommand is for veilor-pins.service.
func (a *app) meshPinCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pin",
		Short: "Write the control server's addresses into /etc/hosts",
		Long: `Pin writes the addresses of the control server and its relays, as the directory has
them, into a block of /etc/hosts, so that no DNS can hide them.

veilor-pins.service runs it, at boot and after every change of the directory.`,
		Example: "  run0 veilor mesh pin",
		Hidden:  true,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot("mesh pin"); err != nil {
				return err
			}
			d, err := a.currentDirectory(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			var hosts []pins.Host
			for _, s := range d.Servers() {
				if len(s.Addresses) == 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "veilor: the directory has no address of %s; a lying DNS can hide it\n", s.Name)
				}
				hosts = append(hosts, pins.Host{Name: s.Name, Addresses: s.Addresses})
			}
			file := filepath.Join(a.root, pins.File)
			changed, others, err := pins.Apply(file, hosts)
			for _, o := range others {
				fmt.Fprintf(cmd.ErrOrStderr(), "veilor: %s has a line of its own for a pinned name, and some programs will use that: %s\n", file, o)
			}
			if err != nil {
				return err
			}
			if changed {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: written\n", file)
			}
			return nil
		},
	}
}

// meshFenceCommand is for tailscaled.service, before tailscaled starts.
func (a *app) meshFenceCommand() *cobra.Command {
	group := fence.Group
	cmd := &cobra.Command{
		Use:   "fence",
		Short: "Keep tailscaled to the addresses in the directory",
		Long: `Fence loads packet filter rules that keep tailscaled from asking anybody but the
control server, its relays and the peers.

tailscaled.service runs it before each start, and veilor-pins.service after every
change of the directory.`,
		Example: "  run0 veilor mesh fence",
		Hidden:  true,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot("mesh fence"); err != nil {
				return err
			}
			d, err := a.currentDirectory(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			err = fence.Follow(d, group)
			if errors.Is(err, fence.ErrNoGroup) || errors.Is(err, fence.ErrNoGate) {
				fmt.Fprintf(cmd.ErrOrStderr(), "veilor: %v\n", err)
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringVar(&group, "group", group, "control `group` of tailscaled below /sys/fs/cgroup")
	return cmd
}

// currentDirectory is the directory in force. What could not be read goes to
// warn.
func (a *app) currentDirectory(warn io.Writer) (directory.Directory, error) {
	s, err := site.Load(a.site)
	if err != nil {
		return directory.Directory{}, err
	}
	d, err := directory.Current(filepath.Join(a.root, directory.Dir), s)
	if err == nil && d.Damage != nil {
		fmt.Fprintf(warn, "veilor: %v\n", d.Damage)
	}
	return d, err
}

// writeJSON is for answers that programs read.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
