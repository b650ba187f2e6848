package yggdrasil

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/veilor/veilor-os/internal/linkwatch"
	"github.com/veilor/veilor-os/internal/wake"
)

// watchNetwork says when the machine may stand in another network, and whether it
// was asleep, until ctx ends. Without it peers that did not answer are tried
// again after up to peering.MaxBackoff, and a peering that died meanwhile is
// missed with the next keepalive.
func watchNetwork(ctx context.Context, log *slog.Logger, moved chan<- bool) {
	tell := func(slept bool) {
		select {
		case moved <- slept:
		case <-ctx.Done():
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := linkwatch.Watch(ctx, func() { tell(false) }); err != nil {
			log.Warn("changes of the network will be noticed late", "err", err)
		}
	})
	wg.Go(func() {
		err := wake.Watch(ctx, func(asleep time.Duration) {
			log.Info("awake again", "asleep", asleep.Round(time.Second))
			tell(true)
		})
		if err != nil {
			log.Warn("that the machine was asleep will be noticed late", "err", err)
		}
	})
}
