// Package yggfilter keeps the Yggdrasil interface closed with nftables.
//
// Whoever joins Yggdrasil stands with every listening port on a flat public
// network: AllowedPublicKeys says whom a node peers with, not who may send it
// packets. So the table is loaded before the interface exists, and it stays
// when the daemon dies.
//
//	table inet veilor_ygg {
//	  chain input {                       # hook input
//	    iif lo accept                     # the node talks to its own address
//	    iifname ygg0 goto from
//	    ip6 saddr 200::/7 drop            # no overlay address from anywhere else
//	  }
//	  chain from {
//	    udp sport/dport 41641 drop        # tailscaled would tunnel itself through Yggdrasil
//	    ip6 saddr @revoked drop           # before established: they lose what they had
//	    ct state established,related accept
//	    icmpv6 errors accept
//	    ip6 saddr @admitted icmpv6 echo-request accept    # only where a port is open
//	    ip6 saddr @admitted tcp dport {accepted} accept   # or everything, see AcceptAll
//	    drop
//	  }
//	  chain forward { ... drop }          # hook forward: never a router, in or out
//	  chain output {                      # hook output
//	    oif lo accept
//	    oifname ygg0 goto to
//	    ip6 daddr 200::/7 reject          # nothing for the overlay leaves by the ISP
//	  }
//	  chain to {
//	    udp sport/dport 41641 drop
//	    ip6 daddr @revoked drop
//	  }
//	}
//
// "accept" ends this table only; a host firewall beside it still has its say.
package yggfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is the name of the table in family inet.
const Table = "veilor_ygg"

// Overlay is Yggdrasil's address range: 200::/8 are nodes, 300::/8 their
// subnets (yggdrasil-go, src/address).
var Overlay = netip.MustParsePrefix("200::/7")

// tailscalePort is tailscaled's default UDP port. It offers every local address
// as an endpoint, ours too, and was measured to take it when UDP is blocked.
const tailscalePort = 41641

// priority is 5 before the usual filters (firewalld, ufw, Docker), so that what
// is dropped here never reaches theirs.
const priority = -5

// errorTypes are the ICMPv6 errors of RFC 4443 §3; without packet-too-big a
// connection hangs. Neighbour discovery does not happen on a TUN.
var errorTypes = []byte{1, 2, 3, 4}

const echoRequest = 128 // RFC 4443 §4.1

const (
	// chunk is how many addresses go into one netlink message: an attribute has
	// at most 64 KiB, of which an address takes 24 bytes.
	chunk = 1000
	// sendBuffer holds a whole transaction: 4 MiB are 10^5 addresses.
	sendBuffer = 4 << 20
)

// Filter is the table for one interface.
type Filter struct {
	// Interface is the TUN's name: "ygg0".
	Interface string
	// Accept lists the TCP ports that are open to the nodes in From.
	Accept []uint16
	// From are the addresses of the nodes that are admitted. An address is the
	// hash of a key, and the network delivers it for no other. Empty: nobody.
	From []netip.Addr
	// AcceptAll opens everything to the nodes in From, in place of Accept. It is
	// for a machine on which the tiers' table (package packetfilter), which comes
	// before this one, says what each of them may open.
	AcceptAll bool
	// Revoked are the addresses of nodes that get and send nothing, not even in
	// flows that stand.
	Revoked []netip.Addr
}

// Load puts the table in place, atomically: whatever table of that name there
// was is replaced in the same transaction.
func (f Filter) Load(opts ...nftables.ConnOption) error {
	if len(f.Interface) == 0 || len(f.Interface) >= unix.IFNAMSIZ {
		return fmt.Errorf("loading the packet filter: %q is no interface name", f.Interface)
	}
	// The kernel takes a transaction as one message.
	roomy := nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(sendBuffer) })
	c, err := nftables.New(append([]nftables.ConnOption{roomy}, opts...)...)
	if err != nil {
		return fmt.Errorf("loading the packet filter: %w", err)
	}
	t := clear(c)
	c.AddTable(t)
	revoked, err := addressSet(c, t, "revoked", f.Revoked)
	if err == nil {
		err = f.input(c, t, revoked)
	}
	if err != nil {
		return fmt.Errorf("loading the packet filter: %w", err)
	}
	f.forward(c, t)
	f.output(c, t, revoked)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("loading the packet filter: %w%s", err, hint(err))
	}
	return nil
}

// Unload removes the table. Call it only when the interface is gone.
func Unload(opts ...nftables.ConnOption) error {
	c, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("removing the packet filter: %w", err)
	}
	clear(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the packet filter: %w%s", err, hint(err))
	}
	return nil
}

// clear queues the removal of the table. Adding it first makes that succeed
// where there was none.
func clear(c *nftables.Conn) *nftables.Table {
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	return t
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": it needs CAP_NET_ADMIN; start it as the systemd unit does, or as root"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT):
		return ": this kernel lacks nftables (modules nf_tables, nft_ct, nft_reject_inet)"
	}
	return ""
}

