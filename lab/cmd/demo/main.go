// Command demo walks the whole path once: from the recipe to a laptop that
// stays reachable while the network is taken away. See `make demo`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/lab/act"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func main() {
	var o act.Options
	flag.StringVar(&o.Source, "source", ".", "the checkout of veilor-os")
	flag.StringVar(&o.Out, "out", "out", "where report and logs go")
	flag.StringVar(&o.Cache, "cache", "out/cache", "what later runs use again")
	flag.BoolVar(&o.Short, "short", false, "leave no step out, but wait less")
	flag.StringVar(&o.Last, "last", "", "the `act` to stop after; all are played without it")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), `demo builds, signs, installs and boots veilor-os in a laboratory on this machine,
joins it to a mesh and takes the network away. It needs root, and leaves nothing
behind but its report and a cache.

Acts: %s

  demo --out out          everything, with out/report.html at the end
  demo --short            the same with short waits

`, strings.Join(act.Names(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.Last != "" && !slices.Contains(act.Names(), o.Last) {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(sandbox.Run(func(ctx context.Context) int { return run(ctx, o) }))
}

func run(ctx context.Context, o act.Options) int {
	o.Console = console.For(os.Stdout)
	err := act.Run(ctx, o)
	o.Console.Close()
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: stopped; nothing of it is left running")
		return 130
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	return 1
}
