// Package loopfilter says who may connect to the services' loopback addresses:
// which users of this machine, and nobody from another.
//
// The addresses stand for services of the mesh, and the mesh admits the machine,
// not its users. So a daemon that was broken into (a web server, a print
// spooler) must not reach the mesh through the forwarder: only root and the
// people who log in may. The system's resolver may ask for names.
//
// Linux drops what comes from outside for 127.0.0.0/8, but not where
// net.ipv4.conf.*.route_localnet is 1, and tools for containers set that.
//
//	table ip veilor_loop {
//	  chain prerouting {                            # hook prerouting, priority raw
//	    iifname != "lo" ip daddr 127.83.0.0/16 counter drop
//	  }
//	  chain output {                                # hook output
//	    ip daddr != 127.83.0.0/16 accept
//	    meta skuid 0 accept
//	    meta skuid 1000-60000 accept                # UID_MIN-UID_MAX of login.defs
//	    meta skuid 60001-60513 accept               # systemd-homed
//	    meta skuid FORWARDER accept                 # its answers
//	    ip daddr 127.83.0.53 meta skuid RESOLVER accept
//	    meta skuid 0-4294967295 counter reject      # has an owner, and it is none of these
//	  }
//	}
//
// A packet without an owner is the kernel's own answer to somebody else's.
package loopfilter

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the name of the table in family ip.
const Table = "veilor_loop"

// Forwarder is who veilor-mesh.service runs as.
const Forwarder = "_veilor"

// Addresses are the services' and the resolver's (site: loopback).
var Addresses = netip.MustParsePrefix("127.83.0.0/16")

// Range is a range of user ids, both ends in it.
type Range struct{ First, Last uint32 }

// The defaults of login.defs(5), and the range that systemd gives to users whose
// home directory is one of systemd-homed (UIDS-GIDS.md).
var (
	people = Range{1000, 60000}
	homed  = Range{60001, 60513}
)

// resolvers are the names of the users that system resolvers run as, on Fedora
// and on Debian.
var resolvers = []string{"unbound", "systemd-resolve", "dnsconfd", "_dnsconfd", "dnsmasq"}

// Filter is the table.
type Filter struct {
	// Users may connect to every address.
	Users []Range
	// Resolvers may ask Names, and nothing else.
	Resolvers []uint32
	// Names is the address of the zone's server.
	Names netip.Addr
}

// ForMachine is the filter for this machine: people by its login.defs, the
// forwarder's user, and the resolvers that are installed. root is where /etc is.
func ForMachine(root fs.FS, names netip.Addr, forwarder string) (Filter, error) {
	f := Filter{Users: []Range{{0, 0}, homed}, Names: names}
	who, err := logins(root)
	if err != nil {
		return f, err
	}
	f.Users = append(f.Users, who)
	ids, err := users(root)
	if err != nil {
		return f, err
	}
	id, ok := ids[forwarder]
	if !ok {
		return f, fmt.Errorf("looking up the forwarder's user: there is no %s; `systemd-sysusers` makes it", forwarder)
	}
	f.Users = append(f.Users, Range{id, id})
	for _, name := range resolvers {
		if id, ok := ids[name]; ok {
			f.Resolvers = append(f.Resolvers, id)
		}
	}
	return f, nil
}

// users reads the ids of users by their names. On a system that is an image
// those of its packages are in /usr/lib/passwd (nss-altfiles).
func users(root fs.FS) (map[string]uint32, error) {
	ids := map[string]uint32{}
	for _, path := range []string{"usr/lib/passwd", "etc/passwd"} { // the latter wins
		f, err := root.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the list of users: %w", err)
		}
		err = parsePasswd(f, ids)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading the list of users: %s: %w", path, err)
		}
	}
	return ids, nil
}

// parsePasswd reads passwd(5) into ids. Lines that are none are passed over, as
// the C library does.
func parsePasswd(r io.Reader, ids map[string]uint32) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 4 || fields[0] == "" {
			continue
		}
		if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			ids[fields[0]] = uint32(id)
		}
	}
	return lines.Err()
}

