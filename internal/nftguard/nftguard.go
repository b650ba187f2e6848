// Package nftguard notices that somebody changes or removes a packet filter of
// ours, and puts it back.
//
// Whoever has CAP_NET_ADMIN may empty the whole ruleset (`nft flush ruleset`), and
// firewall programs do when they start. The kernel announces every transaction
// (NFNLGRP_NFTABLES), so nothing is polled. An announcement says what changed but
// not whether the result is still ours: the table is read and compared with how
// it was when it was loaded, without its counters.
//
//	            announcement, and it looks otherwise
//	in place ------------------------------------------> changed
//	   ^                                                    |
//	   |            loaded anew, in one transaction         |
//	   +----------------------------------------------------+
//	        at once; later and later if it happens again
//
// Between the change and the next load the machine is without that table; that is
// milliseconds, unless two programs fight. It needs CAP_NET_ADMIN.
package nftguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// firstGap is the least time between the first restoration and the second;
	// it doubles with each up to maxGap, so that a fight with another program
	// costs next to nothing and is lost for ten seconds at most.
	firstGap = 50 * time.Millisecond
	maxGap   = 10 * time.Second
	// calm is how long a table must have been left alone for the gap to be
	// firstGap again.
	calm = 5 * time.Minute
	// fight is the gap from which on it is called one.
	fight = time.Second
	// complainEvery is how often a fight is told to the log.
	complainEvery = 10 * time.Minute
	// loads is how often a table is loaded if others change the ruleset at the
	// same time, so that what it then looks like may be theirs.
	loads = 20
	// looks is the same for reading it.
	looks = 10
	// buffer holds the announcements that nobody has read yet. A whole ruleset
	// with long lists has some hundred kB.
	buffer = 4 << 20
)

// Table names a table.
type Table struct {
	Family nftables.TableFamily
	Name   string
}

// Tally is what the guard had to do.
type Tally struct {
	// Restored is how often a table was put back.
	Restored int `json:"restored"`
	// Last is when, Table which, and By who had changed it, if the kernel said.
	Last  time.Time `json:"last,omitzero"`
	Table string    `json:"table,omitempty"`
	By    string    `json:"by,omitempty"`
	// Missing says that a table is not in place now: somebody removes it again
	// and again, or it cannot be loaded.
	Missing bool `json:"missing,omitempty"`
}

// Guard keeps tables.
type Guard struct {
	log    *slog.Logger
	now    func() time.Time
	events *netlink.Conn

	mu     sync.Mutex // one look or load of ours at a time
	ask    *netlink.Conn
	tables map[Table]*kept
	tally  Tally
}

// kept is one table.
type kept struct {
	load  func() error
	looks fingerprint // how it is to look
	gen   uint32      // the generation of the ruleset in which it looked so
	// others are the programs that may change it.
	others string
	pace   pace
	due    time.Time // when it is put back; zero if it is in place
	by     string    // who changed it last
	told   time.Time // when a fight was last told
	failed string    // why it could not be loaded last time
}

