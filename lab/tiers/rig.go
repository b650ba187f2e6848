package tiers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/namespace"
)

// Rig is one machine of a town in a network namespace, with the overlay's
// interface and another one. Both are TUN devices whose far ends are here, so
// that any packet can be sent into them; raw sockets behind the input hook say
// which of them the kernel let in.
type Rig struct {
	Self  tier.Machine
	Layer tier.Layer

	ns             *namespace.Namespace
	overlay, other *tun
	raw            []int
	next           uint32
}

// firstID is larger than what the kernel's own answers have in that place.
const firstID = 1 << 20

// otherInterface stands for a LAN. What comes in there is not this table's
// business.
const otherInterface = "other0"

// Addresses of the machine, and of somebody, that are of no overlay.
var (
	local4, local6     = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:77::1")
	foreign4, foreign6 = netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("fd00:77::99")
)

// NewRig makes the namespace called name (in dir) for a machine on a layer.
func NewRig(name, dir string, town *Town, self tier.Machine, l tier.Layer) (*Rig, error) {
	ns, err := namespace.New(name, namespace.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	r := &Rig{Self: self, Layer: l, ns: ns, next: firstID}
	if err := r.build(town); err != nil {
		return nil, errors.Join(fmt.Errorf("building a rig: %w", err), r.Close())
	}
	return r, nil
}

func (r *Rig) build(town *Town) error {
	for _, k := range []string{"net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"} {
		if err := r.ns.Sysctl(k, "0"); err != nil {
			return err
		}
	}
	ifname := packetfilter.YggdrasilInterface
	if r.Layer == tier.Tailnet {
		ifname = packetfilter.TailnetInterface
	}
	var err error
	if r.overlay, err = newTUN(r.ns, ifname); err != nil {
		return err
	}
	if r.other, err = newTUN(r.ns, otherInterface); err != nil {
		return err
	}
	locals := append([]netip.Addr{local4, local6}, r.Self.Addresses(r.Layer)...)
	// Everything leaves by the overlay's interface but one revoked machine,
	// which is reached by the other.
	routes := map[netip.Prefix]string{
		netip.MustParsePrefix("0.0.0.0/0"): ifname, netip.MustParsePrefix("::/0"): ifname,
	}
	lost, _ := town.Fleet.ByName("lost-infra")
	for _, a := range lost.Addresses(r.Layer) {
		routes[netip.PrefixFrom(a, a.BitLen())] = otherInterface
	}
	err = r.ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range locals {
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("adding %s: %w", a, err)
			}
		}
		for p, name := range routes {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(p)}); err != nil {
				return fmt.Errorf("routing %s: %w", p, err)
			}
		}
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			icmp := unix.IPPROTO_ICMP
			if domain == unix.AF_INET6 {
				icmp = unix.IPPROTO_ICMPV6
			}
			for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, icmp, int(sctp), int(gre)} {
				fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
				if err != nil {
					return fmt.Errorf("opening a raw socket: %w", err)
				}
				r.raw = append(r.raw, fd)
				// A whole batch is read only after it was sent.
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
					return fmt.Errorf("making room in a raw socket: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.track()
}

// track keeps connection tracking on while tables come and go.
func (r *Rig) track() error {
	c, err := nftables.New(r.NFT())
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: "track", Family: nftables.TableFamilyINet})
	ch := c.AddChain(&nftables.Chain{
		Name: "in", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(100),
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}, &expr.Counter{}}})
	return c.Flush()
}

// NFT makes nftables connections to the rig's namespace.
func (r *Rig) NFT() nftables.ConnOption { return nftables.WithNetNSFd(r.ns.FD()) }

// Close removes everything.
func (r *Rig) Close() error {
	for _, fd := range r.raw {
		unix.Close(fd)
	}
	for _, t := range []*tun{r.overlay, r.other} {
		if t != nil {
			unix.Close(t.fd)
		}
	}
	return r.ns.Close()
}

// Send sends packets into the overlay's interface, each with a number of its
// own, and says which of them the machine let in. A TUN hands a packet through
// the whole receive path before write(2) returns, so nothing is waited for.
func (r *Rig) Send(ps []packet) ([]bool, error) { return r.send(r.overlay, ps) }

func (r *Rig) send(t *tun, ps []packet) ([]bool, error) {
	first := r.next
	in := make([]bool, len(ps))
	for i, p := range ps {
		p.id = r.next
		r.next++
		if _, err := unix.Write(t.fd, p.bytes()); err != nil {
			return nil, fmt.Errorf("sending into %s: %w", t.name, err)
		}
		if i%1000 == 999 {
			t.sent() // answers of the kernel, which nobody wants
			r.collect(first, in)
		}
	}
	r.collect(first, in)
	return in, nil
}

// collect reads which packets came through.
func (r *Rig) collect(first uint32, in []bool) {
	buf := make([]byte, 2048)
	for i, fd := range r.raw {
		skip := 0
		if i < len(r.raw)/2 {
			skip = 20 // raw IPv4 sockets read the IP header as well
		}
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				break // EAGAIN
			}
			if n < skip+idOffset+4 {
				continue
			}
			id := binary.BigEndian.Uint32(buf[skip+idOffset:]) - first
			if int64(id) < int64(len(in)) {
				in[id] = true
			}
		}
	}
}

// Flow is a UDP socket of the machine.
type Flow struct {
	conn  *net.UDPConn
	local netip.AddrPort
}

// Listen opens a UDP socket on one of the machine's addresses.
func (r *Rig) Listen(a netip.Addr) (*Flow, error) {
	var f Flow
	err := r.ns.Do(func() (err error) {
		f.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	if err != nil {
		return nil, err
	}
	f.local = f.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	f.local = netip.AddrPortFrom(f.local.Addr().Unmap(), f.local.Port())
	return &f, nil
}

// Emit sends a datagram from the machine and says whether it left by the
// overlay's interface or by the other.
func (r *Rig) Emit(f *Flow, to netip.AddrPort) (overlay, other bool, err error) {
	r.overlay.sent()
	r.other.sent()
	// A drop in the output hook is EPERM to the sender.
	if _, err := f.conn.WriteToUDPAddrPort([]byte("veilor"), to); err != nil && !errors.Is(err, unix.EPERM) {
		return false, false, err
	}
	return r.overlay.sent()[to], r.other.sent()[to], nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// tun is the far end of a TUN device.
type tun struct {
	name string
	fd   int
}

func newTUN(ns *namespace.Namespace, name string) (*tun, error) {
	t := &tun{name: name, fd: -1}
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		t.fd = fd
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", name, err)
	}
	return t, ns.Up(name)
}

// sent empties the device of what the machine sent, and lists where to.
func (t *tun) sent() map[netip.AddrPort]bool {
	to := map[netip.AddrPort]bool{}
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(t.fd, buf)
		if err != nil {
			return to
		}
		if d, ok := destination(buf[:n]); ok {
			to[d] = true
		}
	}
}

// NetnsDir is where the rigs' namespaces have their names.
const NetnsDir = "/run/netns"

// rigName is short enough for people and has the process in it, so that two runs
// do not meet.
func rigName(parts ...string) string {
	return fmt.Sprintf("tiers-%d-%s", os.Getpid(), strings.Join(parts, "-"))
}
