package world

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Masquerade has the ISP translate the laptop's addresses to its own, as most do
// with IPv4. Flows are then known by the router's connection tracking only, and
// forgotten with it.
func (w *World) Masquerade() error {
	conn, err := nftables.New(nftables.WithNetNSFd(w.ISP.FD()))
	if err != nil {
		return fmt.Errorf("translating addresses: %w", err)
	}
	accept := nftables.ChainPolicyAccept
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := conn.AddChain(&nftables.Chain{Name: "masquerade", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &accept})
	leg := make([]byte, unix.IFNAMSIZ)
	copy(leg, toLaptop)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 3}, // 10.88.1.0/24
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: LaptopAddress.AsSlice()[:3]},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: leg},
		&expr.Masq{},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("translating addresses: %w", err)
	}
	return nil
}
