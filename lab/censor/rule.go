package censor

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Rule is one thing that the ISP can do.
type Rule struct {
	// Name is short: "udp". It is unique in a Censor.
	Name string
	// Text says it to a person: "all UDP dropped".
	Text string

	// alternatives: a packet is meant if all matches of any of them hold.
	alternatives [][]match
	verdict      verdict
	// port of the router that TCP and UDP flows end at, for redirected.
	port uint16
	// inspector reads the packets that are meant and marks the guilty ones.
	inspector func() inspector
	// answers says that packets to the laptop are left alone.
	answers bool
	// transit says that the router itself is left alone.
	transit bool
}

// verdict is what happens to a packet.
type verdict int

const (
	dropped verdict = iota
	reset           // TCP gets a reset, everything else is dropped
	redirected
	delayed // by the inspector; nothing is lost
)

// direction of a packet, seen from the laptop.
type direction int

const (
	up direction = iota
	down
)

func (d direction) String() string { return [...]string{"up", "down"}[d] }

// match is a condition as nftables expressions, which load register 1 and
// compare. It is a function because they must not be shared between rules.
type match func(direction) []expr.Any

// UDP drops every UDP datagram of the laptop, DHCP and DNS of the router
// included.
func UDP() Rule {
	return Rule{Name: "udp", Text: "all UDP dropped", alternatives: [][]match{{protocol(unix.IPPROTO_UDP)}}}
}

// Beyond is r for what passes the router: its own DHCP and DNS go on, as an ISP's
// do that wants to keep its customers.
func Beyond(r Rule) Rule {
	r.transit = true
	return r
}

// Host drops everything between the laptop and one machine, by all the addresses
// that it has.
func Host(name string, addresses ...netip.Addr) Rule {
	var texts []string
	r := Rule{Name: name}
	for _, a := range addresses {
		texts = append(texts, a.String())
		r.alternatives = append(r.alternatives, []match{in(netip.PrefixFrom(a, a.BitLen()))})
	}
	r.Text = name + " (" + strings.Join(texts, ", ") + ") dropped"
	return r
}

// Family4 drops all IPv4 that goes beyond the router, Family6 all IPv6.
func Family4(name string) Rule {
	return Rule{Name: name, Text: "IPv4 dropped", alternatives: [][]match{{family(unix.NFPROTO_IPV4)}}, transit: true}
}

// Family6: see Family4.
func Family6(name string) Rule {
	return Rule{Name: name, Text: "IPv6 dropped", alternatives: [][]match{{family(unix.NFPROTO_IPV6)}}, transit: true}
}

// Hosts drops everything between the laptop and any of the prefixes.
func Hosts(name, text string, prefixes ...netip.Prefix) Rule {
	r := Rule{Name: name, Text: text}
	for _, p := range prefixes {
		r.alternatives = append(r.alternatives, []match{in(p)})
	}
	return r
}

// Reset is r with resets for TCP, to whichever side sends. What is not TCP is
// dropped all the same.
func Reset(r Rule) Rule {
	r.Name, r.Text, r.verdict = r.Name+"-rst", strings.Replace(r.Text, "dropped", "reset", 1), reset
	return r
}

// link are the IPv6 addresses that never leave a link: without them nobody finds
// even the router (RFC 4861).
var link = []netip.Prefix{netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff02::/16")}

// Only drops everything but what is between the laptop and the prefixes: an
// allow-list of destinations. A family without a prefix is dropped as a whole.
func Only(name, text string, prefixes ...netip.Prefix) Rule {
	four, six := []match{family(unix.NFPROTO_IPV4)}, []match{family(unix.NFPROTO_IPV6)}
	for _, p := range append(slices.Clone(prefixes), link...) {
		if p.Addr().Is4() {
			four = append(four, notIn(p))
		} else {
			six = append(six, notIn(p))
		}
	}
	return Rule{Name: name, Text: text, alternatives: [][]match{four, six}}
}

// Question drops DNS questions over UDP for one name and what is below it.
func Question(name, host string) Rule {
	// The name as it stands in the packet (RFC 1035 §3.1), up to the 16 bytes that
	// a register of nftables holds.
	var wire []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		wire = append(append(wire, byte(len(label))), label...)
	}
	wire = wire[:min(len(wire), 16)]
	const udpAndDNS = 8 + 12
	return Rule{Name: name, Text: "DNS of " + host + " dropped", answers: true, alternatives: [][]match{{
		protocol(unix.IPPROTO_UDP), destinationPort(53), transport(udpAndDNS, wire),
	}}}
}

