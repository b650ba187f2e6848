// Package censor is the ISP that takes the network away from the laptop: rules
// in the router's nftables, and inspectors for what only shows when packets are
// put together. Each has counters, so that a test can tell a block that bites
// from one that misses.
//
// What was established before falls as well, unless a rule says otherwise. Rules
// act on the laptop's leg only, and on both families; between its home and its peers the network stays
// as it was.
package censor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Hits are packets that a rule has acted on; for a rule that leads flows astray,
// their first packets.
type Hits struct {
	// Up are from the laptop, Down to it.
	Up, Down uint64
}

// Total is in both directions.
func (h Hits) Total() uint64 { return h.Up + h.Down }

// Censor blocks and clears in one router.
type Censor struct {
	conn  *nftables.Conn
	netns int
	leg   string

	mu     sync.Mutex
	active map[string]*block
	queues uint16 // that were ever used
}

// block is a rule in force.
type block struct {
	chains []*nftables.Chain
	stop   func() // ends the inspector
}

// New returns the censor of the router whose network namespace is netns (a
// descriptor) and whose interface to the laptop is leg.
func New(netns int, leg string) (*Censor, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return nil, fmt.Errorf("opening the router's nftables: %w", err)
	}
	return &Censor{conn: conn, netns: netns, leg: leg, active: map[string]*block{}}, nil
}

// Block puts all rules in force in one transaction, from one packet to the next.
// A rule in force already stays, with its counters.
func (c *Censor) Block(rules ...Rule) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := map[string]*block{}
	undo := func() {
		for _, b := range added {
			b.stop()
		}
	}
	for _, r := range rules {
		if c.active[r.Name] != nil || added[r.Name] != nil {
			continue
		}
		b := &block{stop: func() {}}
		if r.inspector != nil {
			c.queues++
			stop, err := watch(c.netns, c.queues, r.inspector())
			if err != nil {
				undo()
				return fmt.Errorf("blocking %q: %w", r.Name, err)
			}
			b.stop = stop
		}
		added[r.Name] = b
		b.chains = r.install(c.conn, c.leg, c.queues)
	}
	if err := c.conn.Flush(); err != nil {
		undo()
		return fmt.Errorf("blocking %v: %w", names(rules), err)
	}
	for name, b := range added {
		c.active[name] = b
	}
	return nil
}

// Hits reads the counters of a rule in force.
func (c *Censor) Hits(name string) (Hits, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits(name)
}

func (c *Censor) hits(name string) (Hits, error) {
	b := c.active[name]
	if b == nil {
		return Hits{}, fmt.Errorf("reading the counters of %q: it is not in force", name)
	}
	var h Hits
	for _, chain := range b.chains {
		rules, err := c.conn.GetRules(chain.Table, chain)
		if err != nil {
			return Hits{}, fmt.Errorf("reading the counters of %q: %w", name, err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok && string(r.UserData) == up.String() {
					h.Up += n.Packets
				} else if ok {
					h.Down += n.Packets
				}
			}
		}
	}
	return h, nil
}

// Clear lifts the named rules, or all if none is named, and returns what each
// had acted on.
func (c *Censor) Clear(rules ...string) (map[string]Hits, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(rules) == 0 {
		rules = c.names()
	}
	final := map[string]Hits{}
	for _, name := range rules {
		h, err := c.hits(name)
		if err != nil {
			return nil, err
		}
		final[name] = h
	}
	for _, name := range rules {
		deleted := map[*nftables.Table]bool{}
		for _, chain := range c.active[name].chains {
			if !deleted[chain.Table] {
				c.conn.DelTable(chain.Table)
				deleted[chain.Table] = true
			}
		}
	}
	if err := c.conn.Flush(); err != nil {
		return nil, fmt.Errorf("lifting %v: %w", rules, err)
	}
	for _, name := range rules {
		c.active[name].stop()
		delete(c.active, name)
	}
	return final, nil
}

// Close ends the inspectors. The rules go with the namespace.
func (c *Censor) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.active {
		b.stop()
	}
	clear(c.active)
}

// Active are the names of the rules in force, in order.
func (c *Censor) Active() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names()
}

func (c *Censor) names() []string {
	var all []string
	for name := range c.active {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// ErrMissed is the cause when a rule in force has acted on nothing.
var ErrMissed = errors.New("the block has dropped nothing, so it proves nothing")

// AwaitHit waits until the named rule has acted on something, and gives up with
// ctx: whoever is blocked may be silent for a while.
func (c *Censor) AwaitHit(ctx context.Context, name string) error {
	tick := time.NewTicker(hitPoll)
	defer tick.Stop()
	for {
		err := c.Hit(name)
		if !errors.Is(err, ErrMissed) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// hitPoll is how often AwaitHit looks.
const hitPoll = 50 * time.Millisecond

// Hit returns an error unless the named rule has acted on something.
func (c *Censor) Hit(name string) error {
	h, err := c.Hits(name)
	if err == nil && h.Total() == 0 {
		err = fmt.Errorf("checking block %q: %w", name, ErrMissed)
	}
	return err
}

func names(rules []Rule) []string {
	var all []string
	for _, r := range rules {
		all = append(all, r.Name)
	}
	return all
}
