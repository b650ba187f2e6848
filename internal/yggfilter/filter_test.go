package yggfilter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace makes an empty network namespace with loopback up.
func namespace(t *testing.T) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: it needs network namespaces; run `sudo go test ./internal/yggfilter`")
	}
	var ns netns.NsHandle
	do := make(chan error)
	go func() {
		// The thread is never unlocked, so it dies with the goroutine and the
		// namespace cannot leak into another.
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		do <- err
	}()
	if err := <-do; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	within(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// within runs f in ns. Sockets that f makes stay there.
func within(t *testing.T, ns netns.NsHandle, f func() error) error {
	t.Helper()
	do := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			do <- err
			return
		}
		do <- f()
	}()
	return <-do
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPackets holds real packets against the filter: a cable between two
// namespaces plays the overlay.
func TestPackets(t *testing.T) {
	node, stranger := namespace(t), namespace(t)
	must(t, within(t, node, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ygg0"}, PeerName: "far", PeerNamespace: netlink.NsFd(stranger)}); err != nil {
			return err
		}
		return Filter{Interface: "ygg0", Accept: []uint16{443}, From: []netip.Addr{netip.MustParseAddr("200::2")}}.Load()
	}))
	address := func(ns netns.NsHandle, link, addr string) {
		must(t, within(t, ns, func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr + "/7")
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			return nil
		}))
	}
	address(node, "ygg0", "200::1")
	address(stranger, "far", "200::2") // whom the node admits
	address(stranger, "far", "200::3") // a stranger
	// A TUN has no neighbour discovery, this cable has; the filter (rightly)
	// drops it, so the neighbours are told to each other.
	neighbours(t, node, "ygg0", stranger, "far")

	listen := func(ns netns.NsHandle, addr string) net.Listener {
		var l net.Listener
		must(t, within(t, ns, func() (err error) { l, err = net.Listen("tcp", addr); return err }))
		t.Cleanup(func() { l.Close() })
		return l
	}
	listen(node, "[::]:443")
	listen(node, "[::]:22")
	listen(stranger, "[::]:443")
	// Silence is heard after a while; an answer is waited for, on a busy machine
	// too.
	const silence, answer = 400 * time.Millisecond, 10 * time.Second
	dial := func(ns netns.NsHandle, addr string) error {
		return within(t, ns, func() error {
			d := net.Dialer{Timeout: answer}
			c, err := d.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	dialAs := func(ns netns.NsHandle, from, addr string, wait time.Duration) error {
		return within(t, ns, func() error {
			d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	timeout := func(err error) bool {
		var ne net.Error
		return errors.As(err, &ne) && ne.Timeout()
	}
	if err := dialAs(stranger, "200::2", "[200::1]:443", answer); err != nil {
		t.Errorf("an accepted port from an admitted node: %v, want an answer", err)
	}
	if err := dialAs(stranger, "200::3", "[200::1]:443", silence); !timeout(err) {
		t.Errorf("an accepted port from a stranger: %v, want silence", err)
	}
	if err := dialAs(stranger, "200::2", "[200::1]:22", silence); !timeout(err) {
		t.Errorf("a port that is not accepted: %v, want silence", err)
	}
	if err := dial(node, "[200::2]:443"); err != nil {
		t.Errorf("the node's own connection: %v, want an answer", err)
	}
	if err := dial(node, "[200::1]:22"); err != nil {
		t.Errorf("the node to itself: %v, want an answer", err)
	}

	udp := func(ns netns.NsHandle, addr string) net.PacketConn {
		var c net.PacketConn
		must(t, within(t, ns, func() (err error) { c, err = net.ListenPacket("udp6", addr); return err }))
		t.Cleanup(func() { c.Close() })
		return c
	}
	passes := func(from, to net.PacketConn, addr string) bool {
		from.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		to.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, _, err := to.ReadFrom(make([]byte, 9))
		return err == nil
	}
	nodeTS, nodeUDP := udp(node, "[::]:41641"), udp(node, "[::]:5000")
	strangerTS, strangerUDP := udp(stranger, "[::]:41641"), udp(stranger, "[200::2]:5000")
	if passes(nodeUDP, strangerTS, "[200::2]:41641") || passes(nodeTS, strangerUDP, "[200::2]:5000") {
		t.Error("tailscaled's port passes out")
	}
	if !passes(nodeUDP, strangerUDP, "[200::2]:5000") || !passes(strangerUDP, nodeUDP, "[200::1]:5000") {
		t.Error("other UDP, and the answer to it, does not pass")
	}
	if passes(strangerUDP, nodeTS, "[200::1]:41641") {
		t.Error("tailscaled's port passes in")
	}

	// A flow lives through a change of the table, until its other end is revoked.
	load := func(f Filter) { must(t, f.Load(nftables.WithNetNSFd(int(node)))) }
	here := listen(node, "[200::1]:444")
	admitted := Filter{Interface: "ygg0", Accept: []uint16{443, 444}, From: []netip.Addr{netip.MustParseAddr("200::2")}}
	load(admitted)
	var there net.Conn
	must(t, within(t, stranger, func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP("200::2")}}
		there, err = d.Dial("tcp", "[200::1]:444")
		return err
	}))
	defer there.Close()
	flow, err := here.Accept()
	must(t, err)
	defer flow.Close()
	arrives := func(from, to net.Conn, limit time.Duration) bool {
		if _, err := from.Write([]byte("x")); err != nil {
			return false
		}
		to.SetReadDeadline(time.Now().Add(limit))
		_, err := to.Read(make([]byte, 1))
		return err == nil
	}
	load(Filter{Interface: "ygg0"}) // not admitted any more, but not revoked
	if !arrives(there, flow, 5*time.Second) || !arrives(flow, there, 5*time.Second) {
		t.Error("a change of the table ends a flow")
	}
	admitted.Revoked, admitted.AcceptAll = admitted.From, true
	load(admitted)
	if arrives(there, flow, 300*time.Millisecond) || arrives(flow, there, 300*time.Millisecond) {
		t.Error("a revoked node keeps its flow")
	}
	if err := dialAs(stranger, "200::2", "[200::1]:443", silence); !timeout(err) {
		t.Errorf("a revoked node that is admitted too: %v, want silence", err)
	}
	admitted.Revoked = nil
	load(admitted)
	if err := dialAs(stranger, "200::2", "[200::1]:22", answer); err != nil {
		t.Errorf("AcceptAll: %v, want every port open to an admitted node", err)
	}
	if err := dialAs(stranger, "200::3", "[200::1]:22", silence); !timeout(err) {
		t.Errorf("AcceptAll: a stranger gets %v, want silence", err)
	}

	// With the interface gone, nothing for the overlay may leave elsewhere.
	must(t, within(t, node, func() error {
		l, err := netlink.LinkByName("ygg0")
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
		isp := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "isp"}, PeerName: "router", PeerNamespace: netlink.NsFd(stranger)}
		if err := netlink.LinkAdd(isp); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(isp); err != nil {
			return err
		}
		a, _ := netlink.ParseAddr("2001:db8::1/64")
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(isp, a); err != nil {
			return err
		}
		_, all, _ := net.ParseCIDR("::/0")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: isp.Attrs().Index, Dst: all}); err != nil {
			return err
		}
		return isLocal(t.Context(), a.IP)
	}))
	if err := dial(node, "[200::2]:443"); err == nil || timeout(err) {
		t.Errorf("without the interface: %v, want a refusal at once", err)
	}
}

