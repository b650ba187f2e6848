// Package fence keeps tailscaled to the addresses in the directory. By itself it
// asks its vendor's servers whenever the control server's name cannot be
// resolved, and looks for captive portals there: that tells whoever watches what
// runs on this machine, and a vendor who uses it.
//
// The fence is an nftables table on what leaves the machine, of packets that are
// tailscaled's: those with its mark, and those of its control group, since not
// every socket of it is marked.
//
//	its packet ── lo, tailscale0 ─────────────────────────────── out
//	   │
//	   ├─ TCP ───── to the control server or a relay ──────────── out
//	   │              anything else ───────────────────────────── reset
//	   ├─ ICMP ──── to the control server or a relay ──────────── out
//	   └─ UDP ─┬─── DNS, DoT, DoQ, mDNS ───────────────────────── dropped
//	           ├─── Yggdrasil's addresses (a tunnel in a tunnel) ─ dropped
//	           ├─── to the control server or a relay (STUN) ───── out
//	           ├─── STUN to anybody else ──────────────────────── dropped
//	           ├─── from port 41641 (WireGuard, disco, to peers) ─ out
//	           └─── 5351 in private ranges (the router's PCP) ─── out
//
// What is not listed is dropped. Names are resolved by the machine's own
// resolver, over lo.
package fence

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
	"tailscale.com/tsconst"

	"github.com/veilor/veilor-os/internal/packetfilter"
)

const (
	// Table is the name of the table, in the family inet.
	Table = "veilor_fence"
	// wireguardPort is what tailscaled binds by its packages' default
	// (/etc/default/tailscaled). From another port its UDP does not leave, and
	// what is left is the relay.
	wireguardPort = 41641
	// pcpPort is where a router is asked for a port (RFC 6887 §19.4; NAT-PMP too).
	pcpPort = 5351
	// stunCookie is in bytes 4 to 7 of every STUN message (RFC 8489 §5).
	stunCookie = 0x2112A442

	chainOut = "out"
	chainIts = "tailscaled"
	set4     = "servers4"
	set6     = "servers6"
	setGroup = "group"
	// cgroupRoot is where systemd keeps control groups.
	cgroupRoot = "/sys/fs/cgroup"
)

// Names of rules, by which Counts counts.
const (
	Local      = "local"
	Servers4   = "to a server of the directory, IPv4"
	Servers6   = "to a server of the directory, IPv6"
	NoTCP      = "TCP to somebody else"
	NoDNS      = "DNS past the resolver"
	NoTunnel   = "through Yggdrasil"
	NoSTUN     = "STUN to somebody else"
	Peers      = "to peers"
	Router     = "to the router"
	NoRest     = "anything else"
	itsMark    = "its mark"
	itsGroup   = "its control group"
	tailscale0 = packetfilter.TailnetInterface
)

// dnsPorts are DNS, over TLS or QUIC, and multicast.
var dnsPorts = []uint16{53, 853, 5353}

// privateRanges are where a router is (RFC 1918, RFC 3927).
var privateRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"),
}

// yggdrasil is the range of its addresses.
var yggdrasil = netip.MustParsePrefix("200::/7")

// Config says what is let out.
type Config struct {
	// Servers are the control server's and the relays' addresses.
	Servers []netip.Addr
	// Group is tailscaled's control group below /sys/fs/cgroup, as
	// "system.slice/tailscaled.service"; empty to go by the mark alone.
	Group string
	// Root is where control groups of version 2 are; empty for /sys/fs/cgroup.
	Root string
}

// ErrNoGroup is a fence that is in force, by the mark alone: the control group
// is not there, or the kernel cannot match it.
var ErrNoGroup = errors.New("sockets that tailscaled does not mark are not fenced")

// Load puts the fence in force in one transaction: until it is, the old one is;
// if it fails, the old one stays. It may wrap ErrNoGroup, and then is in force.
func Load(cfg Config, opts ...nftables.ConnOption) error {
	if cfg.Group == "" {
		return load(cfg.Servers, nil, 0, opts)
	}
	id, level, err := groupID(cmp.Or(cfg.Root, cgroupRoot), cfg.Group)
	if err == nil {
		if err = load(cfg.Servers, &id, level, opts); err == nil {
			return nil
		}
	}
	if err2 := load(cfg.Servers, nil, 0, opts); err2 != nil {
		return err2
	}
	return fmt.Errorf("fencing tailscaled: %w: %w", ErrNoGroup, err)
}

// groupID is the id and the depth of a control group below root.
func groupID(root, group string) (uint64, uint32, error) {
	if !filepath.IsLocal(group) {
		return 0, 0, fmt.Errorf("%q is no control group", group)
	}
	info, err := os.Stat(filepath.Join(root, group))
	if err != nil {
		return 0, 0, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return 0, 0, fmt.Errorf("%s is no control group", group)
	}
	return s.Ino, uint32(strings.Count(filepath.Clean(group), "/") + 1), nil
}

