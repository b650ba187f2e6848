package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/footprint"
	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/linkwatch"
	"github.com/veilor/veilor-os/internal/loopfilter"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/names"
	"github.com/veilor/veilor-os/internal/quiet"
	"github.com/veilor/veilor-os/internal/status"
	"github.com/veilor/veilor-os/internal/timeline"
	"github.com/veilor/veilor-os/internal/wake"
)

// serve runs the daemon until ctx ends. Everything is listened on before
// systemd is told that the daemon is ready.
func (a *app) serve(ctx context.Context, log *slog.Logger, resolver netip.AddrPort) error {
	s, err := a.siteInForce(log)
	if err != nil {
		return err
	}
	services, zone, err := carried(s, resolver.Addr())
	if err != nil {
		return err
	}
	dns, err := names.Listen(ctx, resolver, zone)
	if err != nil {
		return err
	}
	fwd := forward.New(services, log, nil)
	if err := fwd.Listen(ctx); err != nil {
		return err
	}
	socket, err := meshsock.Listen(ctx, a.meshSocket)
	if err != nil {
		return err
	}
	ring := timeline.Open(a.timeline, log)
	g, ctx := errgroup.WithContext(ctx)
	watching, changed := watch(ctx, fwd)
	// A layer that comes up may lead to a newer directory.
	cameUp := make(chan struct{}, 1)
	fwd.Tell(func(n forward.News) {
		ring.Add(n)
		changed()
		if n.What == forward.Switched && n.To != "" {
			select {
			case cameUp <- struct{}{}:
			default:
			}
		}
	})
	wish, err := quiet.Read(a.quietFile)
	if err != nil {
		log.Warn("being quiet, to be sure", "err", err)
	}
	if wish != nil {
		fwd.Quiet(true)
	}
	follows := &follower{app: a, log: log, resolver: resolver.Addr(), fwd: fwd, dns: dns, changed: changed, ctx: ctx}
	follows.site.Store(s)
	g.Go(func() error { return dns.Serve(ctx) })
	g.Go(func() error { return fwd.Serve(ctx) })
	g.Go(func() error {
		return meshsock.Server{Handler: questions(fwd, ring, watching, follows.answer), Allow: mayAsk}.Serve(ctx, socket)
	})
	g.Go(func() error { ring.Keep(ctx); return nil })
	g.Go(func() error { a.refresh(ctx, log, follows, cameUp); return nil })
	g.Go(func() error { footprint.Keep(ctx, log); return nil })
	g.Go(func() error {
		// Without it a lost layer is found by the next connection.
		if err := linkwatch.Watch(ctx, func() { fwd.LinkChanged(ctx); changed() }); err != nil {
			log.Warn("changes of the network will be noticed late", "err", err)
		}
		return nil
	})
	a.hints(ctx, g, log, fwd)
	g.Go(func() error {
		err := wake.Watch(ctx, func(asleep time.Duration) {
			log.Info("awake again", "asleep", asleep.Round(time.Second))
			fwd.LinkChanged(ctx)
			changed()
		})
		if err != nil {
			log.Warn("that the laptop was asleep will be noticed late", "err", err)
		}
		return nil
	})
	for _, v := range services {
		log.Info("serving", "service", v.Name, "address", v.Listen, "ports", v.Ports)
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

// mayAsk lets in root, people, and whoever runs the daemon by hand.
func mayAsk(uid uint32) bool { return loopfilter.LoggedIn(uid) || int(uid) == os.Getuid() }

// questions is what the socket answers.
func questions(fwd *forward.Forwarder, ring *timeline.Ring, watching, newDirectory http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		meshsock.Answer(w, map[string]any{"services": status.Services(fwd.Status(r.Context()))})
	})
	mux.HandleFunc("GET /test", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		checks, ok := fwd.Check(r.Context(), name)
		if !ok {
			http.NotFound(w, r)
			return
		}
		meshsock.Answer(w, status.TrialsOf(name, checks))
	})
	mux.HandleFunc("GET /explain", func(w http.ResponseWriter, r *http.Request) {
		e, ok := fwd.Explain(r.URL.Query().Get("name"))
		if !ok {
			http.NotFound(w, r)
			return
		}
		meshsock.Answer(w, status.Explain(e, ring.Events(), time.Now()))
	})
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, _ *http.Request) {
		meshsock.Answer(w, status.Log{Events: ring.Events()})
	})
	mux.HandleFunc("GET /watch", watching)
	mux.HandleFunc("POST /directory", meshsock.RootOnly(newDirectory))
	mux.HandleFunc("POST /quiet", meshsock.RootOnly(func(w http.ResponseWriter, r *http.Request) {
		var wish quietWish
		if err := json.NewDecoder(r.Body).Decode(&wish); err != nil {
			http.Error(w, `write {"on":true} or {"on":false}`, http.StatusBadRequest)
			return
		}
		fwd.Quiet(wish.On)
	}))
	return mux
}

// quietWish is the body of POST /quiet.
type quietWish struct {
	On bool `json:"on"`
}