// Resolver leads all DNS questions, over UDP and TCP, to a port of the router,
// where somebody lies.
func Resolver(name string, port uint16) Rule {
	return Rule{Name: name, Text: "DNS answers are lies", verdict: redirected, port: port, answers: true, alternatives: [][]match{
		{protocol(unix.IPPROTO_UDP), destinationPort(53)},
		{protocol(unix.IPPROTO_TCP), destinationPort(53)},
	}}
}

// Portal leads all web pages over plain HTTP to a port of the router and resets
// everything else that leaves by TCP; a captive portal before one has paid.
func Portal(name string, port uint16) []Rule {
	return []Rule{
		{Name: name, Text: "captive portal", verdict: redirected, port: port, answers: true,
			alternatives: [][]match{{protocol(unix.IPPROTO_TCP), destinationPort(80)}}},
		{Name: name + "-wall", Text: "all but the portal is reset", verdict: reset, alternatives: [][]match{{}}, transit: true},
	}
}

// Offline drops everything that does not end at the router: the Internet is gone,
// the local network is not.
func Offline(name string) Rule {
	return Rule{Name: name, Text: "no Internet", alternatives: [][]match{{}}, transit: true}
}

// UDPAbove drops the UDP of the laptop that exceeds a rate in bytes per second.
func UDPAbove(name string, rate uint64) Rule {
	return Rule{Name: name, Text: fmt.Sprintf("UDP throttled to %d KB/s", rate/1000),
		alternatives: [][]match{{protocol(unix.IPPROTO_UDP), func(direction) []expr.Any {
			return []expr.Any{&expr.Limit{Type: expr.LimitTypePktBytes, Rate: rate, Unit: expr.LimitTimeSecond, Burst: uint32(rate / 4), Over: true}}
		}}}}
}

// WireGuard drops UDP that looks like WireGuard's four kinds of message or like
// Tailscale's path discovery. Sources: the WireGuard paper §5.4; package disco of
// tailscale.com.
func WireGuard(name string) Rule {
	r := Rule{Name: name, Text: "WireGuard and Tailscale's discovery dropped by their first bytes"}
	const udp = 8
	for _, first := range [][]byte{{1, 0, 0, 0}, {2, 0, 0, 0}, {3, 0, 0, 0}, {4, 0, 0, 0}, []byte("TS💬")} {
		r.alternatives = append(r.alternatives, []match{protocol(unix.IPPROTO_UDP), transport(udp, first)})
	}
	return r
}

// QUIC drops UDP to and from port 443.
func QUIC(name string) Rule {
	return Rule{Name: name, Text: "QUIC dropped", alternatives: [][]match{{protocol(unix.IPPROTO_UDP), serverPort(443)}}}
}

// Frozen drops the packets of a TCP connection with any of the prefixes once it
// has carried so many bytes in both directions. The router's namespace must count
// them: net.netfilter.nf_conntrack_acct=1.
func Frozen(name string, bytes uint64, prefixes ...netip.Prefix) Rule {
	r := Rule{Name: name, Text: fmt.Sprintf("connections with %v frozen after %d KB", prefixes, bytes/1024)}
	carried := func(direction) []expr.Any {
		return []expr.Any{
			&expr.Ct{Register: 1, Key: expr.CtKeyBYTES},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 8, Size: 8},
			&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binary.BigEndian.AppendUint64(nil, bytes)},
		}
	}
	for _, p := range prefixes {
		r.alternatives = append(r.alternatives, []match{protocol(unix.IPPROTO_TCP), in(p), carried})
	}
	return r
}

