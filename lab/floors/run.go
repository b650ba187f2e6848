package floors

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/censor"
)

// Options of a measurement.
type Options struct {
	// Rounds is how often each condition is made.
	Rounds int
	// Idle is for how long nobody asks anything before each block that a floor
	// names. The first request then is the first connection for that long.
	Idle time.Duration
	// Progress is told what happens.
	Progress func(format string, args ...any)
}

const (
	// steadyLimit is for the tailnet to carry the product again. tailscaled was
	// measured at 4 s after a drop block, and up to 25 s after one of its control
	// server.
	steadyLimit = 90 * time.Second
	// answerLimit is when a cell is red: a person has given up.
	answerLimit = 15 * time.Second
	// freshLimit is the same for programs that have just started.
	freshLimit = 30 * time.Second
	// directLimit is for two machines to find each other past the relay. A laptop that
	// could not reach the control server was seen to ask it again after two minutes.
	directLimit = 3 * time.Minute
	// hitLimit is how long a rule may go without acting on anything.
	hitLimit = 30 * time.Second
)

// Measure makes each condition and fills its row, and says how the neighbours
// fared meanwhile.
func (t *Town) Measure(ctx context.Context, conditions []Condition, o Options) (rows []Row, n *Neighbours, err error) {
	rows = make([]Row, len(conditions))
	stop := t.watchNeighbours(ctx)
	defer func() { n = stop() }()
	began := time.Now()
	for round := range o.Rounds {
		for i, c := range conditions {
			o.Progress("%s (round %d of %d, after %v)", c.Title, round+1, o.Rounds, time.Since(began).Round(time.Second))
			rows[i].ID, rows[i].Title, rows[i].Floor, rows[i].PeerLost = c.ID, c.Title, c.Floor, c.PeerLost
			once := o
			if c.Floor == "" {
				once.Idle = 0
			}
			if err := t.measure(ctx, c, once, &rows[i]); err != nil {
				return rows, nil, fmt.Errorf("%s: %w", c.Title, err)
			}
		}
	}
	return rows, nil, nil
}

// clients are one of each layer in one mode, asking.
type clients struct {
	all  []*client
	stop func()
}

func (t *Town) clients(ctx context.Context, service site.Service, modes ...string) *clients {
	tailnet, yggdrasil := t.World.AddressesOf(service)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	cs := &clients{stop: func() { cancel(); wg.Wait() }}
	for _, mode := range modes {
		for layer, at := range map[string]netip.Addr{Product: service.Loopback, Tailnet: tailnet, Yggdrasil: yggdrasil} {
			c := newClient(t.World.Guest, layer, mode, service.Name, netip.AddrPortFrom(at, 443), t.Authority)
			cs.all = append(cs.all, c)
			wg.Go(func() { c.run(ctx) })
		}
	}
	return cs
}

// measure makes one condition once.
func (t *Town) measure(ctx context.Context, c Condition, o Options, row *Row) (err error) {
	service, err := t.service(c)
	if err != nil {
		return err
	}
	began := time.Now()
	if c.Direct {
		if err := t.hostAnew(ctx); err != nil {
			return fmt.Errorf("before it: %w", err)
		}
	}
	if err := t.steady(ctx, service); err != nil {
		return fmt.Errorf("before it: %w", err)
	}
	busy := t.clients(ctx, service, Established, New)
	defer func() { busy.stop() }()
	for _, p := range busy.all {
		limited, cancel := context.WithTimeout(ctx, steadyLimit)
		_, err := p.first(limited, began)
		cancel()
		if err != nil {
			return fmt.Errorf("before it, %s, %s: %w", p.layer, p.mode, err)
		}
	}
	if c.Direct {
		if err := t.direct(ctx, service); err != nil {
			return fmt.Errorf("before it: %w", err)
		}
	}
	if o.Idle > 0 {
		busy.stop()
		if err := pause(ctx, o.Idle); err != nil {
			return err
		}
	}
	lifted := false
	lift := func() error {
		if lifted {
			return nil
		}
		lifted = true
		return t.lift(ctx, c, row)
	}
	defer func() {
		if e := lift(); err == nil {
			err = e
		}
	}()
	from := time.Now()
	if err := t.World.Censor.Block(c.Rules...); err != nil {
		return err
	}
	if o.Idle > 0 {
		busy = t.clients(ctx, service, Established, New)
	}
	if c.Begin != nil {
		if err := c.Begin(ctx, t); err != nil {
			return err
		}
	}
	if c.NotReached != "" {
		if err := t.unreached(ctx, c.NotReached); err != nil {
			return err
		}
	}
	if c.Reached != "" {
		if err := t.reached(ctx, c.Reached); err != nil {
			return err
		}
	}
	if c.After {
		if err := lift(); err != nil {
			return err
		}
	}
	if c.After || c.Since {
		from = time.Now()
	}
	var admin sync.WaitGroup
	if c.Floor != "" && c.NA[administrator] == "" {
		admin.Go(func() { row.administer(t.administer(ctx, from)) })
	}
	t.collect(ctx, c, row, busy, from, answerLimit, o)
	busy.stop()
	admin.Wait()
	if row.Admin != nil {
		o.Progress("  the administrator: %v s", row.Admin.Rounds)
	}
	if c.NA[Fresh] == "" {
		if err := t.Laptop.Restart(ctx); err != nil {
			return err
		}
		from := time.Now()
		fresh := t.clients(ctx, service, Fresh)
		t.collect(ctx, c, row, fresh, from, freshLimit, o)
		fresh.stop()
	} else {
		for _, layer := range layers {
			row.add(Cell{Layer: layer, Mode: Fresh, Result: NA, Reason: c.NA[Fresh]})
		}
	}
	if err := t.exited(); err != nil {
		return err
	}
	if err := lift(); err != nil {
		return err
	}
	back := time.Now()
	if err := t.steady(ctx, service); err != nil {
		return fmt.Errorf("after it: %w", err)
	}
	row.Return = max(row.Return, time.Since(back).Seconds())
	return nil
}

