package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/footprint"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

const (
	defaultConfig = "/usr/share/veilor/ygg.json"
	defaultKey    = "/var/lib/veilor-ygg/key.pem"
)

func runCommand() *cobra.Command {
	var config, siteFile, dir string
	var debug bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node until SIGTERM",
		Long: `Run the node until SIGTERM. It needs CAP_NET_ADMIN and /dev/net/tun.

On the first start it makes its key. It loads a packet filter that closes its
interface, then makes the interface, then looks for a peer. systemd is told when
the interface is up; there may be no peer yet, and a machine without a network
keeps looking.

A laptop dials the edges of the signed directory, where it has one, and those of
the configuration otherwise. When the directory gets other edges, the node starts
anew by itself.

GroupPasswordPath is a file with the password that the site's nodes share, and
from when on it counts (` + "`veilor-forge directory reserve --help`" + `). Who lacks it
gets no answer from this node, wherever it comes from. A laptop runs without it
until it is brought; a server does not start without the file. A change is seen
within a minute, and the node then starts anew.

On a server, ControlListen is a socket on which root and the daemon's group say
who is admitted, while it runs: GET /v1/nodes, PUT and DELETE /v1/nodes/KEY. Who
is revoked stays so; NodesPath keeps it. With SitePath, and Host or Tier, the
tiers of the site decide which ports are open, and to whom.

A packet filter of veilor that somebody else changes or removes is put back: the
node's own, and on a laptop those of the services' addresses and of tailscaled.

What is told on standard error (the journal, under systemd) names peers and
reasons, and neither keys nor the addresses of guests.`,
		Example: "  veilor-ygg run --config /usr/share/veilor/ygg.json",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := yggdrasil.LoadConfig(config)
			if err != nil {
				return err
			}
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			defer daemon.SdNotify(false, daemon.SdNotifyStopping)
			go footprint.Keep(cmd.Context(), log)
			tick := time.NewTicker(lookAgain)
			defer tick.Stop()
			group := grouped(log, time.Now)
			if _, err := group(cfg); err != nil {
				return err
			}
			read := func() *yggdrasil.Config {
				c, err := group(dialled(cfg, siteFile, dir, log))
				if err != nil { // not after the first
					c = cfg
				}
				return c
			}
			return follow(cmd.Context(), read, tick.C, func(ctx context.Context, cfg *yggdrasil.Config) error {
				return yggdrasil.Run(ctx, cfg, log, func() {
					log.Info("ready", "interface", cfg.IfName)
					// Without systemd there is nobody to notify and no error.
					if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
						log.Warn("notifying systemd", "err", err)
					}
				}, kept(cfg, siteFile, dir)...)
			})
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "configuration `FILE`")
	cmd.Flags().StringVar(&siteFile, "site", defaultSite, "site `FILE` of the image")
	cmd.Flags().StringVar(&dir, "directory", directory.Dir, "`DIRECTORY` of the signed directory")
	cmd.Flags().BoolVar(&debug, "debug", false, "say more on standard error")
	return cmd
}