// Loss drops so many packets of a hundred, at random, in both directions.
func Loss(name string, percent uint32) Rule {
	return Rule{Name: name, Text: fmt.Sprintf("%d %% of packets lost", percent), alternatives: [][]match{{func(direction) []expr.Any {
		return []expr.Any{
			&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, percent)},
		}
	}}}}
}

// Jitter holds every packet back for a random time between the two.
func Jitter(name string, least, most time.Duration) Rule {
	return Rule{Name: name, Text: fmt.Sprintf("packets delayed by %v to %v", least, most), verdict: delayed,
		alternatives: [][]match{{}}, inspector: func() inspector { return &jitter{least: least, most: most} }}
}

// ServerName resets TLS connections whose ClientHello names the host, however
// many segments it comes in.
func ServerName(name, host string) Rule {
	return hello(name, "TLS to "+host+" reset by its server name", func(h clientHello) bool { return h.serverName == host })
}

// GoTLS resets TLS connections whose ClientHello offers the cipher suites of Go's
// own TLS, in its order.
func GoTLS(name string) Rule {
	own := goSuites()
	return hello(name, "Go's TLS reset by its fingerprint", func(h clientHello) bool { return slices.Equal(h.suites, own) })
}

func hello(name, text string, guilty func(clientHello) bool) Rule {
	return Rule{Name: name, Text: text, verdict: reset,
		alternatives: [][]match{{protocol(unix.IPPROTO_TCP), serverPort(443)}},
		inspector:    func() inspector { return newHelloReader(guilty) }}
}

// Where the addresses are in a header of IPv4 (RFC 791 §3.1) and IPv6 (RFC 8200
// §3), and the ports in one of TCP or UDP.
const (
	source4, destination4 = 12, 16
	source6, destination6 = 8, 24
	sourcePort            = 0
	targetPort            = 2
)

func protocol(number byte) match {
	return func(direction) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
		}
	}
}

// family: it is a packet of IPv4, or of IPv6.
func family(number byte) match {
	return func(direction) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
		}
	}
}

// in: the far address is in the prefix. notIn: it is of the prefix's family, and
// not in it.
func in(p netip.Prefix) match { return far(p, expr.CmpOpEq) }

func notIn(p netip.Prefix) match { return far(p, expr.CmpOpNeq) }

func far(p netip.Prefix, op expr.CmpOp) match {
	of, source, destination := byte(unix.NFPROTO_IPV4), uint32(source4), uint32(destination4)
	if p.Addr().Is6() {
		of, source, destination = unix.NFPROTO_IPV6, source6, destination6
	}
	return func(d direction) []expr.Any {
		offset := destination
		if d == down {
			offset = source
		}
		size := p.Addr().BitLen() / 8
		mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
		return append(family(of)(d),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
			&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
		)
	}
}

func port(offset uint32, number uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, number)},
	}
}

func destinationPort(number uint16) match {
	return func(direction) []expr.Any { return port(targetPort, number) }
}

// serverPort is the port of the far side.
func serverPort(number uint16) match {
	return func(d direction) []expr.Any {
		if d == down {
			return port(sourcePort, number)
		}
		return port(targetPort, number)
	}
}

// transport: these bytes stand at the offset from the transport header's start.
func transport(offset uint32, bytes []byte) match {
	return func(direction) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(bytes))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bytes},
		}
	}
}

