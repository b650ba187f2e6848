package floors

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// perBlock new connections begin in the second after each block.
	perBlock = 10
	// spread is between two of them.
	spread = 100 * time.Millisecond
)

// MeasureGap blocks UDP and the control server so many times and watches new
// connections of the product: either beside a download that is under way, or, with
// o.Idle, after so long a silence that the router has forgotten everything.
func (t *Town) MeasureGap(ctx context.Context, blocks int, o Options) (*Gap, error) {
	g := &Gap{Blocks: blocks}
	var took []float64
	for n := range blocks {
		o.Progress("new connections after block %d of %d", n+1, blocks)
		answers, stalled, err := t.gap(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", n+1, err)
		}
		took = append(took, answers...)
		if o.Idle == 0 {
			g.Downloads++
			g.Stalled = max(g.Stalled, stalled)
		}
	}
	slices.Sort(took)
	at := func(percent int) float64 { return took[(len(took)-1)*percent/100] }
	g.Connections, g.Median, g.P95, g.Max = len(took), at(50), at(95), at(100)
	return g, nil
}

// gap makes one block, and returns how many seconds each new connection took to its
// answer, and a download to its error.
func (t *Town) gap(ctx context.Context, o Options) (answers []float64, stalled float64, err error) {
	if err := t.steady(ctx, t.Site.Services[0]); err != nil {
		return nil, 0, err
	}
	var d *download
	if o.Idle > 0 {
		// A download would keep everything awake.
		if err := pause(ctx, o.Idle); err != nil {
			return nil, 0, err
		}
	} else {
		if d, err = t.download(ctx); err != nil {
			return nil, 0, fmt.Errorf("downloading before it: %w", err)
		}
		defer d.cancel()
	}
	rules := []censor.Rule{censor.UDP(), censor.Host("control", both(world.Control)...)}
	from := time.Now()
	if err := t.World.Censor.Block(rules...); err != nil {
		return nil, 0, err
	}
	answers, err = t.burst(ctx)
	if d != nil && err == nil {
		stalled, err = d.stalled(from)
	}
	for _, r := range rules {
		limited, cancel := context.WithTimeout(ctx, hitLimit)
		if e := t.World.Censor.AwaitHit(limited, r.Name); err == nil {
			err = e
		}
		cancel()
	}
	if _, e := t.World.Censor.Clear(); err == nil {
		err = e
	}
	return answers, stalled, err
}

// burst opens perBlock connections, one after the other, and returns how many
// seconds each took to its answer.
func (t *Town) burst(ctx context.Context) ([]float64, error) {
	service := t.Site.Services[0]
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	took, errs := make([]float64, perBlock), make([]error, perBlock)
	var wg sync.WaitGroup
	for i := range perBlock {
		wg.Go(func() {
			if errs[i] = pause(ctx, time.Duration(i)*spread); errs[i] != nil {
				return
			}
			c := newClient(t.World.Guest, Product, New, service.Name, netip.AddrPortFrom(service.Loopback, 443), t.Authority)
			began := time.Now()
			errs[i] = c.fetch(ctx)
			took[i] = time.Since(began).Seconds()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return took, nil
}