// cell is of one round.
func cell(layer, mode string, took time.Duration, err error) Cell {
	if err != nil {
		return Cell{Layer: layer, Mode: mode, Result: Red, Reason: err.Error(), Rounds: []float64{-1}}
	}
	return Cell{Layer: layer, Mode: mode, Result: Green, Seconds: took.Seconds(), Rounds: []float64{took.Seconds()}}
}

// collect waits for the first answer of each client, all at once.
func (t *Town) collect(ctx context.Context, c Condition, row *Row, cs *clients, from time.Time, limit time.Duration, o Options) {
	ctx, cancel := context.WithDeadline(ctx, from.Add(limit))
	defer cancel()
	cells := make([]Cell, len(cs.all))
	var wg sync.WaitGroup
	for i, p := range cs.all {
		wg.Go(func() {
			took, err := p.first(ctx, from)
			cells[i] = cell(p.layer, p.mode, took, err)
		})
	}
	wg.Wait()
	for _, layer := range layers {
		for _, cell := range cells {
			if cell.Layer == layer {
				row.add(cell)
				o.Progress("  %-10s %-12s %-5s %6.2f s  %s", cell.Layer, cell.Mode, cell.Result, cell.Seconds, cell.Reason)
			}
		}
	}
}

// lift ends a condition, and sees to it that it was one.
func (t *Town) lift(ctx context.Context, c Condition, row *Row) error {
	hit := c.Hit
	if len(hit) == 0 {
		for _, r := range c.Rules {
			hit = append(hit, r.Name)
		}
	}
	var missed error
	if c.Count != nil {
		name, n, err := c.Count(t)
		if err != nil {
			return err
		}
		if n == 0 {
			missed = fmt.Errorf("counting %s: %w", name, censor.ErrMissed)
		}
		row.hit(name, n)
	}
	for _, name := range hit {
		limited, cancel := context.WithTimeout(ctx, hitLimit)
		if err := t.World.Censor.AwaitHit(limited, name); err != nil && missed == nil {
			missed = err
		}
		cancel()
	}
	if c.End != nil {
		if err := c.End(ctx, t); err != nil {
			return err
		}
	}
	hits, err := t.World.Censor.Clear()
	if err != nil {
		return err
	}
	for name, h := range hits {
		row.hit(name, h.Total())
	}
	return missed
}

// steady waits until the product answers for a service over the tailnet, and
// Yggdrasil answers.
func (t *Town) steady(ctx context.Context, service site.Service) error {
	ctx, cancel := context.WithTimeout(ctx, steadyLimit)
	defer cancel()
	from := time.Now()
	cs := t.clients(ctx, service, New)
	defer cs.stop()
	for _, c := range cs.all {
		if _, err := c.first(ctx, from); err != nil {
			return fmt.Errorf("%s does not answer within %v: %w", c.layer, steadyLimit, err)
		}
	}
	for {
		layer, err := t.layer(service)
		if err == nil && layer == Tailnet {
			return nil
		}
		if err := pause(ctx, beat); err != nil {
			return fmt.Errorf("the product is on %q after %v, not on the tailnet (%v)", layer, steadyLimit, err)
		}
	}
}
