package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/cli"
)

// version is the program's; a release sets it with -ldflags "-X main.version=…".
var version = "dev"

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of veilor and of the system",
		Example: "  veilor version\n  veilor version --json",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			os := a.osRelease()
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
					"veilor": version, "go": runtime.Version(), "os": os.name, "system": os.version,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "veilor %s (%s) on %s\n", version, runtime.Version(), strings.TrimSpace(os.name+" "+os.version))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
