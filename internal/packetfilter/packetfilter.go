// Package packetfilter compiles the tiers into nftables for one machine and one
// overlay interface.
//
// On the tailnet, Headscale's policy decides; on Yggdrasil nobody does but the
// receiving machine, and there an address is a key, so that sets of addresses
// are lists of who may come in. The same table can stand on tailscale0 as a
// second line behind the policy.
//
//	table inet veilor_tiers_ygg {
//	  set revoked_6 …  set tier_admin_6 …          # one set per tier and family
//	  chain input {                                # hook input
//	    iifname ygg0  saddr and daddr of the overlay   goto from_6
//	    iifname ygg0  drop
//	  }
//	  chain from_6 {
//	    saddr @revoked_6  drop                     # before established: a revoked
//	    ct state established,related  accept       #   machine loses what it had
//	    saddr @tier_guest_6 tcp dport 443  accept  # the rules of the site
//	    saddr @tier_guest_6 echo-request  accept
//	    drop
//	  }
//	  chain output { oifname ygg0  daddr @revoked_6  drop }   # hook output
//	}
//
// "accept" ends this table only. Package yggfilter's table (forwarding,
// tailscaled's own packets, the overlay's addresses on other interfaces) and
// firewalld's still have their say, before or after.
package packetfilter

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/veilor/veilor-os/internal/tier"
)

// Table is a whole nftables table of family inet.
type Table struct {
	Name string
	Sets []Set
	// Chains are in the order in which they must be made: a chain that is
	// jumped to stands before the one that jumps.
	Chains []Chain
}

// Set is a named set of addresses of one family.
type Set struct {
	Name      string
	V6        bool
	Addresses []netip.Addr
}

// Hook is where in the kernel a chain is called.
type Hook int

// The hooks that are used. A chain that is only jumped to has none.
const (
	NoHook Hook = iota
	Input
	Output
)

// Chain is a list of rules; the first that matches decides. A chain with a hook
// accepts what no rule matches.
type Chain struct {
	Name  string
	Hook  Hook
	Rules []Rule
}

// Rule matches a packet if everything that is set matches it. Every rule counts
// what it matched.
type Rule struct {
	// Name is unique in the table and kept in the kernel as the rule's comment:
	// "guest[0] 443/tcp over IPv6".
	Name string
	// In and Out are interfaces by name; they need not exist yet.
	In, Out string
	// SourceIn and DestinationIn are prefixes.
	SourceIn, DestinationIn netip.Prefix
	// SourceSet and DestinationSet name sets of the table, and with them the family.
	SourceSet, DestinationSet string
	// Established matches packets of flows that conntrack knows.
	Established bool
	// Protocol is TCP, UDP or ICMP, which is an echo request; 0 is every one.
	Protocol tier.Protocol
	// Port is the destination port; 0 is every one.
	Port uint16
	Verdict
	// Goto is the chain of the verdict Goto.
	Goto string
}

// Verdict is what happens to a packet.
type Verdict int

// The verdicts.
const (
	Drop Verdict = iota
	Accept
	Goto
)

// The interfaces of the overlays.
const (
	TailnetInterface   = "tailscale0"
	YggdrasilInterface = "ygg0"
)

// TableName is the table's name on a layer.
func TableName(l tier.Layer) string {
	if l == tier.Tailnet {
		return "veilor_tiers_ts"
	}
	return "veilor_tiers_ygg"
}

// family is one address family of a layer.
type family struct {
	suffix string // of set and chain names
	text   string
	prefix netip.Prefix
}

func families(l tier.Layer) []family {
	if l == tier.Tailnet {
		return []family{{"_4", "IPv4", tier.Tailnet4}, {"_6", "IPv6", tier.Tailnet6}}
	}
	return []family{{"_6", "IPv6", tier.Yggdrasil6}}
}

// Set names. A tier's name is a DNS label and may begin with a digit, which
// nft's grammar does not allow; the prefix makes it a name.
func tierSet(name string, f family) string { return "tier_" + name + f.suffix }
func revokedSet(f family) string           { return "revoked" + f.suffix }

