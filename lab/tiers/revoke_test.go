package tiers

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/veilor/veilor-os/internal/flows"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// revocations on each of the two layers: together 200, with 0 misses.
	revocations = 100
	// bystanders are guests whose flows must not notice.
	bystanders = 10
	// revokedWithin is how long a live flow may last after the call began. The
	// promise is a minute; this is one machine, where nothing is waited for.
	revokedWithin = 2 * time.Second
)

// Every revoked guest loses its live connection and gets no other, and nobody
// else notices: on each layer's interface, with a real server.
func TestRevoke(t *testing.T) {
	needRoot(t)
	town, err := NewTown(rand.New(rand.NewPCG(4, 6)), revocations+bystanders)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
		t.Run(l.String(), func(t *testing.T) { revokeAll(t, town, l) })
	}
}

func revokeAll(t *testing.T, town *Town, l tier.Layer) {
	self, _ := town.Fleet.ByName("nullstone")
	address := self.Addresses(l)[0]
	ifname := packetfilter.YggdrasilInterface
	if l == tier.Tailnet {
		ifname = packetfilter.TailnetInterface
	}
	var guests []netip.Addr
	for _, m := range town.Machines {
		if m.Tier == tier.Guest && !m.Revoked {
			guests = append(guests, m.Addresses(l)[0])
		}
	}
	home, away := join(t, ifname, address, guests)
	nft := nftables.WithNetNSFd(home.FD())
	tab, err := packetfilter.Compile(town.Fleet, self, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.Load(nft); err != nil {
		t.Fatal(err)
	}

	// An echo server that says when it lost a client.
	var mu sync.Mutex
	lost := map[netip.Addr]chan struct{}{}
	for _, g := range guests {
		lost[g] = make(chan struct{})
	}
	ln, err := home.Listen("tcp", netip.AddrPortFrom(address, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
				mu.Lock()
				defer mu.Unlock()
				from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				select {
				case <-lost[from]: // its second connection
				default:
					close(lost[from])
				}
			}()
		}
	}()

	dial := func(ctx context.Context, from netip.Addr) (c net.Conn, err error) {
		err = away.Do(func() error { // short: the connection is made or refused at once
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 500 * time.Millisecond}
			c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(address, 443).String())
			return err
		})
		return c, err
	}
	alive := func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("veilor")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 6))
		return err
	}
	var conns []net.Conn
	for _, g := range guests {
		c, err := dial(t.Context(), g)
		if err != nil {
			t.Fatalf("a guest cannot reach the server: %v", err)
		}
		t.Cleanup(func() { c.Close() })
		if err := alive(c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}

	var took []time.Duration
	missed := 0
	for _, g := range guests[:revocations] {
		start := time.Now()
		if err := packetfilter.Revoke(tab.Name, []netip.Addr{g}, nft); err != nil {
			t.Fatal(err)
		}
		closed, err := flows.Close(home.FD(), g)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-lost[g]:
			took = append(took, time.Since(start))
		case <-time.After(revokedWithin):
			missed++
			t.Errorf("%s keeps its connection (closed %+v)", g, closed)
		}
	}
	slices.Sort(took)
	if len(took) > 0 {
		t.Logf("%d revoked, %d missed; the live flow ended after %v (median), %v (p95), %v (longest)",
			revocations, missed, took[len(took)/2], took[len(took)*95/100], took[len(took)-1])
	}
	for _, c := range conns[revocations:] {
		if err := alive(c); err != nil {
			t.Errorf("a bystander's connection: %v", err)
		}
	}
	// A sample, since each waits for its time limit.
	for i := 0; i < revocations; i += 10 {
		if c, err := dial(t.Context(), guests[i]); err == nil {
			c.Close()
			t.Errorf("%s, revoked, opened a new connection", guests[i])
		}
	}
	if c, err := dial(t.Context(), guests[revocations]); err != nil {
		t.Errorf("a bystander cannot connect any more: %v", err)
	} else {
		c.Close()
	}
	if err := packetfilter.Revoke("no_such_table", guests[:1], nft); err == nil {
		t.Error("revoking in a table that is not there succeeded")
	}
	if err := packetfilter.Revoke(tab.Name, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nft); l == tier.Yggdrasil && err == nil {
		t.Error("an address of another family was revoked")
	}
}

// join makes two namespaces with a cable: a server whose end is called as an
// overlay's interface, and one with every guest's address. Neighbours are
// entered by hand, since a tunnel has none.
func join(t *testing.T, ifname string, server netip.Addr, guests []netip.Addr) (home, away *namespace.Namespace) {
	t.Helper()
	make := func(name string) *namespace.Namespace {
		n, err := namespace.New(rigName(name), namespace.Options{Dir: NetnsDir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return n
	}
	home, away = make("home"), make("away")
	if err := namespace.Cable(namespace.End{In: home, Name: ifname}, namespace.End{In: away, Name: "far0"}); err != nil {
		t.Fatal(err)
	}
	hardware := map[*namespace.Namespace]net.HardwareAddr{}
	each := func(n *namespace.Namespace, name string, f func(*netlink.Handle, netlink.Link) error) {
		t.Helper()
		h, err := netlink.NewHandleAt(netns.NsHandle(n.FD()))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		link, err := h.LinkByName(name)
		if err == nil {
			hardware[n] = link.Attrs().HardwareAddr
			err = f(h, link)
		}
		if err != nil {
			t.Fatal(fmt.Errorf("%s: %w", name, err))
		}
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if server.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	addresses := func(as ...netip.Addr) func(*netlink.Handle, netlink.Link) error {
		return func(h *netlink.Handle, link netlink.Link) error {
			for _, a := range as {
				addr := &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(a, a.BitLen()))}
				if a.Is6() {
					addr.Flags = 2 // IFA_F_NODAD
				}
				if err := h.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipnet(all)})
		}
	}
	each(home, ifname, addresses(server))
	each(away, "far0", addresses(guests...))
	neighbours := func(of *namespace.Namespace, as ...netip.Addr) func(*netlink.Handle, netlink.Link) error {
		return func(h *netlink.Handle, link netlink.Link) error {
			for _, a := range as {
				n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: hardware[of]}
				if err := h.NeighSet(n); err != nil {
					return err
				}
			}
			return nil
		}
	}
	each(home, ifname, neighbours(away, guests...))
	each(away, "far0", neighbours(home, server))
	return home, away
}
