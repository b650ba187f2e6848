package forbidden

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/tiers"
)

// probe is one packet that opens a flow, and where it was seen.
type probe struct {
	from, to *machine
	layer    tier.Layer
	src, dst netip.Addr
	proto    tier.Protocol
	port     uint16
	// form is what is odd about it; empty for one that any program would send.
	form string
	// socket has the kernel send it, by an IPv4-mapped address.
	socket bool
	// impossible says that the network, or the daemons on it, should carry no such
	// packet, whatever is open.
	impossible bool

	// want is the answer of the decision function.
	want  bool
	token uint16
	fd    int
}

func (p *probe) what() string {
	s := p.proto.String()
	if p.proto != tier.ICMP {
		s = strconv.Itoa(int(p.port)) + "/" + s
	}
	if p.layer == tier.Tailnet && p.dst.Is6() && p.form == "" {
		s += " over IPv6"
	}
	if p.form != "" {
		s += ", " + p.form
	}
	return s
}

func (p *probe) String() string {
	return fmt.Sprintf("%s: %s (%s) -> %s (%s) %s", p.layer, p.from.Name, p.src, p.to.Name, p.dst, p.what())
}

func (p *probe) mark() mark {
	m := mark{proto: p.proto, token: p.token, port: p.port}
	if p.proto == tier.ICMP {
		m.port = 0
	}
	return m
}

// Tokens are source ports below those that Linux gives to sockets (32768 to
// 60999), so that nothing else has them.
const (
	firstToken = 20_000
	lastToken  = 32_767
)

// service is a port that a probe asks for.
type service struct {
	proto tier.Protocol
	port  uint16
}

var (
	// common is asked of every machine: ssh, the web, DNS, KDE Connect, a ping.
	common = []service{{tier.TCP, 22}, {tier.TCP, 443}, {tier.UDP, 53}, {tier.UDP, 1716}, {tier.ICMP, 0}}
	// servers have more: other vhosts' ports, dashboards, what stands behind the
	// web server, the edge's own listeners (8081, and 9001 by Yggdrasil's
	// default), Headscale's metrics and STUN, QUIC, and tailscaled's own port.
	servers = []service{
		{tier.TCP, 80}, {tier.TCP, 444}, {tier.TCP, 3000}, {tier.TCP, 5432}, {tier.TCP, 8080}, {tier.TCP, 8081}, {tier.TCP, 8443},
		{tier.TCP, 9001}, {tier.TCP, 9090}, {tier.TCP, 65535}, {tier.UDP, 443}, {tier.UDP, 3478}, {tier.UDP, 41641},
	}
	// second is asked of a machine's second address on a layer.
	second = []service{{tier.TCP, 22}, {tier.TCP, 443}, {tier.ICMP, 0}}
	// brief is asked by machines other than the guest.
	brief = []service{{tier.TCP, 22}, {tier.TCP, 443}, {tier.UDP, 53}, {tier.ICMP, 0}}
)

// plain are the packets that any program would send, from one machine to every
// other over a layer.
func (t *town) plain(from *machine, l tier.Layer) []*probe {
	var ps []*probe
	for _, to := range t.machines {
		// A stranger's machine is its own affair; only the guest asks it.
		if to == from || to.Tier == "" && from.Name != guest {
			continue
		}
		for i, dst := range to.Addresses(l) {
			services := brief
			switch {
			case from.Name != guest && i > 0:
				continue
			case i > 0:
				services = second
			case from.Name == guest:
				services = common
				if to.Tier == tier.Infra {
					services = append(servers, common...)
				}
			}
			src, ok := ownAddress(from, l, dst)
			if !ok {
				continue
			}
			for _, s := range services {
				ps = append(ps, t.probe(probe{from: from, to: to, layer: l, src: src, dst: dst, proto: s.proto, port: s.port}))
			}
		}
	}
	return ps
}

