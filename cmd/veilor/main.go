// Command veilor is the program on the laptop: it joins the mesh, carries connections to
// the services over whichever layer works, and says how things are.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/quiet"
	"github.com/veilor/veilor-os/internal/tailnet"
)

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
	return cli.Exit(stderr, cmd, err)
}

func (a *app) command() *cobra.Command {
	root := cli.Prepare(&cobra.Command{
		Use:   "veilor",
		Short: "Joins the mesh and says how things are",
		Long: `veilor keeps this laptop's services reachable: it joins the mesh, carries
connections over whichever layer works, and says how things are.`,
		Example: `  veilor status
  run0 veilor join`,
	})
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
	root.AddCommand(a.statusCommand(), a.joinCommand(), a.leaveCommand(), a.meshCommand(), a.notifyCommand(), a.versionCommand())
	return root
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
