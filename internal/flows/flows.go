// Package flows ends live flows with a machine.
//
// A filter that refuses new flows does not end the old ones: tailscaled accepts
// every TCP segment that is no SYN (wgengine/filter, runIn4), and a server goes
// on sending into a connection until its own timers give up. So the sockets of
// this machine that are connected to it are destroyed (SOCK_DESTROY, which the
// program sees as ECONNABORTED), and connection tracking forgets what it knows
// (for flows that are forwarded, or of raw protocols).
package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Closed counts what was ended.
type Closed struct {
	Sockets, Tracked int
}

// Close ends every flow of this machine with one of the addresses and makes
// sure that none is left. netnsFD is a descriptor of the network namespace, or
// 0 for the caller's.
func Close(netnsFD int, addrs ...netip.Addr) (Closed, error) {
	var done Closed
	addrs = unmapped(addrs)
	d, err := dial(netnsFD)
	if err != nil {
		return done, fmt.Errorf("closing flows: %w", err)
	}
	defer d.conn.Close()
	// A socket may be on its way to being connected: look again until a look
	// finds nothing. The packet filter lets no new one in, so it ends.
	const most = 5
	for range most {
		found, err := d.sockets(addrs)
		if err != nil {
			return done, fmt.Errorf("closing flows: listing sockets: %w", err)
		}
		if len(found) == 0 {
			n, err := forget(netnsFD, addrs)
			done.Tracked += n
			if err != nil {
				return done, fmt.Errorf("closing flows: connection tracking: %w", err)
			}
			return done, nil
		}
		for _, s := range found {
			err := d.destroy(s)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return done, fmt.Errorf("closing flows: destroying a socket: %w%s", err, hint(err))
			}
			done.Sockets++
		}
	}
	return done, errors.New("closing flows: new sockets are connected as fast as they are closed; is the packet filter in force?")
}

// Count is how many sockets are connected to one of the addresses.
func Count(netnsFD int, addrs ...netip.Addr) (int, error) {
	d, err := dial(netnsFD)
	if err != nil {
		return 0, fmt.Errorf("counting flows: %w", err)
	}
	defer d.conn.Close()
	found, err := d.sockets(unmapped(addrs))
	if err != nil {
		return 0, fmt.Errorf("counting flows: %w", err)
	}
	return len(found), nil
}

func unmapped(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Unmap())
	}
	return out
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": it needs CAP_NET_ADMIN"
	case errors.Is(err, unix.EOPNOTSUPP):
		return ": this kernel lacks CONFIG_INET_DIAG_DESTROY"
	}
	return ""
}

// Sizes and places in the messages of sock_diag(7), linux/inet_diag.h.
const (
	requestSize = 56 // struct inet_diag_req_v2
	messageSize = 72 // struct inet_diag_msg
	idSize      = 48 // struct inet_diag_sockid, at 8 in the one and 4 in the other
	timeWait    = 6  // TCP_TIME_WAIT: over, carries nothing, and older kernels cannot destroy it
	listening   = 10 // TCP_LISTEN

	sockDiagByFamily = 20
	sockDestroy      = 21
)

// diag is a connection to the kernel's list of sockets.
type diag struct{ conn *netlink.Conn }

func dial(netnsFD int) (*diag, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netnsFD})
	if err != nil {
		return nil, err
	}
	return &diag{c}, nil
}

// socket is what destroys one.
type socket struct {
	family, protocol byte
	id               [idSize]byte
}

// request is an inet_diag_req_v2.
func request(family, protocol byte, states uint32, id []byte) []byte {
	b := make([]byte, requestSize)
	b[0], b[1] = family, protocol
	binary.NativeEndian.PutUint32(b[4:], states)
	copy(b[8:], id)
	return b
}

// sockets lists those that are connected to one of the addresses.
func (d *diag) sockets(addrs []netip.Addr) ([]socket, error) {
	var found []socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			const all = ^uint32(0) &^ (1<<listening | 1<<timeWait)
			msgs, err := d.conn.Execute(netlink.Message{
				Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
				Data:   request(family, protocol, all, nil),
			})
			if err != nil {
				return nil, err
			}
			for _, m := range msgs {
				if s, peer, ok := parse(m.Data, protocol); ok && !dying(m.Data) && slices.Contains(addrs, peer) {
					found = append(found, s)
				}
			}
		}
	}
	return found, nil
}

// parse reads an inet_diag_msg and its peer's address.
func parse(b []byte, protocol byte) (socket, netip.Addr, bool) {
	if len(b) < messageSize {
		return socket{}, netip.Addr{}, false
	}
	s := socket{family: b[0], protocol: protocol, id: [idSize]byte(b[4 : 4+idSize])}
	raw := s.id[4+16:] // after both ports and the source
	if s.family == unix.AF_INET {
		return s, netip.AddrFrom4([4]byte(raw[:4])), true
	}
	// A dual-stack server has its IPv4 peers in mapped form.
	return s, netip.AddrFrom16([16]byte(raw[:16])).Unmap(), true
}

// dying says of an inet_diag_msg that it is of a TCP socket which no program has
// any more and which only waits for the other side to hear of it (inode 0, in
// one of the closing states). It carries nothing, kernels before 6.11 cannot
// destroy it, and it ends by itself.
func dying(b []byte) bool {
	const inode = 68
	const finWait1, finWait2, lastAck, closing = 4, 5, 9, 11
	switch b[1] {
	case finWait1, finWait2, lastAck, closing:
		return binary.NativeEndian.Uint32(b[inode:]) == 0
	}
	return false
}

func (d *diag) destroy(s socket) error {
	_, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   request(s.family, s.protocol, ^uint32(0), s.id[:]),
	})
	return err
}

// forget removes what connection tracking knows of flows with the addresses.
func forget(netnsFD int, addrs []netip.Addr) (int, error) {
	at := netns.None()
	if netnsFD != 0 {
		at = netns.NsHandle(netnsFD)
	}
	h, err := vnetlink.NewHandleAt(at, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	total := 0
	for _, family := range []vnetlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, err := h.ConntrackDeleteFilters(vnetlink.ConntrackTable, family, of(addrs))
		total += int(n)
		// A kernel without connection tracking tracks nothing.
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return total, err
		}
	}
	return total, nil
}

// of matches flows from or to one of the addresses.
type of []netip.Addr

// MatchConntrackFlow is for the netlink library.
func (o of) MatchConntrackFlow(f *vnetlink.ConntrackFlow) bool {
	return slices.ContainsFunc([]net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP}, func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && slices.Contains(o, a.Unmap())
	})
}