func (f Filter) input(c *nftables.Conn, t *nftables.Table, revoked *nftables.Set) error {
	from := c.AddChain(&nftables.Chain{Name: "from", Table: t})
	tailscale(c, t, from)
	add(c, t, from, in(revoked, source), counter, drop)
	add(c, t, from, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	for _, typ := range errorTypes {
		add(c, t, from, protocol(unix.IPPROTO_ICMPV6), transport(0, []byte{typ}), accept)
	}
	if len(f.Accept) > 0 || f.AcceptAll {
		if err := f.admit(c, t, from); err != nil {
			return err
		}
	}
	add(c, t, from, counter, drop)

	hook := base(c, t, "input", nftables.ChainHookInput)
	add(c, t, hook, name(expr.MetaKeyIIFNAME, "lo"), accept)
	add(c, t, hook, name(expr.MetaKeyIIFNAME, f.Interface), jump("from"))
	add(c, t, hook, overlay(source), counter, drop)
	return nil
}

// admit opens the ports to the nodes in From. Who serves may be pinged by them;
// a laptop, which serves nobody, need not say that it is there.
func (f Filter) admit(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) error {
	set, err := addressSet(c, t, "admitted", f.From)
	if err != nil {
		return err
	}
	if f.AcceptAll {
		add(c, t, ch, in(set, source), accept)
		return nil
	}
	add(c, t, ch, in(set, source), protocol(unix.IPPROTO_ICMPV6), transport(0, []byte{echoRequest}), accept)
	for _, port := range f.Accept {
		add(c, t, ch, in(set, source), protocol(unix.IPPROTO_TCP), transport(2, binary.BigEndian.AppendUint16(nil, port)), accept)
	}
	return nil
}

// addressSet adds a set of nodes' addresses.
func addressSet(c *nftables.Conn, t *nftables.Table, name string, addrs []netip.Addr) (*nftables.Set, error) {
	set := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIP6Addr}
	if err := c.AddSet(set, nil); err != nil {
		return nil, err
	}
	nodes := slices.Clone(addrs)
	slices.SortFunc(nodes, netip.Addr.Compare)
	nodes = slices.Compact(nodes)
	for some := range slices.Chunk(nodes, chunk) {
		var elements []nftables.SetElement
		for _, a := range some {
			if !Overlay.Contains(a) {
				return nil, fmt.Errorf("%s is no address of a node: those are in %s", a, Overlay)
			}
			elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
		}
		if err := c.SetAddElements(set, elements); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// in matches packets whose address at offset is in set.
func in(set *nftables.Set, offset uint32) part {
	return func() []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			equal([]byte{unix.NFPROTO_IPV6}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 16},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		}
	}
}

func (f Filter) forward(c *nftables.Conn, t *nftables.Table) {
	ch := base(c, t, "forward", nftables.ChainHookForward)
	add(c, t, ch, name(expr.MetaKeyIIFNAME, f.Interface), counter, drop)
	add(c, t, ch, name(expr.MetaKeyOIFNAME, f.Interface), counter, drop)
	add(c, t, ch, overlay(source), counter, drop)
	add(c, t, ch, overlay(destination), counter, drop)
}

func (f Filter) output(c *nftables.Conn, t *nftables.Table, revoked *nftables.Set) {
	to := c.AddChain(&nftables.Chain{Name: "to", Table: t})
	tailscale(c, t, to)
	add(c, t, to, in(revoked, destination), counter, drop)
	out := base(c, t, "output", nftables.ChainHookOutput)
	add(c, t, out, name(expr.MetaKeyOIFNAME, "lo"), accept)
	add(c, t, out, name(expr.MetaKeyOIFNAME, f.Interface), jump("to"))
	// Rejected and not dropped: the caller goes on to its next layer at once. TCP
	// gets a reset because an ICMPv6 error reaches a socket that is still in
	// connect(2) only with the SYN's retransmission, after 1 s (measured).
	add(c, t, out, overlay(destination), protocol(unix.IPPROTO_TCP), counter, reset)
	add(c, t, out, overlay(destination), counter, reject)
}

// tailscale drops tailscaled's own packets in either direction.
func tailscale(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain) {
	port := binary.BigEndian.AppendUint16(nil, tailscalePort)
	for _, offset := range []uint32{0, 2} { // source, destination
		add(c, t, ch, protocol(unix.IPPROTO_UDP), transport(offset, port), counter, drop)
	}
}

func base(c *nftables.Conn, t *nftables.Table, name string, hook *nftables.ChainHook) *nftables.Chain {
	prio, policy := nftables.ChainPriority(priority), nftables.ChainPolicyAccept
	return c.AddChain(&nftables.Chain{
		Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &prio, Policy: &policy,
	})
}

// The parts of rules. A part is a function because the library's expressions
// are pointers that must not be shared between rules.
type part func() []expr.Any

func add(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain, parts ...part) {
	r := &nftables.Rule{Table: t, Chain: ch}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p()...)
	}
	c.AddRule(r)
}

func counter() []expr.Any { return []expr.Any{&expr.Counter{}} }
func accept() []expr.Any  { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any    { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func jump(chain string) part {
	return func() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
}

// name matches an interface by its name, which need not exist yet.
func name(key expr.MetaKey, ifname string) part {
	return func() []expr.Any {
		data := make([]byte, unix.IFNAMSIZ)
		copy(data, ifname)
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(data)}
	}
}

func protocol(p byte) part {
	return func() []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p})}
	}
}

// transport matches bytes of the transport header.
func transport(offset uint32, data []byte) part {
	return func() []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(data))},
			equal(data),
		}
	}
}

func ctState(bits uint32) part {
	return func() []expr.Any {
		return []expr.Any{
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		}
	}
}

// Offsets of the addresses in an IPv6 header (RFC 8200 §3).
const (
	source      = 8
	destination = 24
)

// overlay matches packets whose address at offset is in Overlay.
func overlay(offset uint32) part {
	return func() []expr.Any {
		mask := make([]byte, 16)
		for i := range Overlay.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		addr := Overlay.Addr().As16()
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			equal([]byte{unix.NFPROTO_IPV6}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 16},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)},
			equal(addr[:]),
		}
	}
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}
