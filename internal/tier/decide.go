package tier

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is an IANA protocol number. ICMP stands for an echo request of
// either version.
type Protocol uint8

// The protocols that a tier can open. All others are closed to everybody.
const (
	ICMP Protocol = 1
	TCP  Protocol = 6
	UDP  Protocol = 17
	// icmp6 is what ICMP is called in an IPv6 header (RFC 4443).
	icmp6 Protocol = 58
)

func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "protocol " + strconv.Itoa(int(p))
}

// ParsePort reads "443", "443/tcp", "53/udp" or "icmp".
func ParsePort(text string) (Protocol, uint16, error) {
	if text == "icmp" || text == "ping" {
		return ICMP, 0, nil
	}
	number, name, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return 0, 0, fmt.Errorf("reading the port: %q is none; write for example 443, 53/udp or icmp", text)
	}
	switch name {
	case "", "tcp":
		return TCP, uint16(n), nil
	case "udp":
		return UDP, uint16(n), nil
	}
	return 0, 0, fmt.Errorf("reading the port: %q is no protocol of a port; write for example 443/tcp or 53/udp", name)
}

// Verdicts that no rule of the site gives.
const (
	// ByRevoked: one of the two is revoked.
	ByRevoked = "revoked"
	// ByStranger: the source is in no list.
	ByStranger = "stranger"
	// ByDefault: no rule of the source's tier opens it.
	ByDefault = "default"
	// ByAddress: the packet's addresses cannot belong to a machine on a layer.
	ByAddress = "address"
)

// Verdict is the answer, with the rule that gives it.
type Verdict struct {
	Allow bool `json:"allow"`
	// Rule is the [Rule.ID] that allows, or one of ByRevoked, ByStranger,
	// ByDefault and ByAddress, which deny.
	Rule string `json:"rule"`
	// Why says it to a person.
	Why string `json:"why"`
}

// Decide says whether src may open a new flow to dst. port is of TCP and UDP,
// and ignored for ICMP.
//
//	either revoked? ──yes──> deny (revoked)
//	      │no
//	src in no tier? ──yes──> deny (stranger)
//	      │no
//	a rule of src's tier that includes dst and opens the port? ──yes──> allow (it)
//	      │no
//	deny (default)
func (p *Policy) Decide(src, dst Machine, proto Protocol, port uint16) Verdict {
	switch {
	case src.Revoked:
		return Verdict{Rule: ByRevoked, Why: "the source was revoked; it reaches nothing on any layer"}
	case dst.Revoked:
		return Verdict{Rule: ByRevoked, Why: "the destination was revoked; nothing reaches it on any layer"}
	case !p.hasTier(src.Tier):
		return Verdict{Rule: ByStranger, Why: "the source is in no list; a stranger opens nothing"}
	}
	for _, r := range p.rules {
		if r.Tier != src.Tier || !r.Target.Includes(dst) || !r.opens(proto, port) {
			continue
		}
		why := r.String()
		if proto == ICMP && r.Port != 0 {
			why += " (a ping goes wherever a port is open)"
		}
		return Verdict{Allow: true, Rule: r.ID, Why: why}
	}
	return Verdict{Rule: ByDefault, Why: p.closed(src.Tier)}
}

// Opens lists what a tier opens, as the site writes it: "x.veilor:443", "infra:*".
func (p *Policy) Opens(tier string) []string {
	opens := []string{}
	for _, r := range p.rules {
		if r.Tier == tier {
			_, what, _ := strings.Cut(r.String(), " -> ")
			opens = append(opens, what)
		}
	}
	return opens
}

// closed says what a tier does open.
func (p *Policy) closed(tier string) string {
	opens := p.Opens(tier)
	if len(opens) == 0 {
		return "tier " + tier + " opens nothing"
	}
	return "tier " + tier + " opens " + strings.Join(opens, ", ") + ", and nothing else"
}

// Packet is what a filter sees of the first packet of a flow.
type Packet struct {
	Source, Destination netip.Addr
	// Protocol is the number in the header; ICMPv6 (58) counts as ICMP.
	Protocol Protocol
	Port     uint16
}

// Decide says whether a packet that arrives over an overlay may open a flow. It
// is [Policy.Decide] for the machines that have the addresses; an address of no
// layer, and two addresses of different layers, belong to nobody.
func (f *Fleet) Decide(k Packet) Verdict {
	from, to := LayerOf(k.Source), LayerOf(k.Destination)
	switch {
	case from == None:
		return Verdict{Rule: ByAddress, Why: fmt.Sprintf("%s is no address of an overlay; nobody is called that there", k.Source)}
	case to == None:
		return Verdict{Rule: ByAddress, Why: fmt.Sprintf("%s is no address of an overlay; no rule opens it", k.Destination)}
	case from != to || k.Source.Is4() != k.Destination.Is4():
		return Verdict{Rule: ByAddress, Why: fmt.Sprintf("%s and %s are not of one network", k.Source, k.Destination)}
	}
	src, _ := f.ByAddress(k.Source)
	dst, _ := f.ByAddress(k.Destination)
	proto := k.Protocol
	switch {
	case proto == icmp6 && k.Source.Is6():
		proto = ICMP
	case proto == ICMP && k.Source.Is6(), proto == icmp6:
		proto = 0 // the other version's ICMP is no ping
	}
	return f.policy.Decide(src, dst, proto, k.Port)
}