// Compile makes the table of machine self on a layer, as it is with the fleet
// of now. Which rules there are depends on the site and on self only, so that a
// laptop that joins or is revoked changes nothing but sets.
func Compile(fleet *tier.Fleet, self tier.Machine, l tier.Layer) (Table, error) {
	name := YggdrasilInterface
	switch l {
	case tier.Tailnet:
		name = TailnetInterface
	case tier.Yggdrasil:
	default:
		return Table{}, fmt.Errorf("compiling the packet filter: no such layer: %v", l)
	}
	t := Table{Name: TableName(l)}
	input := Chain{Name: "input", Hook: Input}
	output := Chain{Name: "output", Hook: Output}
	for _, f := range families(l) {
		t.Sets = append(t.Sets, sets(fleet, self, l, f)...)
		from := Chain{Name: "from" + f.suffix, Rules: inbound(fleet.Policy(), self, f)}
		t.Chains = append(t.Chains, from)
		input.Rules = append(input.Rules, Rule{
			Name: "overlay over " + f.text, In: name, SourceIn: f.prefix, DestinationIn: f.prefix,
			Verdict: Goto, Goto: from.Name,
		})
		output.Rules = append(output.Rules, Rule{
			Name: "to revoked over " + f.text, Out: name, DestinationSet: revokedSet(f), Verdict: Drop,
		})
	}
	input.Rules = append(input.Rules, Rule{Name: "not of the overlay", In: name, Verdict: Drop})
	t.Chains = append(t.Chains, input, output)
	return t, nil
}

// sets lists who is who in one family. The machine itself is nobody: what comes
// in under its own address is forged.
func sets(fleet *tier.Fleet, self tier.Machine, l tier.Layer, f family) []Set {
	revoked := Set{Name: revokedSet(f), V6: f.prefix.Addr().Is6()}
	byTier := map[string]*Set{}
	out := []Set{revoked}
	for _, t := range fleet.Policy().Tiers() {
		out = append(out, Set{Name: tierSet(t, f), V6: revoked.V6})
	}
	for i, t := range fleet.Policy().Tiers() {
		byTier[t] = &out[i+1]
	}
	for _, m := range fleet.Machines() {
		s := byTier[m.Tier]
		if m.Revoked {
			s = &out[0]
		}
		if s == nil || m.Name == self.Name {
			continue
		}
		for _, a := range m.Addresses(l) {
			if f.prefix.Contains(a) {
				s.Addresses = append(s.Addresses, a)
			}
		}
	}
	for i := range out {
		slices.SortFunc(out[i].Addresses, netip.Addr.Compare)
	}
	return out
}

// inbound are the rules for packets whose addresses are of the overlay.
func inbound(p *tier.Policy, self tier.Machine, f family) []Rule {
	over := " over " + f.text
	rules := []Rule{
		{Name: "revoked" + over, SourceSet: revokedSet(f), Verdict: Drop},
		{Name: "established" + over, Established: true, Verdict: Accept},
	}
	pings := map[string]bool{}
	add := func(r tier.Rule, what string, proto tier.Protocol, port uint16) {
		n := Rule{
			Name: r.ID + " " + what + over, SourceSet: tierSet(r.Tier, f),
			Protocol: proto, Port: port, Verdict: Accept,
		}
		covered := func(o Rule) bool {
			return o.SourceSet == n.SourceSet && o.Protocol == n.Protocol && (o.Port == 0 || o.Port == n.Port)
		}
		if !slices.ContainsFunc(rules, covered) {
			rules = append(rules, n)
		}
	}
	for _, r := range widestFirst(p.Rules()) {
		if !r.Target.Includes(self) {
			continue
		}
		if r.Port == 0 {
			add(r, "tcp", tier.TCP, 0)
			add(r, "udp", tier.UDP, 0)
		} else {
			add(r, fmt.Sprintf("%d/tcp", r.Port), tier.TCP, r.Port)
		}
		if !pings[r.Tier] {
			pings[r.Tier] = true
			add(r, "ping", tier.ICMP, 0)
		}
	}
	return append(rules, Rule{Name: "default" + over, Verdict: Drop})
}

// widestFirst puts rules for every port before those for one, so that a rule
// that adds nothing is left out.
func widestFirst(rules []tier.Rule) []tier.Rule {
	slices.SortStableFunc(rules, func(a, b tier.Rule) int {
		switch {
		case a.Port == 0 && b.Port != 0:
			return -1
		case a.Port != 0 && b.Port == 0:
			return 1
		}
		return 0
	})
	return rules
}