// logins reads which user ids people have.
func logins(root fs.FS) (Range, error) {
	f, err := root.Open("etc/login.defs")
	if errors.Is(err, fs.ErrNotExist) {
		return people, nil
	}
	if err != nil {
		return people, fmt.Errorf("reading which users are people: %w", err)
	}
	defer f.Close()
	return parseLoginDefs(f)
}

// parseLoginDefs reads UID_MIN and UID_MAX. What is absent has its default; what
// is nonsense, or would let a daemon in, is an error.
func parseLoginDefs(r io.Reader) (Range, error) {
	got := people
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "UID_MIN" && fields[0] != "UID_MAX" {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 0, 32)
		if err != nil {
			return people, fmt.Errorf("reading login.defs: %s %q is no user id", fields[0], fields[1])
		}
		if fields[0] == "UID_MIN" {
			got.First = uint32(n)
		} else {
			got.Last = uint32(n)
		}
	}
	if err := lines.Err(); err != nil {
		return people, fmt.Errorf("reading login.defs: %w", err)
	}
	// Below 500 are system users on every distribution there is; 61184 is where
	// systemd's dynamic ones begin.
	if got.First < 500 || got.Last < got.First || got.Last >= 61184 {
		return people, fmt.Errorf("reading login.defs: UID_MIN %d and UID_MAX %d are no range of people", got.First, got.Last)
	}
	return got, nil
}

// LoggedIn says whether a user is one that people log in as, or root. It is the
// same rule, for sockets whose peer is known.
func LoggedIn(uid uint32) bool {
	who, err := logins(os.DirFS("/"))
	if err != nil {
		who = people
	}
	return uid == 0 || who.has(uid) || homed.has(uid)
}

func (r Range) has(uid uint32) bool { return r.First <= uid && uid <= r.Last }

// loopback is the name of the interface; the kernel gives it and no other has it.
const loopback = "lo"

// Load puts the table in place, atomically: whatever table of that name there
// was is replaced in the same transaction.
func (f Filter) Load(opts ...nftables.ConnOption) error {
	c, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("loading the filter of users: %w", err)
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyIPv4}
	// Adding first makes deleting succeed where there was none.
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	prio, policy := *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept
	out := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &prio, Policy: &policy,
	})
	// Before connections are tracked: what is dropped here leaves no trace there.
	first := *nftables.ChainPriorityRaw
	in := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &first, Policy: &policy,
	})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t, Chain: chain}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}
	add := func(parts ...[]expr.Any) { rule(out, parts...) }
	counter := []expr.Any{&expr.Counter{}}
	rule(in, outside(), to(Addresses, expr.CmpOpEq), counter, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	add(to(Addresses, expr.CmpOpNeq), accept)
	for _, r := range f.Users {
		add(owner(r), accept)
	}
	for _, id := range f.Resolvers {
		add(to(netip.PrefixFrom(f.Names, 32), expr.CmpOpEq), owner(Range{id, id}), accept)
	}
	all := Range{0, ^uint32(0)}
	add(tcp(), owner(all), counter, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	add(owner(all), counter, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}}) // RFC 1812 §5.2.7.1: administratively prohibited
	if err := c.Flush(); err != nil {
		return fmt.Errorf("loading the filter of users: %w%s", err, hint(err))
	}
	return nil
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": it needs CAP_NET_ADMIN; run it as root"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT):
		return ": this kernel lacks nftables (modules nf_tables, nft_reject_ipv4)"
	}
	return ""
}

// to matches the destination against a prefix.
func to(p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		// 16 is where the destination is in an IPv4 header (RFC 791 §3.1).
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// outside matches packets that came from another machine, or a namespace.
func outside() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, loopback)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
	}
}

// owner matches packets of sockets whose user is in a range. A packet without a
// socket does not match.
func owner(r Range) []expr.Any {
	meta := &expr.Meta{Key: expr.MetaKeySKUID, Register: 1}
	if r.First == r.Last {
		return []expr.Any{meta, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(r.First)}}
	}
	return []expr.Any{
		meta,
		// Ranges are compared byte by byte, so they need the network's order.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binary.BigEndian.AppendUint32(nil, r.First), ToData: binary.BigEndian.AppendUint32(nil, r.Last)},
	}
}

func tcp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}
