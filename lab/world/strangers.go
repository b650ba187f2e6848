package world

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/site"
)

const (
	// keptStrangers is how many destinations are remembered: enough to see who
	// asks, and a scan of all addresses fills no memory. All packets are counted.
	keptStrangers = 32

	// probePoll is how often AwaitProbe looks.
	probePoll = 50 * time.Millisecond

	// register0 and those after it hold 4 bytes each, and together a set's key.
	register0 = unix.NFT_REG32_00
)

// Probe is where a datagram goes that has to be counted, to show that others
// would be: nobody's address (RFC 5737), and the port where what comes is thrown
// away (RFC 863).
var Probe = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 9)

// local is what no router passes on, so that it reaches nobody outside: the
// kernel and the system's resolver speak there to the laptop's own network, to
// find the router, other machines and an address.
var local = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8"), // multicast, which the ISP does not route
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), // link-local (RFC 3927 §7, RFC 4291 §2.5.6)
	netip.MustParsePrefix("255.255.255.255/32"), // DHCP's broadcast (RFC 919 §7)
}

// Strangers counts packets that leave the laptop's network for somebody who is
// not in the directory. They are counted as they come in at the ISP's router,
// before a censor or a translation of addresses sees them.
//
//	from the laptop's leg ─┬─ to the router: DHCP, DNS, PCP ────── not counted
//	                       ├─ to a server of the directory ─────── not counted
//	                       ├─ multicast, link-local, broadcast ─── not counted
//	                       ├─ to Probe ─────────────────────────── counted apart
//	                       └─ anything else ────────────────────── counted, and remembered
type Strangers struct {
	conn           *nftables.Conn
	chain          *nftables.Chain
	seen4, seen6   *nftables.Set
	known4, known6 *nftables.Set
}

// Names of the rules that count.
const (
	ruleProbe     = "probe"
	ruleStrangers = "strangers"
)

// WatchStrangers counts from now on.
func (w *World) WatchStrangers() (*Strangers, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(w.ISP.FD()))
	if err != nil {
		return nil, fmt.Errorf("watching for strangers: %w", err)
	}
	known := servers(w.cfg.Site)
	router := netip.MustParseAddr(homeGateway)
	known = append(known, router, Twin(router))
	s := &Strangers{conn: conn}
	if err := s.install(known); err != nil {
		return nil, fmt.Errorf("watching for strangers: %w", err)
	}
	return s, nil
}

// servers are the addresses in the directory: of the control server, its relays,
// the edges and the public peers.
func servers(s *site.Site) []netip.Addr {
	all := slices.Clone(s.Control.Addresses)
	for _, r := range s.Control.Relays {
		all = append(all, r.Addresses...)
	}
	for _, p := range slices.Concat(s.Yggdrasil.Edges, s.Yggdrasil.Public) {
		all = append(all, p.Address.Addr())
	}
	return all
}

func (s *Strangers) install(known []netip.Addr) error {
	table := s.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "strangers"})
	accept := nftables.ChainPolicyAccept
	s.chain = s.conn.AddChain(&nftables.Chain{Name: "arriving", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &accept})
	if err := s.sets(known); err != nil {
		return err
	}
	pass := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	leg := make([]byte, unix.IFNAMSIZ)
	copy(leg, toLaptop)
	s.rule("", []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: leg}}, pass)
	for _, set := range []*nftables.Set{s.known4, s.known6} {
		to, _ := destination(set == s.known6, 1)
		s.rule("", to, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}, pass)
	}
	for _, p := range local {
		s.rule("", toPrefix(p), pass)
	}
	s.rule(ruleProbe, toPrefix(netip.PrefixFrom(Probe.Addr(), Probe.Addr().BitLen())), layer4(unix.IPPROTO_UDP),
		port(1), []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, Probe.Port())}},
		[]expr.Any{&expr.Counter{}}, pass)
	s.rule(ruleStrangers, []expr.Any{&expr.Counter{}})
	for _, set := range []*nftables.Set{s.seen4, s.seen6} {
		to, next := destination(set == s.seen6, register0)
		protocol := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next}}
		// In a rule of its own: a set that is full ends its rule, and no other.
		remember := []expr.Any{&expr.Dynset{SrcRegKey: register0, SetName: set.Name, SetID: set.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD)}}
		for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			s.rule("", layer4(p), to, protocol, port(next+1), remember, pass)
		}
		s.rule("", to, protocol, []expr.Any{&expr.Immediate{Register: next + 1, Data: make([]byte, 4)}}, remember)
	}
	return s.conn.Flush()
}

