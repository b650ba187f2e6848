// Command veilor-ygg is a Yggdrasil node: the fallback of a laptop, and the edge that
// laptops peer with. It is the upstream library with one peer at a time, a
// transport of its own and a packet filter in front of its interface.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes of every veilor program.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "veilor-ygg: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "see `%s --help`\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "veilor-ygg",
		Short: "A Yggdrasil node with one peer at a time",
		Long: `veilor-ygg is a Yggdrasil node: the fallback of a laptop, and the edge that
laptops peer with. It has one peer at a time: an edge, and a public peer only
while no edge answers.`,
		Example:           "  veilor-ygg run --config /usr/share/veilor/ygg.json",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			cmd.SetOut(cmd.ErrOrStderr())
			cmd.Help()
			return usageError{errors.New("no command")}
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(runCommand(), genkeyCommand(), addressCommand())
	return root
}

// noArgs refuses arguments, as a mistake of usage.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q: no argument is wanted here", args[0])}
	}
	return nil
}
