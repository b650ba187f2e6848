// Command veilor is the program on the laptop: it joins the mesh, carries connections to
// the services over whichever layer works, and says how things are.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/quiet"
	"github.com/veilor/veilor-os/internal/tailnet"
)

// Exit codes of every veilor program.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

// app is what the commands share: where things are on this machine.
type app struct {
	// root is where /proc, /sys and /etc are looked up.
	root string
	// site is the site file that the image carries.
	site string
	// The daemons' sockets.
	meshSocket, tailscaledSocket, yggSocket string
	// timeline is where the daemon remembers what happened, and quietFile the
	// wish that it be quiet.
	timeline, quietFile string
	// self is this program, for what runs later.
	self string

	euid     func() int
	terminal func(fd uintptr) bool
}

func defaults() *app {
	return &app{
		root:             "/",
		site:             "/usr/share/veilor/site.yaml",
		meshSocket:       meshsock.Path,
		tailscaledSocket: tailnet.Socket,
		yggSocket:        "/run/veilor-ygg/admin.sock",
		timeline:         "/var/lib/veilor-mesh/timeline",
		quietFile:        quiet.Path,
		self:             "/usr/bin/veilor",
		euid:             os.Geteuid,
		terminal:         func(fd uintptr) bool { return term.IsTerminal(int(fd)) },
	}
}

func main() { os.Exit(defaults().run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run executes one command line and returns the exit code.
func (a *app) run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "veilor: %v\n", err)
	if todo := advice.Todo(err); todo != "" {
		fmt.Fprintf(stderr, "  %s\n", strings.ReplaceAll(todo, "\n", "\n  "))
	}
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "  See: %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "veilor",
		Short: "Joins the mesh and says how things are",
		Long: `veilor keeps this laptop's services reachable: it joins the mesh, carries
connections over whichever layer works, and says how things are.`,
		Example: `  veilor status
  run0 veilor join`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE:              group,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.site, "site", a.site, "site file")
	flags.StringVar(&a.root, "root", a.root, "where /proc, /sys and /etc are")
	flags.StringVar(&a.meshSocket, "mesh-socket", a.meshSocket, "socket of veilor-mesh")
	flags.StringVar(&a.tailscaledSocket, "tailscaled-socket", a.tailscaledSocket, "socket of tailscaled")
	flags.StringVar(&a.yggSocket, "ygg-socket", a.yggSocket, "admin socket of veilor-ygg")
	flags.StringVar(&a.timeline, "timeline", a.timeline, "where veilor-mesh remembers what happened")
	flags.StringVar(&a.quietFile, "quiet-file", a.quietFile, "the wish that it be quiet")
	for _, name := range []string{"site", "root", "mesh-socket", "tailscaled-socket", "ygg-socket", "timeline", "quiet-file"} {
		flags.MarkHidden(name) // for tests, and for those who look for them
	}
	root.AddCommand(a.statusCommand(), a.joinCommand(), a.leaveCommand(), a.meshCommand(), a.versionCommand())
	return root
}

// group is what a command does that only has others below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q", args[0])}
	}
	cmd.SetOut(cmd.ErrOrStderr())
	cmd.Help()
	return usageError{errors.New("no command given")}
}

// noArgs refuses arguments, as a mistake of usage.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q: no argument is wanted here", args[0])}
	}
	return nil
}

// needRoot refuses everybody else.
func (a *app) needRoot(command string) error {
	if a.euid() == 0 {
		return nil
	}
	return &advice.Error{
		Text: command + " changes the system, which needs root",
		Todo: "Run it as: run0 veilor " + command,
	}
}