// sets makes those of the known addresses, and of what was seen: address,
// protocol and port.
func (s *Strangers) sets(known []netip.Addr) error {
	set := func(name string, elements []nftables.SetElement, fields ...nftables.SetDatatype) (*nftables.Set, error) {
		n := &nftables.Set{Table: s.chain.Table, Name: name, KeyType: fields[0]}
		if len(fields) > 1 {
			n.KeyType, n.Concatenation = nftables.MustConcatSetType(fields...), true
			n.Dynamic, n.Size = true, keptStrangers
		}
		return n, s.conn.AddSet(n, elements)
	}
	var of4, of6 []nftables.SetElement
	slices.SortFunc(known, netip.Addr.Compare)
	for _, a := range slices.Compact(known) {
		if e := (nftables.SetElement{Key: a.AsSlice()}); a.Is4() {
			of4 = append(of4, e)
		} else {
			of6 = append(of6, e)
		}
	}
	var errs [4]error
	s.known4, errs[0] = set("known4", of4, nftables.TypeIPAddr)
	s.known6, errs[1] = set("known6", of6, nftables.TypeIP6Addr)
	s.seen4, errs[2] = set("seen4", nil, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	s.seen6, errs[3] = set("seen6", nil, nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	return errors.Join(errs[:]...)
}

func (s *Strangers) rule(name string, parts ...[]expr.Any) {
	s.conn.AddRule(&nftables.Rule{Table: s.chain.Table, Chain: s.chain, UserData: []byte(name), Exprs: slices.Concat(parts...)})
}

// destination loads the destination's address, of one family, and says which
// register of 4 bytes is free after it.
func destination(six bool, register uint32) (load []expr.Any, next uint32) {
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(net.IPv4len)
	if six {
		family, offset, size = unix.NFPROTO_IPV6, 24, net.IPv6len
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}, register + size/4
}

func toPrefix(p netip.Prefix) []expr.Any {
	load, _ := destination(p.Addr().Is6(), 1)
	size := p.Addr().BitLen() / 8
	return append(load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func layer4(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}}}
}

// port loads the destination's, of TCP or UDP.
func port(register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

// Seen is how many packets went to strangers, and the first of those: "udp
// 192.0.2.7:53".
func (s *Strangers) Seen() (packets uint64, first []string, err error) {
	if packets, err = s.count(ruleStrangers); err != nil {
		return 0, nil, err
	}
	for _, set := range []*nftables.Set{s.seen4, s.seen6} {
		elements, err := s.conn.GetSetElements(set)
		if err != nil {
			return 0, nil, fmt.Errorf("reading who was asked: %w", err)
		}
		for _, e := range elements {
			first = append(first, stranger(e.Key))
		}
	}
	slices.Sort(first)
	return packets, first, nil
}

// stranger writes a set's key: address, protocol and port, padded to 4 bytes each.
func stranger(key []byte) string {
	const padded = 4
	a, ok := netip.AddrFromSlice(key[:max(0, len(key)-2*padded)])
	if !ok {
		return fmt.Sprintf("%x", key)
	}
	rest := key[len(key)-2*padded:]
	switch p := netip.AddrPortFrom(a, binary.BigEndian.Uint16(rest[padded:])); rest[0] {
	case unix.IPPROTO_TCP:
		return "tcp " + p.String()
	case unix.IPPROTO_UDP:
		return "udp " + p.String()
	default:
		return fmt.Sprintf("protocol %d %s", rest[0], a)
	}
}

// Probes are the datagrams to Probe.
func (s *Strangers) Probes() (uint64, error) { return s.count(ruleProbe) }

// AwaitProbe waits until more datagrams to Probe were counted than had been
// before, and gives up with ctx.
func (s *Strangers) AwaitProbe(ctx context.Context, before uint64) error {
	tick := time.NewTicker(probePoll)
	defer tick.Stop()
	for {
		n, err := s.Probes()
		if err != nil || n > before {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a datagram to %v: it was not counted, so that others would not be either: %w", Probe, context.Cause(ctx))
		}
	}
}

func (s *Strangers) count(name string) (uint64, error) {
	rules, err := s.conn.GetRules(s.chain.Table, s.chain)
	if err != nil {
		return 0, fmt.Errorf("counting packets to strangers: %w", err)
	}
	for _, r := range rules {
		if string(r.UserData) != name {
			continue
		}
		for _, e := range r.Exprs {
			if n, ok := e.(*expr.Counter); ok {
				return n.Packets, nil
			}
		}
	}
	return 0, errors.New("counting packets to strangers: the router no longer counts them")
}
