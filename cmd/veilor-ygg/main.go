// Command veilor-ygg is a Yggdrasil node: the fallback of a laptop, and the edge that
// laptops peer with. It is the upstream library with one peer at a time, a
// transport of its own and a packet filter in front of its interface.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/cli"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return cli.Exit(stderr, cmd, err)
}

func command() *cobra.Command {
	root := cli.Prepare(&cobra.Command{
		Use:   "veilor-ygg",
		Short: "A Yggdrasil node with one peer at a time",
		Long: `veilor-ygg is a Yggdrasil node: the fallback of a laptop, and the edge that
laptops peer with. It has one peer at a time: an edge, and a public peer only
while no edge answers.`,
		Example: "  veilor-ygg run --config /usr/share/veilor/ygg.json",
	})
	root.AddCommand(runCommand(), genkeyCommand(), addressCommand())
	return root
}