// ownAddress is a machine's address of the same family as dst.
func ownAddress(m *machine, l tier.Layer, dst netip.Addr) (netip.Addr, bool) {
	for _, a := range m.Addresses(l) {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// odd are the packets that no honest program sends.
func (t *town) odd(from *machine, l tier.Layer) ([]*probe, error) {
	var ps []*probe
	add := func(p probe) {
		p.from, p.layer = from, l
		ps = append(ps, t.probe(p))
	}
	home, admin := t.machines[0], t.named(onyx)
	for _, to := range []*machine{home, t.named(cousin), admin, t.named(office)} {
		for _, dst := range to.Addresses(l) {
			src, ok := ownAddress(from, l, dst)
			if !ok {
				continue
			}
			// Who may do everything: the admin, by his address.
			forged, _ := ownAddress(admin, l, dst)
			if to == admin {
				forged, _ = ownAddress(home, l, dst)
			}
			for _, s := range []service{{tier.TCP, 22}, {tier.UDP, 53}, {tier.ICMP, 0}} {
				add(probe{to: to, src: forged, dst: dst, proto: s.proto, port: s.port, form: "forged source", impossible: true})
			}
			add(probe{to: to, src: dst, dst: dst, proto: tier.TCP, port: 22, form: "its own address as source", impossible: true})
			if dst.Is4() {
				add(probe{to: to, src: src, dst: dst, proto: tier.TCP, port: 22, form: "IPv4-mapped, by a socket", socket: true})
				if six, ok := ownAddress(from, l, netip.IPv6Unspecified()); ok {
					add(probe{to: to, src: six, dst: netip.AddrFrom16(dst.As16()), proto: tier.TCP, port: 22, form: "IPv4-mapped on the wire", impossible: true})
				}
			}
		}
		if l == tier.Yggdrasil {
			// Tailnet addresses in the other network.
			for _, dst := range to.Addresses(tier.Tailnet) {
				src, _ := ownAddress(from, l, netip.IPv6Unspecified())
				if dst.Is4() {
					dst = netip.AddrFrom16(dst.As16())
				}
				add(probe{to: to, src: src, dst: dst, proto: tier.TCP, port: 22, form: "a tailnet address on yggdrasil", impossible: true})
			}
		}
		ll, err := linkLocal(to.ns, interfaces[l])
		if err != nil {
			return nil, err
		}
		mine, err := linkLocal(from.ns, interfaces[l])
		if err != nil {
			return nil, err
		}
		if six, ok := ownAddress(from, l, netip.IPv6Unspecified()); ok && ll.IsValid() && mine.IsValid() {
			add(probe{to: to, src: mine, dst: ll, proto: tier.TCP, port: 22, form: "link-local", impossible: true})
			add(probe{to: to, src: six, dst: netip.IPv6LinkLocalAllNodes(), proto: tier.ICMP, form: "all nodes of the link", impossible: true})
			for _, dst := range to.Addresses(l) {
				if dst.Is6() {
					add(probe{to: to, src: mine, dst: dst, proto: tier.TCP, port: 22, form: "link-local source", impossible: true})
				}
			}
		}
	}
	if l == tier.Yggdrasil {
		// Every key has a subnet of addresses too, which no list has. The network
		// would carry these; the node itself takes none.
		for _, to := range []*machine{home, t.named(office), admin, t.named(cousin)} {
			for _, port := range []uint16{443, 22} {
				add(probe{to: to, src: subnet(from.YggdrasilAddress()), dst: to.YggdrasilAddress(), proto: tier.TCP, port: port, form: "from an address of its subnet", impossible: true})
			}
		}
	}
	return ps, nil
}

// subnet is the first address in the /64 of the node with address a: the same
// bits with the last of the prefix set (yggdrasil-go, address.SubnetForKey).
func subnet(a netip.Addr) netip.Addr {
	b := a.As16()
	b[0] |= 1
	clear(b[8:])
	b[15] = 1
	return netip.AddrFrom16(b)
}

// probe gives p its number and its answer.
func (t *town) probe(p probe) *probe {
	if t.token == 0 {
		t.token = firstToken
	}
	p.token, p.fd = t.token, -1
	t.token++
	k := tier.Packet{Source: p.src, Destination: p.dst, Protocol: p.proto, Port: p.port}
	if p.proto == tier.ICMP && p.src.Is6() {
		k.Protocol = unix.IPPROTO_ICMPV6
	}
	p.want = t.fleet.Decide(k).Allow && !p.impossible
	return &p
}

func (t *town) named(name string) *machine {
	for _, m := range t.machines {
		if m.Name == name {
			return m
		}
	}
	panic("no machine " + name)
}

const (
	// again is how long after a packet another is sent that is still unseen:
	// what Linux waits before the second SYN (RFC 6298 §2).
	again = time.Second
	// glance is how often witnesses are looked at.
	glance = 50 * time.Millisecond
)

// send sends a batch until everything that done waits for was seen, at least
// for a time and at most for another, and returns what was seen.
func (t *town) send(ctx context.Context, ps []*probe, least, most time.Duration, done func(seen map[*probe]bool) bool) (map[*probe]bool, error) {
	if t.token > lastToken {
		return nil, fmt.Errorf("sending packets: all %d numbers are used up", lastToken-firstToken)
	}
	defer func() {
		for _, p := range ps {
			if p.fd >= 0 {
				unix.Close(p.fd)
			}
		}
	}()
	seen := map[*probe]bool{}
	began := time.Now()
	var last time.Time
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		if time.Since(last) >= again {
			last = time.Now()
			for _, p := range ps {
				if seen[p] {
					continue
				}
				if err := p.send(); err != nil {
					return nil, fmt.Errorf("sending %s: %w", p, err)
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		for _, m := range t.machines {
			if err := m.witness.look(); err != nil {
				return nil, err
			}
			for _, p := range ps {
				if m != p.from && m.witness.seen[p.mark()] {
					seen[p] = true
				}
			}
		}
		if past := time.Since(began); past >= most || past >= least && done(seen) {
			return seen, nil
		}
	}
}

func (p *probe) send() error {
	if p.socket {
		return p.connect()
	}
	return p.from.senders[p.layer].send(tiers.Bytes(netip.AddrPortFrom(p.src, p.token), netip.AddrPortFrom(p.dst, p.port), p.proto))
}

// connect has a socket of the new family connect to an address of the old one.
// The kernel repeats it by itself.
func (p *probe) connect() error {
	if p.fd >= 0 {
		return nil
	}
	return p.from.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		p.fd = fd
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.BindToDevice(fd, interfaces[p.layer]); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(p.token)}); err != nil {
			return err
		}
		err = unix.Connect(fd, &unix.SockaddrInet6{Port: int(p.port), Addr: p.dst.As16()})
		if err == unix.EINPROGRESS {
			err = nil
		}
		return err
	})
}