// Open begins to listen. now is the clock; nil means time.Now.
func Open(log *slog.Logger, now func() time.Time) (*Guard, error) {
	if now == nil {
		now = time.Now
	}
	g := &Guard{log: log, now: now, tables: map[Table]*kept{}}
	var err error
	if g.events, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err == nil {
		err = g.events.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err == nil {
		g.events.SetReadBuffer(buffer) // a smaller one only loses announcements, which is noticed
		g.ask, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	}
	if err != nil {
		g.Close()
		hint := ""
		if errors.Is(err, unix.EPERM) {
			hint = ": it needs CAP_NET_ADMIN; start it as the systemd unit does, or as root"
		}
		return nil, fmt.Errorf("watching the packet filter: %w%s", err, hint)
	}
	return g, nil
}

// Close ends it without Run.
func (g *Guard) Close() {
	for _, c := range []*netlink.Conn{g.events, g.ask} {
		if c != nil {
			c.Close()
		}
	}
}

// Put loads a table and keeps it as it is then. load must replace the whole table
// in one transaction. If it fails, what was kept before is kept.
func (g *Guard) Put(t Table, load func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.tables[t]
	if k == nil {
		k = &kept{}
	}
	if err := g.put(t, k, load); err != nil {
		return err
	}
	k.load = load
	g.tables[t] = k
	return nil
}

// Adopt keeps a table that the named program loads: as it is now, or as that
// program makes it later. While there is none, there is none to keep. load makes
// it anew if anybody else changes it; it may also find that there should be none.
func (g *Guard) Adopt(t Table, program string, load func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, gen, err := look(g.ask, t)
	if err != nil {
		return err
	}
	g.tables[t] = &kept{load: load, looks: f, gen: gen, others: program}
	return nil
}

// put loads a table until it is sure that what it then looks like is what was
// loaded, since nobody else changed the ruleset meanwhile. g.mu is held.
func (g *Guard) put(t Table, k *kept, load func() error) error {
	for range loads {
		before, err := generation(g.ask)
		if err != nil {
			return err
		}
		if err := load(); err != nil {
			return err
		}
		f, gen, err := look(g.ask, t)
		if err != nil {
			return err
		}
		if gen == before+1 {
			k.looks, k.gen, k.due = f, gen, time.Time{}
			return nil
		}
	}
	return fmt.Errorf("loading the packet filter %s: somebody changes the rules all the time; `nft monitor` says who", t.Name)
}

// Tally is what the guard had to do so far.
func (g *Guard) Tally() Tally {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.tally
	for _, k := range g.tables {
		t.Missing = t.Missing || !k.due.IsZero()
	}
	return t
}

// Run keeps the tables until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	defer g.ask.Close()
	stop := context.AfterFunc(ctx, func() { g.events.Close() })
	defer stop()
	defer g.events.Close()
	changes, failed := make(chan change), make(chan error, 1)
	go func() { failed <- listen(ctx, g.events, changes) }()
	timer := time.NewTimer(0) // what happened before Run was not announced to it
	defer timer.Stop()
	for {
		c := change{all: true}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching the packet filter: %w", err)
		case c = <-changes:
		case <-timer.C:
		}
		if next := g.check(c); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, next.Sub(g.now())))
		}
	}
}

// check looks at the tables that changed, puts back what is due, and says when
// the next is.
func (g *Guard) check(c change) (next time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for t, k := range g.tables {
		if c.touches(t) && (c.gen == 0 || newer(c.gen, k.gen)) || !k.due.IsZero() {
			g.inspect(t, k, c)
		}
		if !k.due.IsZero() && (next.IsZero() || k.due.Before(next)) {
			next = k.due
		}
	}
	return next
}

// inspect looks at one table. g.mu is held.
func (g *Guard) inspect(t Table, k *kept, c change) {
	f, gen, err := look(g.ask, t)
	if err != nil {
		g.log.Warn("reading the packet filter", "table", t.Name, "err", err)
		k.due = g.now().Add(maxGap)
		return
	}
	if f == k.looks {
		k.due, k.gen = time.Time{}, gen
		return
	}
	if k.others != "" && k.looks == absent || k.others != "" && c.by == k.others && c.touches(t) {
		// Whose it is has made it or changed it.
		k.looks, k.gen, k.due = f, gen, time.Time{}
		return
	}
	if c.by != "" && c.touches(t) {
		k.by = c.by
	}
	now := g.now()
	if at := k.pace.next(now); at.After(now) {
		k.due = at
		return
	}
	k.pace.done(now)
	loud := k.pace.gap < fight
	if !loud && k.failed == "" && (k.told.IsZero() || now.Sub(k.told) >= complainEvery) {
		k.told = now
		g.log.Warn("somebody changes the packet filter again and again; one of the two must be told to leave it alone",
			"table", t.Name, "by", k.by, "wait", k.pace.gap.Round(time.Millisecond))
	}
	if err := g.put(t, k, k.load); err != nil {
		k.due = k.pace.next(now)
		if err.Error() != k.failed {
			g.log.Error("somebody changed the packet filter, and it cannot be restored", "table", t.Name, "by", k.by, "err", err)
		}
		k.failed = err.Error()
		return
	}
	k.failed = ""
	g.tally.Restored++
	g.tally.Last, g.tally.Table, g.tally.By = now, t.Name, k.by
	if loud {
		g.log.Warn("somebody changed the packet filter; it is restored", "table", t.Name, "by", k.by)
	}
	k.by = ""
}

// newer says whether generation a came after b; the counter wraps.
func newer(a, b uint32) bool { return int32(a-b) > 0 }

// pace bounds how often a table is put back.
type pace struct {
	last time.Time
	gap  time.Duration
}

// next is when it may be put back.
func (p *pace) next(now time.Time) time.Time {
	if p.last.IsZero() || now.Sub(p.last) >= calm {
		return now
	}
	return p.last.Add(p.gap)
}

// done says that it was, or that it was tried.
func (p *pace) done(now time.Time) {
	if p.last.IsZero() || now.Sub(p.last) >= calm {
		p.gap = firstGap
	} else {
		p.gap = min(2*p.gap, maxGap)
	}
	p.last = now
}
