package tier

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Explanation is a verdict with what it was asked about, for people and for
// scripts.
type Explanation struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Port        uint16 `json:"port,omitempty"`
	Verdict
	// Layers are the networks on which the destination has an address, and the
	// verdict can thus be tried.
	Layers []LayerAddress `json:"layers"`
}

// LayerAddress is where a machine is on a layer.
type LayerAddress struct {
	Layer   string     `json:"layer"`
	Address netip.Addr `json:"address"`
}

// Explain answers what a person asked: SRC and DST as [Fleet.Lookup] reads
// them, PORT as [ParsePort] does.
func (f *Fleet) Explain(src, dst, port string) (Explanation, error) {
	e := Explanation{Source: src, Destination: dst, Layers: []LayerAddress{}}
	proto, n, err := ParsePort(port)
	if err != nil {
		return e, err
	}
	from, err := f.Lookup(src)
	if err != nil {
		return e, fmt.Errorf("reading the source: %w", err)
	}
	to, err := f.Lookup(dst)
	if err != nil {
		return e, fmt.Errorf("reading the destination: %w", err)
	}
	e.Protocol, e.Port, e.Verdict = proto.String(), n, f.policy.Decide(from, to, proto, n)
	if to.Name != "" && to.Name != dst {
		e.Destination = to.Name + " (" + dst + ")"
	}
	if from.Name != "" && from.Name != src {
		e.Source = from.Name + " (" + src + ")"
	}
	for _, l := range []Layer{Tailnet, Yggdrasil} {
		for _, a := range to.Addresses(l) {
			e.Layers = append(e.Layers, LayerAddress{l.String(), a})
		}
	}
	return e, nil
}

// String is the answer first, then why, then where it holds.
func (e Explanation) String() string {
	var b strings.Builder
	word := "denied"
	if e.Allow {
		word = "allowed"
	}
	what := e.Protocol
	if e.Port != 0 {
		what = strconv.Itoa(int(e.Port)) + "/" + e.Protocol
	}
	fmt.Fprintf(&b, "%-10s %s -> %s, %s\n", word, e.Source, e.Destination, what)
	fmt.Fprintf(&b, "  rule     %s: %s\n", e.Rule, e.Why)
	var where []string
	for _, l := range e.Layers {
		where = append(where, l.Layer+" ("+l.Address.String()+")")
	}
	if len(where) == 0 {
		where = []string{"every layer; no address of the destination is known here"}
	}
	fmt.Fprintf(&b, "  holds on %s\n", strings.Join(where, ", "))
	return b.String()
}

// Cell is one answer of a [Fleet.Matrix].
type Cell struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// Opens lists what the source may open: "443/tcp", "every port", or nothing.
	Opens []string `json:"opens"`
	Rules []string `json:"rules"`
}

// Matrix says for every class of machines what it opens of every class and of
// every host that has a service of its own.
func (p *Policy) Matrix() []Cell {
	classes := append(p.Tiers(), Stranger, Revoked)
	machine := func(class string) Machine {
		switch class {
		case Stranger:
			return Machine{}
		case Revoked:
			return Machine{Revoked: true}
		}
		return Machine{Tier: class}
	}
	type end struct {
		name string
		m    Machine
	}
	var to []end
	for _, h := range p.site.Hosts {
		for _, v := range p.site.Services {
			if v.Host == h.Name {
				to = append(to, end{h.Name, Machine{Name: h.Name, Tier: h.Tier}})
				break
			}
		}
	}
	for _, c := range classes {
		to = append(to, end{c, machine(c)})
	}
	var cells []Cell
	for _, from := range classes {
		for _, t := range to {
			c := Cell{Source: from, Destination: t.name, Opens: []string{}, Rules: []string{}}
			src := machine(from)
			if p.Decide(src, t.m, ICMP, 0).Allow {
				for _, r := range p.rules {
					if r.Tier != from || !r.Target.Includes(t.m) {
						continue
					}
					what := "every port"
					if r.Port != 0 {
						what = strconv.Itoa(int(r.Port)) + "/tcp"
					}
					c.Opens, c.Rules = append(c.Opens, what), append(c.Rules, r.ID)
				}
			}
			cells = append(cells, c)
		}
	}
	return cells
}