func load(servers []netip.Addr, group *uint64, level uint32, opts []nftables.ConnOption) error {
	c, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("fencing tailscaled: %w", err)
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	// Adding first makes deleting succeed where there was none.
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	b := builder{c: c, t: t}
	if err := b.sets(servers, group); err != nil {
		return fmt.Errorf("fencing tailscaled: %w", err)
	}
	b.rules(level)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("fencing tailscaled: %w", err)
	}
	return nil
}

// Counts are the packets that each rule has matched, by its name.
func Counts(opts ...nftables.ConnOption) (map[string]uint64, error) {
	return packetfilter.Counts(Table, opts...)
}

// builder fills one table.
type builder struct {
	c           *nftables.Conn
	t           *nftables.Table
	v4, v6, ids *nftables.Set
	chain       *nftables.Chain
}

func (b *builder) sets(servers []netip.Addr, group *uint64) error {
	b.v4 = &nftables.Set{Table: b.t, Name: set4, KeyType: nftables.TypeIPAddr}
	b.v6 = &nftables.Set{Table: b.t, Name: set6, KeyType: nftables.TypeIP6Addr}
	var e4, e6 []nftables.SetElement
	seen := map[netip.Addr]bool{}
	for _, a := range servers {
		if seen[a] {
			continue
		}
		seen[a] = true
		if a.Is4() {
			e4 = append(e4, nftables.SetElement{Key: a.AsSlice()})
		} else {
			e6 = append(e6, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	if err := b.c.AddSet(b.v4, e4); err != nil {
		return err
	}
	if err := b.c.AddSet(b.v6, e6); err != nil {
		return err
	}
	if group == nil {
		return nil
	}
	b.ids = &nftables.Set{Table: b.t, Name: setGroup, KeyType: nftables.TypeCGroupV2}
	return b.c.AddSet(b.ids, []nftables.SetElement{{Key: binaryutil.NativeEndian.PutUint64(*group)}})
}

func (b *builder) rule(name string, parts ...[]expr.Any) {
	var es []expr.Any
	for _, p := range parts {
		es = append(es, p...)
	}
	last := es[len(es)-1]
	es = append(es[:len(es)-1:len(es)-1], &expr.Counter{}, last)
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: b.chain, Exprs: es, UserData: userdata.AppendString(nil, userdata.TypeComment, name)})
}

func (b *builder) rules(level uint32) {
	policy := nftables.ChainPolicyAccept
	out := b.c.AddChain(&nftables.Chain{
		Name: chainOut, Table: b.t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	its := b.c.AddChain(&nftables.Chain{Name: chainIts, Table: b.t})
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainIts}}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}

	b.chain = out
	b.rule(itsMark, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(tsconst.LinuxFwmarkMaskNum), Xor: make([]byte, 4),
		},
		equal(binaryutil.NativeEndian.PutUint32(tsconst.LinuxBypassMarkNum)),
	}, jump)
	if b.ids != nil {
		b.rule(itsGroup, []expr.Any{
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: b.ids.Name, SetID: b.ids.ID},
		}, jump)
	}

	b.chain = its
	b.rule(Local, outInterface("lo"), accept)
	b.rule(Local, outInterface(tailscale0), accept)
	for _, p := range dnsPorts {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			b.rule(NoDNS, transport(proto), port(2, p), drop)
		}
	}
	b.rule(NoTunnel, toPrefix(yggdrasil), drop)
	b.rule(Servers4, family(unix.NFPROTO_IPV4), destination(16, 4), in(b.v4), accept)
	b.rule(Servers6, family(unix.NFPROTO_IPV6), destination(24, 16), in(b.v6), accept)
	// A reset ends the attempt at once; after a drop it would wait for minutes
	// and ask the next.
	b.rule(NoTCP, transport(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(NoSTUN, transport(unix.IPPROTO_UDP), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8 + 4, Len: 4},
		equal(binary.BigEndian.AppendUint32(nil, stunCookie)),
	}, drop)
	b.rule(Peers, transport(unix.IPPROTO_UDP), port(0, wireguardPort), accept)
	for _, p := range privateRanges {
		b.rule(Router, toPrefix(p), transport(unix.IPPROTO_UDP), port(2, pcpPort), accept)
	}
	b.rule(NoRest, drop)
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

func outInterface(name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal(data)}
}

func transport(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{proto})}
}

func family(f byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f})}
}

// port is the source port at offset 0, the destination's at 2.
func port(offset uint32, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, p)),
	}
}

// destination is the address at offset 16 of an IPv4 header (RFC 791 §3.1), or
// 24 of an IPv6 one (RFC 8200 §3).
func destination(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

func in(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func toPrefix(p netip.Prefix) []expr.Any {
	f, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if p.Addr().Is6() {
		f, offset = unix.NFPROTO_IPV6, 24
	}
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	es := append(family(f), destination(offset, uint32(len(mask)))...)
	return append(es,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		equal(p.Masked().Addr().AsSlice()))
}

// Remove takes the fence away; that it is not there is no error.
func Remove(opts ...nftables.ConnOption) error {
	c, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("removing the fence of tailscaled: %w", err)
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // deleting succeeds then
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the fence of tailscaled: %w", err)
	}
	return nil
}
