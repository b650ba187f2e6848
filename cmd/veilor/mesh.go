package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/names"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/status"
)

const (
	// dnsPort is where resolvers ask.
	dnsPort = 53
	// maxAsking is how many may ask the socket at once. Any user may; a person
	// and a few programs of the desktop do.
	maxAsking = 16
	// headerLimit ends a client of the socket that does not ask.
	headerLimit = 5 * time.Second
	// stopLimit is how long open questions may take when the daemon stops.
	stopLimit = 3 * time.Second
)

func (a *app) meshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "mesh",
		Short:   "The daemon that carries connections",
		Example: "  veilor mesh run",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	var (
		resolver string
		debug    bool
	)
	run := &cobra.Command{
		Use:   "run",
		Short: "Answer for the zone and carry connections, until stopped",
		Long: `Run answers DNS questions for the zone of the services, carries connections to
them over whichever layer works, and answers GET /status on its socket.

veilor-mesh.service runs it; nobody needs to run it by hand.`,
		Example: "  veilor mesh run\n  curl --unix-socket /run/veilor/mesh.sock http://mesh/status",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level, ReplaceAttr: noTime}))
			addr, err := netip.ParseAddrPort(resolver)
			if err != nil {
				return usageError{fmt.Errorf("--dns: %w", err)}
			}
			return a.serve(cmd.Context(), log, addr)
		},
	}
	run.Flags().BoolVar(&debug, "debug", false, "log every connection that no layer answers")
	run.Flags().StringVar(&resolver, "dns", netip.AddrPortFrom(site.Resolver, dnsPort).String(), "where to answer for the zone")
	run.Flags().MarkHidden("dns")
	cmd.AddCommand(run)
	return cmd
}

// noTime leaves the time to the journal.
func noTime(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return attr
}

// serve runs the daemon until ctx ends. Everything is listened on before
// systemd is told that the daemon is ready.
func (a *app) serve(ctx context.Context, log *slog.Logger, resolver netip.AddrPort) error {
	s, err := site.Load(a.site)
	if err != nil {
		return err
	}
	addrs := map[string]netip.Addr{}
	for _, v := range s.Services {
		addrs[v.Name] = v.Loopback
	}
	zone, err := names.NewZone(s.Zone, resolver.Addr(), addrs)
	if err != nil {
		return err
	}
	dns, err := names.Listen(ctx, resolver, zone)
	if err != nil {
		return err
	}
	services, err := forward.FromSite(s)
	if err != nil {
		return err
	}
	fwd := forward.New(services, log, nil)
	if err := fwd.Listen(ctx); err != nil {
		return err
	}
	socket, err := listenUnix(ctx, a.meshSocket)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return dns.Serve(ctx) })
	g.Go(func() error { return fwd.Serve(ctx) })
	g.Go(func() error { return answer(ctx, socket, fwd) })
	for _, v := range s.Services {
		log.Info("serving", "service", v.Name, "address", v.Loopback, "ports", v.Ports)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling systemd that we are ready", "err", err)
	}
	g.Go(func() error {
		<-ctx.Done()
		daemon.SdNotify(false, daemon.SdNotifyStopping) // nothing hangs on it
		return nil
	})
	return g.Wait()
}

// listenUnix opens the status socket for every user. It takes the path over
// from a process that is gone.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("opening the status socket: somebody answers on %s; is veilor-mesh running already? (`systemctl status veilor-mesh`)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // it only answers questions
		l.Close()
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	return l, nil
}

// answer serves GET /status until ctx ends.
func answer(ctx context.Context, l net.Listener, fwd *forward.Forwarder) error {
	asking := make(chan struct{}, maxAsking)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		select {
		case asking <- struct{}{}:
			defer func() { <-asking }()
		default:
			http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"services": status.Services(fwd.Status(r.Context()))})
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: headerLimit, IdleTimeout: headerLimit, MaxHeaderBytes: 4 << 10}
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		if srv.Shutdown(limit) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answering on the status socket: %w", err)
	}
	return nil
}
