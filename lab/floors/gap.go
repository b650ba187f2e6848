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
// connections of the product.
func (t *Town) MeasureGap(ctx context.Context, blocks int, o Options) (*Gap, error) {
	rules := []censor.Rule{censor.UDP(), censor.Host("control", both(world.Control)...)}
	var took []float64
	for n := range blocks {
		o.Progress("new connections after block %d of %d", n+1, blocks)
		if err := t.steady(ctx, t.Site.Services[0]); err != nil {
			return nil, err
		}
		if err := t.World.Censor.Block(rules...); err != nil {
			return nil, err
		}
		answers, err := t.burst(ctx)
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
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", n+1, err)
		}
		took = append(took, answers...)
	}
	slices.Sort(took)
	at := func(percent int) float64 { return took[(len(took)-1)*percent/100] }
	return &Gap{Blocks: blocks, Connections: len(took), Median: at(50), P95: at(95), Max: at(100)}, nil
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
