package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/unit"
)

// leaveLimit bounds leaving; with the control server blocked tailscaled tries
// for some seconds to tell it.
const leaveLimit = 30 * time.Second

func (a *app) leaveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "leave",
		Short: "Leave the tailnet",
		Long: `Leave gives up this laptop's place in the tailnet and stops tailscaled. The way
back is a new key.`,
		Example: "  run0 veilor leave",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot("leave"); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), leaveLimit)
			defer cancel()
			// A stopped tailscaled may still hold an identity, so it is asked.
			client := tailnet.New(a.tailscaledSocket)
			if _, err := client.State(ctx); errors.Is(err, tailnet.ErrStopped) {
				if err := unit.Start(ctx, tailnet.Unit); err != nil {
					return err
				}
			}
			was, told := client.Leave(ctx)
			if err := unit.Stop(context.WithoutCancel(ctx), tailnet.Unit); err != nil {
				return errors.Join(told, err)
			}
			if told != nil {
				return &advice.Error{
					Text:  fmt.Sprintf("tailscaled is stopped, but the control server may not know it: %v", told),
					Todo:  "Tell the operator to remove this laptop.",
					Cause: told,
				}
			}
			if !was.Joined {
				fmt.Fprintln(cmd.OutOrStdout(), "This laptop had not joined. Nothing is left to undo.")
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has left. To come back, get a new key and: run0 veilor join\n", was.Hostname)
			return nil
		},
	}
}
