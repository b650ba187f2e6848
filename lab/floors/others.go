package floors

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/world"
)

// administrator is one of the tier admin, whose laptop is beside the one that is
// measured, in the same network: he must reach the server's ssh port whenever a
// floor is promised.
const administrator = "admin"

// greetingLimit is for one try of the administrator's.
const greetingLimit = 3 * time.Second

// settle joins the other laptops: two neighbours, who are in the café where no
// censor is, and the administrator.
func (t *Town) settle(ctx context.Context, cfg laptop.Config) error {
	join := func(to **laptop.Laptop, name, tier, address string) func() error {
		return func() error {
			c := cfg
			ns, err := t.World.Seat(name, netip.MustParseAddr(address))
			if err != nil {
				return err
			}
			c.In, c.Name, c.Tier, c.Dir = ns, name, tier, cfg.Dir+"-"+name
			l, err := laptop.Start(ctx, t.World, c)
			if err != nil {
				return fmt.Errorf("joining %s: %w", name, err)
			}
			*to = l
			return nil
		}
	}
	t.neighbours = make([]*laptop.Laptop, 2)
	for _, f := range []func() error{
		join(&t.neighbours[0], "neighbour-1", "guest", "10.89.1.21"),
		join(&t.neighbours[1], "neighbour-2", "guest", "10.89.1.22"),
		join(&t.admin, administrator, "admin", "10.88.1.12"),
	} {
		if err := f(); err != nil {
			return err
		}
	}
	if t.World.AtticHost == nil {
		return nil
	}
	// Headscale 0.29.3 was seen not to tell a host of those who join after it, if a
	// policy was loaded just when it had come. One that starts is told of all.
	return t.hostAnew(ctx)
}

// hostAnew starts the tailscaled of the host in the laptop's network anew. It keeps
// a connection with the control server that the router has forgotten for as long
// as TCP does, a quarter of an hour, and is not told meanwhile that the laptop has
// started anew and has other keys.
func (t *Town) hostAnew(ctx context.Context) error { return t.World.AtticHost.Restart(ctx) }

// stop ends the programs of every laptop.
func (t *Town) stop() {
	for _, l := range append(t.neighbours, t.admin, t.Laptop) {
		if l != nil {
			l.Stop()
		}
	}
}

// exited says that a program of a laptop has ended by itself, and how.
func (t *Town) exited() error {
	var g errgroup.Group
	for _, l := range append(t.neighbours[:len(t.neighbours):len(t.neighbours)], t.admin, t.Laptop) {
		g.Go(l.Exited)
	}
	return g.Wait()
}

// Neighbours is how other laptops fared, which the censor never meant: each kept a
// connection on each layer, all the time.
type Neighbours struct {
	Laptops     int `json:"laptops"`
	Connections int `json:"connections"`
	Answers     int `json:"answers"`
	// Ended are connections that did not live as long as the measurement.
	Ended int `json:"ended"`
}

// watchNeighbours asks for them until stop is called, which says how they fared.
func (t *Town) watchNeighbours(ctx context.Context) (stop func() *Neighbours) {
	service := t.Site.Services[0]
	tailnet, yggdrasil := t.World.AddressesOf(service)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var all []*client
	for _, l := range t.neighbours {
		for layer, at := range map[string]netip.Addr{Tailnet: tailnet, Yggdrasil: yggdrasil} {
			c := newClient(l.Namespace(), layer, Established, service.Name, netip.AddrPortFrom(at, 443), t.Authority)
			all = append(all, c)
			wg.Go(func() { c.run(ctx) })
		}
	}
	return func() *Neighbours {
		cancel()
		wg.Wait()
		n := &Neighbours{Laptops: len(t.neighbours), Connections: len(all)}
		for _, c := range all {
			n.Answers += len(c.answers)
			n.Ended += max(0, int(c.dialled.Load())-1)
			if len(c.answers) == 0 {
				n.Ended++ // there never was one
			}
		}
		return n
	}
}

// administer has the administrator ask for the server's ssh port, on both layers,
// and waits for the first greeting after from.
func (t *Town) administer(ctx context.Context, from time.Time) Cell {
	tailnet, yggdrasil := t.World.ServiceAddresses()
	c := &client{mode: New, changed: make(chan struct{}), forget: func() {}, fetch: func(ctx context.Context) error {
		return anyOf(ctx, func(ctx context.Context, a netip.Addr) error { return t.greeted(ctx, a) }, tailnet, yggdrasil)
	}}
	ctx, cancel := context.WithDeadline(ctx, from.Add(answerLimit))
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { c.run(asking) })
	took, err := c.first(ctx, from)
	return cell("", New, took, err)
}

// anyOf is nil as soon as f is for one of the addresses.
func anyOf(ctx context.Context, f func(context.Context, netip.Addr) error, addresses ...netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, greetingLimit)
	defer cancel()
	errs := make(chan error, len(addresses))
	for _, a := range addresses {
		go func() { errs <- f(ctx, a) }()
	}
	var err error
	for range addresses {
		if err = <-errs; err == nil {
			return nil
		}
	}
	return err
}

func (t *Town) greeted(ctx context.Context, a netip.Addr) error {
	c, err := t.admin.Namespace().DialContext(ctx, "tcp", netip.AddrPortFrom(a, 22).String())
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	return readGreeting(c)
}

func readGreeting(c net.Conn) error {
	text := make([]byte, len(world.Greeting))
	if _, err := io.ReadFull(c, text); err != nil {
		return err
	}
	if !strings.HasPrefix(string(text), "SSH-2.0-") {
		return fmt.Errorf("port 22 says %q", text)
	}
	return nil
}
