package packetfilter

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/veilor/veilor-os/internal/tier"
)

// priority is 6 before the usual filters (firewalld, ufw) and just before
// yggfilter's table, so that a revoked machine meets this one first.
const priority = -6

// String is the table as `nft -f` reads it: as one transaction, in place of
// whatever table of that name there was.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", t.Name, t.Name, t.Name)
	for _, s := range t.Sets {
		kind := "ipv4_addr"
		if s.V6 {
			kind = "ipv6_addr"
		}
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n", s.Name, kind)
		if len(s.Addresses) > 0 {
			b.WriteString("\t\telements = {\n")
			for _, a := range s.Addresses {
				fmt.Fprintf(&b, "\t\t\t%s,\n", a)
			}
			b.WriteString("\t\t}\n")
		}
		b.WriteString("\t}\n")
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != NoHook {
			hook := "input"
			if c.Hook == Output {
				hook = "output"
			}
			fmt.Fprintf(&b, "\t\ttype filter hook %s priority %d; policy accept;\n", hook, priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text(t))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (r Rule) text(t Table) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if r.In != "" {
		add("iifname %q", r.In)
	}
	if r.Out != "" {
		add("oifname %q", r.Out)
	}
	if p := r.SourceIn; p.IsValid() {
		add("%s saddr %s", header(p.Addr().Is6()), p)
	}
	if p := r.DestinationIn; p.IsValid() {
		add("%s daddr %s", header(p.Addr().Is6()), p)
	}
	if r.SourceSet != "" {
		add("%s saddr @%s", header(t.isV6(r.SourceSet)), r.SourceSet)
	}
	if r.DestinationSet != "" {
		add("%s daddr @%s", header(t.isV6(r.DestinationSet)), r.DestinationSet)
	}
	if r.Established {
		add("ct state established,related")
	}
	switch {
	case r.Protocol == tier.ICMP && t.isV6(r.SourceSet):
		add("icmpv6 type echo-request")
	case r.Protocol == tier.ICMP:
		add("icmp type echo-request")
	case r.Protocol != 0 && r.Port != 0:
		add("%s dport %d", r.Protocol, r.Port)
	case r.Protocol != 0:
		add("meta l4proto %s", r.Protocol)
	}
	add("counter")
	switch r.Verdict {
	case Accept:
		add("accept")
	case Goto:
		add("goto %s", r.Goto)
	default:
		add("drop")
	}
	add("comment %q", r.Name)
	return strings.Join(parts, " ")
}

func header(v6 bool) string {
	if v6 {
		return "ip6"
	}
	return "ip"
}

func (t Table) isV6(set string) bool {
	for _, s := range t.Sets {
		if s.Name == set {
			return s.V6
		}
	}
	return false
}

// Open lists the ports that some tier may open on the machine that the table
// was compiled for, without those of rules for every port; firewalld's zone is
// made of it.
func (t Table) Open() []uint16 {
	var ports []uint16
	seen := map[uint16]bool{}
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			if r.Port != 0 && r.Verdict == Accept && !seen[r.Port] {
				seen[r.Port] = true
				ports = append(ports, r.Port)
			}
		}
	}
	return ports
}

// Unrestricted lists the addresses that may open every port.
func (t Table) Unrestricted() []netip.Addr {
	var out []netip.Addr
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			if r.Verdict != Accept || r.Protocol != tier.TCP || r.Port != 0 {
				continue
			}
			for _, s := range t.Sets {
				if s.Name == r.SourceSet {
					out = append(out, s.Addresses...)
				}
			}
		}
	}
	return out
}
