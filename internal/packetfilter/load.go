package packetfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// chunk is how many addresses go into one netlink message. An attribute has
	// at most 64 KiB, of which an address takes 24 bytes.
	chunk = 1000
	// sendBuffer holds a whole transaction, which the kernel takes as one
	// message: 4 MiB are 10^5 addresses.
	sendBuffer = 4 << 20
)

// Load puts the table in force in one transaction: until it is, the old one of
// that name is; if it fails, the old one stays.
func (t Table) Load(opts ...nftables.ConnOption) error {
	c, err := open(opts)
	if err != nil {
		return fmt.Errorf("loading the packet filter: %w", err)
	}
	nt := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
	// Adding first makes deleting succeed where there was none.
	c.AddTable(nt)
	c.DelTable(nt)
	c.AddTable(nt)
	sets := map[string]*nftables.Set{}
	for _, s := range t.Sets {
		ns := &nftables.Set{Table: nt, Name: s.Name, KeyType: nftables.TypeIPAddr}
		if s.V6 {
			ns.KeyType = nftables.TypeIP6Addr
		}
		if err := c.AddSet(ns, nil); err != nil {
			return fmt.Errorf("loading the packet filter: set %s: %w", s.Name, err)
		}
		if err := addElements(c, ns, s.Addresses); err != nil {
			return err
		}
		sets[s.Name] = ns
	}
	for _, ch := range t.Chains {
		nc := &nftables.Chain{Name: ch.Name, Table: nt}
		if ch.Hook != NoHook {
			prio, policy := nftables.ChainPriority(priority), nftables.ChainPolicyAccept
			nc.Type, nc.Priority, nc.Policy, nc.Hooknum = nftables.ChainTypeFilter, &prio, &policy, nftables.ChainHookInput
			if ch.Hook == Output {
				nc.Hooknum = nftables.ChainHookOutput
			}
		}
		c.AddChain(nc)
		for _, r := range ch.Rules {
			c.AddRule(&nftables.Rule{
				Table: nt, Chain: nc, Exprs: r.exprs(t, sets),
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.Name),
			})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("loading the packet filter: %w%s", err, hint(err))
	}
	return nil
}

// Unload removes the table of that name, if there is one.
func Unload(name string, opts ...nftables.ConnOption) error {
	c, err := open(opts)
	if err != nil {
		return fmt.Errorf("removing the packet filter: %w", err)
	}
	nt := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	c.AddTable(nt) // so that deleting succeeds where there was none
	c.DelTable(nt)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the packet filter: %w%s", err, hint(err))
	}
	return nil
}

func open(opts []nftables.ConnOption) (*nftables.Conn, error) {
	roomy := nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(sendBuffer) })
	return nftables.New(append([]nftables.ConnOption{roomy}, opts...)...)
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": it needs CAP_NET_ADMIN; start it as the systemd unit does, or as root"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return ": this kernel lacks nftables (modules nf_tables, nft_ct)"
	}
	return ""
}

func addElements(c *nftables.Conn, s *nftables.Set, addrs []netip.Addr) error {
	for len(addrs) > 0 {
		n := min(chunk, len(addrs))
		if err := c.SetAddElements(s, elements(addrs[:n])); err != nil {
			return fmt.Errorf("filling set %s: %w", s.Name, err)
		}
		addrs = addrs[n:]
	}
	return nil
}

func elements(addrs []netip.Addr) []nftables.SetElement {
	var es []nftables.SetElement
	for _, a := range addrs {
		es = append(es, nftables.SetElement{Key: a.AsSlice()})
	}
	return es
}

// Offsets of the addresses in the IP headers (RFC 791 §3.1, RFC 8200 §3).
func sourceOffset(v6 bool) uint32 {
	if v6 {
		return 8
	}
	return 12
}

func destinationOffset(v6 bool) uint32 {
	if v6 {
		return 24
	}
	return 16
}

// Types of an echo request (RFC 792, RFC 4443 §4.1).
const (
	echo4 = 8
	echo6 = 128
)

func (r Rule) exprs(t Table, sets map[string]*nftables.Set) []expr.Any {
	var es []expr.Any
	add := func(e ...expr.Any) { es = append(es, e...) }
	name := func(key expr.MetaKey, s string) {
		if s != "" {
			data := make([]byte, unix.IFNAMSIZ)
			copy(data, s)
			add(&expr.Meta{Key: key, Register: 1}, equal(data))
		}
	}
	name(expr.MetaKeyIIFNAME, r.In)
	name(expr.MetaKeyOIFNAME, r.Out)
	inet := 0 // the family that is checked already
	address := func(v6, destination bool) {
		proto, length, offset := byte(unix.NFPROTO_IPV4), uint32(4), sourceOffset(v6)
		if v6 {
			proto, length = unix.NFPROTO_IPV6, 16
		}
		if destination {
			offset = destinationOffset(v6)
		}
		if inet != int(proto) {
			inet = int(proto)
			add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{proto}))
		}
		add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
	}
	prefix := func(p netip.Prefix, destination bool) {
		if !p.IsValid() {
			return
		}
		address(p.Addr().Is6(), destination)
		mask := make([]byte, p.Addr().BitLen()/8)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
			equal(p.Masked().Addr().AsSlice()))
	}
	prefix(r.SourceIn, false)
	prefix(r.DestinationIn, true)
	lookup := func(set string, destination bool) {
		if set != "" {
			address(t.isV6(set), destination)
			add(&expr.Lookup{SourceRegister: 1, SetName: set, SetID: sets[set].ID})
		}
	}
	lookup(r.SourceSet, false)
	lookup(r.DestinationSet, true)
	if r.Established {
		add(&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
	}
	transport := func(p byte) { add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p})) }
	switch r.Protocol {
	case 0:
	case tier.ICMP:
		proto, typ := byte(unix.IPPROTO_ICMP), byte(echo4)
		if t.isV6(r.SourceSet) {
			proto, typ = unix.IPPROTO_ICMPV6, echo6
		}
		transport(proto)
		add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equal([]byte{typ}))
	default:
		transport(byte(r.Protocol))
		if r.Port != 0 {
			add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				equal(binary.BigEndian.AppendUint16(nil, r.Port)))
		}
	}
	add(&expr.Counter{})
	switch r.Verdict {
	case Accept:
		add(&expr.Verdict{Kind: expr.VerdictAccept})
	case Goto:
		add(&expr.Verdict{Kind: expr.VerdictGoto, Chain: r.Goto})
	default:
		add(&expr.Verdict{Kind: expr.VerdictDrop})
	}
	return es
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

// Counts are the packets that each rule of a table in force has matched, by the
// rule's name.
func Counts(table string, opts ...nftables.ConnOption) (map[string]uint64, error) {
	c, err := open(opts)
	if err != nil {
		return nil, fmt.Errorf("reading the packet filter: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("reading the packet filter: %w", err)
	}
	counts := map[string]uint64{}
	for _, ch := range chains {
		if ch.Table.Name != table {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("reading the packet filter: %w", err)
		}
		for _, r := range rules {
			name, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					counts[name] += n.Packets
				}
			}
		}
	}
	return counts, nil
}
