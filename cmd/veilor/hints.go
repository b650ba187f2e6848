package main

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

const (
	// againMin and againMax bound the pause before a daemon that has gone is
	// listened to again. Connecting to a socket of this machine costs nothing
	// that anybody could measure, and what is missed meanwhile is a hint.
	againMin = time.Second
	againMax = time.Minute
)

// hints passes on what the overlays' own daemons tell, until ctx ends: an earlier
// question to the layer, and never an answer.
func (a *app) hints(ctx context.Context, g *errgroup.Group, log *slog.Logger, fwd *forward.Forwarder) {
	for _, d := range []struct {
		layer mesh.Layer
		watch func(context.Context, func()) error
	}{
		{mesh.Tailnet, tailnet.New(a.tailscaledSocket).Watch},
		{mesh.Yggdrasil, func(ctx context.Context, told func()) error {
			return yggdrasil.Watch(ctx, a.yggSocket, func(yggdrasil.PeerState) { told() })
		}},
	} {
		told := func() {
			log.Debug("a layer's daemon tells of a change", "layer", d.layer)
			fwd.Hint(d.layer)
		}
		g.Go(func() error {
			listen(ctx, time.Now, time.After, func(ctx context.Context) error { return d.watch(ctx, told) }, func(err error) {
				log.Debug("a layer's daemon went", "layer", d.layer, "err", err)
				fwd.Hint(d.layer)
			})
			return nil
		})
	}
}

// listen runs watch again and again until ctx ends. lost is called when one ends
// that had lasted, which means that it had begun.
func listen(ctx context.Context, now func() time.Time, after func(time.Duration) <-chan time.Time, watch func(context.Context) error, lost func(error)) {
	for pause := againMin; ; {
		began := now()
		err := watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if now().Sub(began) >= againMin {
			pause = againMin
			lost(err)
		}
		select {
		case <-after(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, againMax)
	}
}
