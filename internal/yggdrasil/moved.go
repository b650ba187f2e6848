package yggdrasil

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/veilor/veilor-os/internal/linkwatch"
	"github.com/veilor/veilor-os/internal/wake"
)

// watchNetwork says when the machine may stand in another network, and whether it
// was asleep, until ctx ends. Without it peers that did not answer are tried
// again after up to peering.MaxBackoff, and a peering that died meanwhile is
// missed with the next keepalive. look is called before each.
func watchNetwork(ctx context.Context, log *slog.Logger, moved chan<- bool, look func()) {
	tell := func(slept bool) {
		look()
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

// gone returns an error once the interface that we made is not there any more.
// The library's reader ends then with a line in the log, and the node would live
// on, peered and of no use to anybody. One of the same name that somebody else
// has made since is not ours: hence the index, which the next one does not get.
func gone(ours *net.Interface) error {
	// Not InterfaceByName, whose error may also be that there was no descriptor.
	all, err := net.Interfaces()
	if err != nil {
		return nil // not known; the next change is the next look
	}
	if slices.ContainsFunc(all, func(i net.Interface) bool { return i.Name == ours.Name && i.Index == ours.Index }) {
		return nil
	}
	return fmt.Errorf("watching the network: the interface %s is gone; somebody removed or renamed it, and only a new start makes another", ours.Name)
}