// install queues the rule's tables, and returns their chains. Tables of its own
// make clearing a rule their deletion, whatever else is in force.
func (r Rule) install(conn *nftables.Conn, leg string, queue uint16) []*nftables.Chain {
	families := []nftables.TableFamily{nftables.TableFamilyINet}
	if r.inspector != nil {
		// NFQUEUE is a target of iptables, which knows no inet.
		families = []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
	}
	var chains []*nftables.Chain
	for _, f := range families {
		table := conn.AddTable(&nftables.Table{Family: f, Name: "censor_" + r.Name})
		chains = append(chains, r.fill(conn, table, leg, queue)...)
	}
	return chains
}

func (r Rule) fill(conn *nftables.Conn, table *nftables.Table, leg string, queue uint16) []*nftables.Chain {
	var chains []*nftables.Chain
	accept := nftables.ChainPolicyAccept
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		c := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept})
		chains = append(chains, c)
		return c
	}
	add := func(to *nftables.Chain, alternatives [][]match, ends [][]expr.Any, directions ...direction) {
		for _, d := range directions {
			for _, alternative := range alternatives {
				for _, end := range ends {
					e := onLeg(leg, d)
					for _, m := range alternative {
						e = append(e, m(d)...)
					}
					conn.AddRule(&nftables.Rule{Table: table, Chain: to, UserData: []byte(d.String()), Exprs: append(e, end...)})
				}
			}
		}
	}
	both := []direction{up, down}
	filter := *nftables.ChainPriorityFilter
	switch {
	case r.verdict == redirected:
		add(chain("astray", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest), r.alternatives, [][]expr.Any{{
			&expr.Counter{},
			&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.port)},
			&expr.Redir{RegisterProtoMin: 1},
		}}, up)
	case r.inspector != nil:
		through := chain("through", nftables.ChainTypeFilter, nftables.ChainHookForward, filter)
		read := []expr.Any{&expr.Target{Name: "NFQUEUE", Info: queueInfo(queue)}}
		if r.verdict == delayed {
			read = append([]expr.Any{&expr.Counter{}}, read...)
		}
		add(through, r.alternatives, [][]expr.Any{read}, both...)
		// An accepted packet goes on at the next hook, with the mark that the
		// inspector has put on it.
		judged := chain("judged", nftables.ChainTypeFilter, nftables.ChainHookForward, filter+1)
		add(judged, [][]match{{marked}}, r.verdict.ends(), both...)
	default:
		add(chain("through", nftables.ChainTypeFilter, nftables.ChainHookForward, filter), r.alternatives, r.verdict.ends(), both[:r.sides()]...)
		// A reset is the router's own packet, with the far side's address; it must
		// not be caught itself.
		if r.transit || r.verdict == reset {
			break
		}
		// Not "fwd": that is a keyword of nft, and a person must be able to list
		// these tables.
		add(chain("to_router", nftables.ChainTypeFilter, nftables.ChainHookInput, filter), r.alternatives, r.verdict.ends(), up)
		add(chain("from_router", nftables.ChainTypeFilter, nftables.ChainHookOutput, filter), r.alternatives, r.verdict.ends(), both[1:r.sides()]...)
	}
	return chains
}

// sides is 1 if only what the laptop sends is meant.
func (r Rule) sides() int {
	if r.answers {
		return 1
	}
	return 2
}

// ends are what the rules for one match end with.
func (v verdict) ends() [][]expr.Any {
	ends := [][]expr.Any{{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
	if v == reset {
		ends = append([][]expr.Any{append(protocol(unix.IPPROTO_TCP)(up), &expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})}, ends...)
	}
	return ends
}

func onLeg(leg string, d direction) []expr.Any {
	side := expr.MetaKeyIIFNAME
	if d == down {
		side = expr.MetaKeyOIFNAME
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, leg)
	return []expr.Any{
		&expr.Meta{Key: side, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
}

// marked: an inspector has found the packet guilty.
func marked(direction) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, guilty)},
	}
}

// queueInfo is struct xt_NFQ_info of linux/netfilter/xt_NFQUEUE.h, with the
// alignment that x_tables wants.
func queueInfo(number uint16) xt.InfoAny {
	u := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(u, number)
	return &u
}
