package world

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/lab/namespace"
)

// Forget is after how long a router's address translation forgets a flow that
// nobody uses, in seconds: what cheap ones do.
const Forget = "60"

// Masquerade has the ISP translate the laptop's IPv4 addresses to its own, as
// most do, and let in nothing by IPv6 that the laptop did not begin. Flows are
// then known by the router's connection tracking only, and forgotten with it.
func (w *World) Masquerade() error {
	if err := translate(w.ISP, netip.PrefixFrom(LaptopAddress, 24), toLaptop); err != nil || !w.cfg.IPv6 {
		return err
	}
	return w.firewall()
}

// LimitLaptop lets the laptop's leg carry no more than rate bytes a second towards it; 0
// ends that.
func (w *World) LimitLaptop(rate uint64) error { return w.ISP.Limit(toLaptop, rate) }

// firewall drops IPv6 packets to and from the laptop of flows that the router
// does not know, but for those that the laptop begins.
func (w *World) firewall() error {
	conn, err := nftables.New(nftables.WithNetNSFd(w.ISP.FD()))
	if err != nil {
		return fmt.Errorf("raising the firewall: %w", err)
	}
	accept := nftables.ChainPolicyAccept
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "firewall"})
	chain := conn.AddChain(&nftables.Chain{Name: "through", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRaw, Policy: &accept})
	leg := make([]byte, unix.IFNAMSIZ)
	copy(leg, toLaptop)
	for side, states := range map[expr.MetaKey]uint32{
		expr.MetaKeyIIFNAME: expr.CtStateBitINVALID, expr.MetaKeyOIFNAME: expr.CtStateBitINVALID | expr.CtStateBitNEW,
	} {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: side, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: leg},
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("raising the firewall: %w", err)
	}
	return nil
}

// translate has a router translate the addresses of the network on leg, a /24,
// to its own, and forget soon.
func translate(router *namespace.Namespace, network netip.Prefix, leg string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(router.FD()))
	if err != nil {
		return fmt.Errorf("translating addresses: %w", err)
	}
	accept := nftables.ChainPolicyAccept
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := conn.AddChain(&nftables.Chain{Name: "masquerade", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &accept})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, leg)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 3}, // the first three bytes of the source
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network.Addr().AsSlice()[:3]},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("translating addresses: %w", err)
	}
	for _, setting := range []struct{ key, value string }{
		{"net.netfilter.nf_conntrack_udp_timeout", Forget},
		{"net.netfilter.nf_conntrack_udp_timeout_stream", Forget},
		{"net.netfilter.nf_conntrack_tcp_timeout_established", Forget},
		// A packet in the middle of a flow that is not known begins none.
		{"net.netfilter.nf_conntrack_tcp_loose", "0"},
	} {
		if err := router.Sysctl(setting.key, setting.value); err != nil {
			return err
		}
	}
	return nil
}
