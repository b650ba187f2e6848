package tailnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"syscall"

	"tailscale.com/health"
	"tailscale.com/ipn"
)

// news is what is watched for on the bus: the state, and what hampers
// connections. Neither comes regularly.
const news = ipn.NotifyInitialState | ipn.NotifyInitialHealthState | ipn.NotifyRateLimit

// Watch calls changed whenever tailscaled says that its state, or what it knows to
// hamper connections, is another, until ctx ends or tailscaled does. It is a hint
// that something happened and no more: what tailscaled says is late or wrong when
// a network blocks it. Every user of the machine may watch.
func (c *Client) Watch(ctx context.Context, changed func()) error {
	// The library closes the stream with its context only.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := c.lc.WatchIPNBus(ctx, news)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return ErrStopped
		}
		return fmt.Errorf("watching tailscaled: %w", err)
	}
	defer w.Close()
	var last condition
	for {
		n, err := w.Next()
		if err != nil {
			return fmt.Errorf("watching tailscaled: %w", err)
		}
		if next := last.after(n); !next.equal(last) {
			if last.known {
				changed()
			}
			last = next
		}
	}
}

// condition is what Watch tells of.
type condition struct {
	known   bool // the first message, which says how it is, has come
	state   ipn.State
	hampers []string
}

func (c condition) equal(o condition) bool {
	return c.known == o.known && c.state == o.state && slices.Equal(c.hampers, o.hampers)
}

// after is the condition that a message brings. The messages before the state is
// known are the beginning, and no change.
func (c condition) after(n ipn.Notify) condition {
	if n.State != nil {
		c.state, c.known = *n.State, true
	}
	if n.Health != nil {
		c.hampers = nil
		for _, code := range slices.Sorted(maps.Keys(n.Health.Warnings)) {
			if hampers(n.Health.Warnings[code]) {
				c.hampers = append(c.hampers, string(code))
			}
		}
	}
	return c
}

func hampers(w health.UnhealthyState) bool { return w.ImpactsConnectivity }