// isLocal waits until the kernel delivers what is sent to ip on this machine. It
// says that an address is added before the work that makes its route has run;
// until then a reset for that address leaves by the cable.
func isLocal(ctx context.Context, ip net.IP) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		routes, err := netlink.RouteGet(ip)
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the local route to %s: %v, %v", ip, routes, err)
		}
	}
}

func neighbours(t *testing.T, a netns.NsHandle, linkA string, b netns.NsHandle, linkB string) {
	mac := func(ns netns.NsHandle, name string) (hw net.HardwareAddr) {
		must(t, within(t, ns, func() error {
			l, err := netlink.LinkByName(name)
			if err == nil {
				hw = l.Attrs().HardwareAddr
			}
			return err
		}))
		return hw
	}
	tell := func(ns netns.NsHandle, link, ip string, hw net.HardwareAddr) {
		must(t, within(t, ns, func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: hw})
		}))
	}
	tell(a, linkA, "200::2", mac(b, linkB))
	tell(a, linkA, "200::3", mac(b, linkB))
	tell(b, linkB, "200::1", mac(a, linkA))
}

// TestReplace loads twice, with other ports, and unloads twice.
func TestReplace(t *testing.T) {
	ns := namespace(t)
	opt := nftables.WithNetNSFd(int(ns))
	rules := func(chain string) int {
		c, err := nftables.New(opt)
		must(t, err)
		table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
		rs, err := c.GetRules(table, &nftables.Chain{Name: chain, Table: table})
		must(t, err)
		return len(rs)
	}
	must(t, Filter{Interface: "ygg0", Accept: []uint16{443, 80}, From: []netip.Addr{netip.MustParseAddr("200::2"), netip.MustParseAddr("200::2")}}.Load(opt))
	open := rules("from")
	must(t, Filter{Interface: "ygg0"}.Load(opt))
	if closed := rules("from"); open-closed != 3 {
		t.Errorf("%d rules with two ports and ping, %d without; want 3 fewer", open, closed)
	}
	must(t, Unload(opt))
	must(t, Unload(opt))
	c, err := nftables.New(opt)
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	if len(tables) != 0 {
		t.Errorf("%d tables left", len(tables))
	}
}

func TestInterfaceName(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("y", unix.IFNAMSIZ)} {
		if err := (Filter{Interface: name}).Load(); err == nil {
			t.Errorf("%q was taken as an interface", name)
		}
	}
}

func TestHint(t *testing.T) {
	err := fmt.Errorf("netlink receive: %w", unix.EPERM)
	if h := hint(err); !strings.Contains(h, "CAP_NET_ADMIN") {
		t.Errorf("hint %q", h)
	}
}
