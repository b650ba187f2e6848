package forbidden

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/namespace"
)

// sender writes whole packets into an interface, past the machine's own filters
// and routes.
type sender struct {
	fd, index int
}

func newSender(ns *namespace.Namespace, name string) (*sender, error) {
	s := &sender{fd: -1}
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s.index = l.Attrs().Index
		// Protocol 0: it receives nothing.
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *sender) send(b []byte) error {
	proto := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	be := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, proto))
	return unix.Sendto(s.fd, b, 0, &unix.SockaddrLinklayer{Protocol: be, Ifindex: s.index})
}

func (s *sender) close() { unix.Close(s.fd) }

// mark names a packet: no two that are sent in a run have the same.
type mark struct {
	proto tier.Protocol
	// token is the source port, or the identifier of an echo.
	token, port uint16
}

// witness sees what a machine's kernel lets in: raw sockets are behind the
// input hook.
type witness struct {
	fds  []int
	seen map[mark]bool
}

// witnessBuffer is room for what arrives between two looks.
const witnessBuffer = 8 << 20

var protocols = []tier.Protocol{tier.TCP, tier.UDP, tier.ICMP}

func newWitness(ns *namespace.Namespace) (*witness, error) {
	w := &witness{seen: map[mark]bool{}}
	err := ns.Do(func() error {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			for _, p := range protocols {
				number := int(p)
				if domain == unix.AF_INET6 && p == tier.ICMP {
					number = unix.IPPROTO_ICMPV6
				}
				fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, number)
				if err != nil {
					return fmt.Errorf("opening a raw socket: %w", err)
				}
				w.fds = append(w.fds, fd)
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, witnessBuffer); err != nil {
					return fmt.Errorf("making room in a raw socket: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *witness) close() {
	for _, fd := range w.fds {
		unix.Close(fd)
	}
}

// look reads what came since the last look.
func (w *witness) look() error {
	buf := make([]byte, 2048)
	for i, fd := range w.fds {
		p := protocols[i%len(protocols)]
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return fmt.Errorf("reading what was let in: %w", err)
			}
			if m, ok := read(buf[:n], i < len(protocols), p); ok {
				w.seen[m] = true
			}
		}
	}
	return nil
}

// read finds the mark of a packet as a raw socket gives it: with its header over
// IPv4 (raw(7)), without over IPv6.
func read(b []byte, four bool, p tier.Protocol) (mark, bool) {
	if four {
		if len(b) < 20 || len(b) < 4*int(b[0]&15) {
			return mark{}, false
		}
		b = b[4*int(b[0]&15):]
	}
	if len(b) < 8 {
		return mark{}, false
	}
	if p != tier.ICMP {
		return mark{p, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}, true
	}
	// Echo requests (RFC 792, RFC 4443): answers are not what is looked for.
	if want := map[bool]byte{true: 8, false: 128}[four]; b[0] != want {
		return mark{}, false
	}
	return mark{p, binary.BigEndian.Uint16(b[4:]), 0}, true
}

// linkLocal is the address of that kind that an interface has.
func linkLocal(ns *namespace.Namespace, name string) (netip.Addr, error) {
	var found netip.Addr
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		as, err := netlink.AddrList(l, unix.AF_INET6)
		if err != nil {
			return err
		}
		for _, a := range as {
			if ip, ok := netip.AddrFromSlice(a.IP.To16()); ok && ip.IsLinkLocalUnicast() {
				found = ip
			}
		}
		return nil
	})
	return found, err
}
