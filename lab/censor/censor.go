// Package censor is the ISP that takes the network away from the laptop: drops
// in the router's nftables, each with counters, so that a test can tell a block
// that bites from one that misses.
//
// Rules drop whole classes of packets and know no connection tracking: what was
// established before falls as well. They act on the laptop's leg only; between
// its home and its peers the network stays as it was.
package censor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is one thing that the ISP can do.
type Rule struct {
	// Name is short: "udp". It is unique in a Censor.
	Name string
	// Text says it to a person: "all UDP dropped".
	Text string

	// What is dropped: one protocol, or all traffic with one address.
	protocol byte
	address  netip.Addr
}

// UDP drops every UDP datagram of the laptop, DHCP and DNS of the router
// included.
func UDP() Rule {
	return Rule{Name: "udp", Text: "all UDP dropped", protocol: unix.IPPROTO_UDP}
}

// Host drops everything between the laptop and one IPv4 address.
func Host(name string, a netip.Addr) Rule {
	return Rule{Name: name, Text: name + " (" + a.String() + ") dropped", address: a}
}

// Hits are packets that a rule has dropped.
type Hits struct {
	// Up are from the laptop, Down to it.
	Up, Down uint64
}

// Total is in both directions.
func (h Hits) Total() uint64 { return h.Up + h.Down }

// Censor blocks and clears in one router.
type Censor struct {
	conn *nftables.Conn
	leg  string

	mu     sync.Mutex
	active map[string]*nftables.Table
}

// New returns the censor of the router whose network namespace is netns (a
// descriptor) and whose interface to the laptop is leg.
func New(netns int, leg string) (*Censor, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return nil, fmt.Errorf("opening the router's nftables: %w", err)
	}
	return &Censor{conn: conn, leg: leg, active: map[string]*nftables.Table{}}, nil
}

// Block puts all rules in force in one transaction, from one packet to the next.
// A rule in force already stays, with its counters.
func (c *Censor) Block(rules ...Rule) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := map[string]*nftables.Table{}
	for _, r := range rules {
		if c.active[r.Name] == nil && added[r.Name] == nil {
			added[r.Name] = c.add(r)
		}
	}
	if err := c.conn.Flush(); err != nil {
		return fmt.Errorf("blocking %v: %w", names(rules), err)
	}
	for name, t := range added {
		c.active[name] = t
	}
	return nil
}

// add queues the table of one rule. A table per rule makes clearing it one
// deletion, whatever else is in force.
func (c *Censor) add(r Rule) *nftables.Table {
	table := c.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(r.Name)})
	accept := nftables.ChainPolicyAccept
	for _, hook := range []struct {
		name     string
		num      *nftables.ChainHook
		up, down bool
	}{
		// Not "fwd": that is a keyword of nft, and a person must be able to list
		// these tables.
		{"through", nftables.ChainHookForward, true, true},
		{"to_router", nftables.ChainHookInput, true, false},
		{"from_router", nftables.ChainHookOutput, false, true},
	} {
		chain := c.conn.AddChain(&nftables.Chain{
			Name: hook.name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook.num, Priority: nftables.ChainPriorityFilter, Policy: &accept,
		})
		if hook.up {
			c.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: []byte("up"),
				Exprs: c.drop(r, expr.MetaKeyIIFNAME, destinationOffset)})
		}
		if hook.down {
			c.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: []byte("down"),
				Exprs: c.drop(r, expr.MetaKeyOIFNAME, sourceOffset)})
		}
	}
	return table
}

// Where the addresses are in an IPv4 header (RFC 791 §3.1).
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// drop is: if the packet is on the laptop's leg and matches r, count and drop it.
func (c *Censor) drop(r Rule, side expr.MetaKey, offset uint32) []expr.Any {
	leg := make([]byte, unix.IFNAMSIZ)
	copy(leg, c.leg)
	e := []expr.Any{
		&expr.Meta{Key: side, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: leg},
	}
	if r.protocol != 0 {
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.protocol}})
	}
	if r.address.IsValid() {
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: r.address.AsSlice()})
	}
	return append(e, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// Hits reads the counters of a rule in force.
func (c *Censor) Hits(name string) (Hits, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits(name)
}

func (c *Censor) hits(name string) (Hits, error) {
	table := c.active[name]
	if table == nil {
		return Hits{}, fmt.Errorf("reading the counters of %q: it is not in force", name)
	}
	var h Hits
	for _, chain := range []string{"through", "to_router", "from_router"} {
		rules, err := c.conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
		if err != nil {
			return Hits{}, fmt.Errorf("reading the counters of %q: %w", name, err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok && string(r.UserData) == "up" {
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
// had dropped.
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
		c.conn.DelTable(c.active[name])
	}
	if err := c.conn.Flush(); err != nil {
		return nil, fmt.Errorf("lifting %v: %w", rules, err)
	}
	for _, name := range rules {
		delete(c.active, name)
	}
	return final, nil
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

// ErrMissed is the cause when a rule in force has dropped nothing.
var ErrMissed = errors.New("the block has dropped nothing, so it proves nothing")

// AwaitHit waits until the named rule has dropped something, and gives up with
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

// Hit returns an error unless the named rule has dropped something.
func (c *Censor) Hit(name string) error {
	h, err := c.Hits(name)
	if err == nil && h.Total() == 0 {
		err = fmt.Errorf("checking block %q: %w", name, ErrMissed)
	}
	return err
}

func tableName(rule string) string { return "censor_" + rule }

func names(rules []Rule) []string {
	var all []string
	for _, r := range rules {
		all = append(all, r.Name)
	}
	return all
}
