package cost

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/lab/world"
)

const (
	// leg is the router's interface to the laptop.
	leg = "to-laptop"
	// questions are the bytes of DNS, neighbours those that find the router, which
	// IPv4 does below IP; the other classes are named after daemons.
	questions  = "dns"
	neighbours = "neighbours"
)

// meter counts the laptop's bytes on the ISP's side of its cable, of both families:
// tailscaled uses whichever answers, and a laptop pays for both.
type meter struct {
	conn   *nftables.Conn
	chains map[*nftables.Chain]func(*Wire) *int64
}

// newMeter counts from now on. What goes to a Yggdrasil peer is veilor-ygg's, what
// asks a resolver nobody's, the rest tailscaled's: veilor-mesh sends by the
// overlays only.
func newMeter(router int) (*meter, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(router))
	if err != nil {
		return nil, fmt.Errorf("counting bytes: %w", err)
	}
	m := &meter{conn: conn, chains: map[*nftables.Chain]func(*Wire) *int64{}}
	for _, f := range families {
		m.add(f)
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("counting bytes: %w", err)
	}
	return m, nil
}

// family is where a header has its addresses (RFC 791 §3.1, RFC 8200 §3).
type family struct {
	table                     nftables.TableFamily
	source, destination, size uint32
	// of is an address of the world's in this family.
	of func(netip.Addr) netip.Addr
}

var families = []family{
	{nftables.TableFamilyIPv4, 12, 16, 4, func(a netip.Addr) netip.Addr { return a }},
	{nftables.TableFamilyIPv6, 8, 24, 16, world.Twin},
}

// add queues a family's table.
func (m *meter) add(f family) {
	table := m.conn.AddTable(&nftables.Table{Family: f.table, Name: "meter"})
	accept := nftables.ChainPolicyAccept
	for _, d := range []struct {
		name string
		hook *nftables.ChainHook
		// before addresses are translated, and after they are translated back
		priority *nftables.ChainPriority
		leg      expr.MetaKey
		// the laptop's address, and address and port of the other end, in the
		// headers
		laptop, address, port uint32
		count                 func(*Wire) *int64
	}{
		{"up", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, expr.MetaKeyIIFNAME, f.source, f.destination, 2, func(w *Wire) *int64 { return &w.Up }},
		{"down", nftables.ChainHookPostrouting, nftables.ChainPriorityLast, expr.MetaKeyOIFNAME, f.destination, f.source, 0, func(w *Wire) *int64 { return &w.Down }},
	} {
		chain := m.conn.AddChain(&nftables.Chain{Name: d.name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: d.hook, Priority: d.priority, Policy: &accept})
		m.chains[chain] = d.count
		is := func(a netip.Addr, offset uint32) []expr.Any {
			return []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.of(a).AsSlice()},
			}
		}
		add := func(class string, match ...expr.Any) {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, leg)
			on := append([]expr.Any{ // others live in the laptop's network
				&expr.Meta{Key: d.leg, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			}, is(world.LaptopAddress, d.laptop)...)
			m.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: []byte(class),
				Exprs: append(append(on, match...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})})
		}
		protocol := func(p byte) []expr.Any {
			return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
		}
		for _, peer := range []netip.Addr{world.EdgeAddress, world.FarEdgeAddress, world.PeerAddress, world.SecondPeerAddress} {
			add(ygg, append(protocol(unix.IPPROTO_TCP), is(peer, d.address)...)...)
		}
		for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add(questions, append(protocol(p),
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: d.port, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}})...)
		}
		add(neighbours, protocol(unix.IPPROTO_ICMPV6)...)
		add(tailscaled)
	}
}

// read is what each class has had so far.
func (m *meter) read() (map[string]Wire, error) {
	total := map[string]Wire{}
	for chain, count := range m.chains {
		rules, err := m.conn.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("reading the counters: %w", err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					w := total[string(r.UserData)]
					*count(&w) += int64(n.Bytes)
					total[string(r.UserData)] = w
				}
			}
		}
	}
	return total, nil
}
