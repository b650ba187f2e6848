// Package tiers holds every compiled form of the tiers against the decision
// function: the Headscale policy in Headscale's own library and tailscaled's own
// filter, the packet filter in a real kernel with real packets, and the
// allow-list and zones by reading them.
//
// A form is also broken on purpose, one rule at a time, and the comparison must
// see it each time: a test that cannot fail proves nothing.
package tiers

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// Town is a site with its machines, made up from a seed.
type Town struct {
	Site     *site.Site
	Policy   *tier.Policy
	Fleet    *tier.Fleet
	Machines []tier.Machine
}

// NewTown makes the site of the strategy (nullstone, office, onyx, failsafe)
// with further services and a further tier as the seed has it, and laptops:
// guests, a second admin, strangers and revoked ones of every tier.
func NewTown(rng *rand.Rand, guests int) (*Town, error) {
	s := &site.Site{Zone: "veilor"}
	s.Tiers = []site.Tier{
		{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
		{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
		{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}},
		{Name: "family", Tag: "tag:family"},
	}
	s.Services = []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}}
	hosts := []string{"nullstone", "office"}
	for i := range rng.IntN(4) {
		v := site.Service{Name: fmt.Sprintf("s%d.veilor", i), Host: hosts[rng.IntN(2)], Ports: []uint16{uint16(1000 + 7*i), uint16(1001 + 7*i)}}
		s.Services = append(s.Services, v)
		t := &s.Tiers[2+rng.IntN(2)]
		t.Reach = append(t.Reach, fmt.Sprintf("%s:%d", v.Name, v.Ports[rng.IntN(2)]))
	}
	n := 0
	named := func(name, of string) tier.Machine {
		n++
		return machine(name, of, n)
	}
	for _, h := range [][2]string{{"nullstone", "infra"}, {"office", "infra"}, {"onyx", "admin"}, {"failsafe", "admin"}} {
		m := named(h[0], h[1])
		s.Hosts = append(s.Hosts, site.Host{Name: m.Name, Tier: m.Tier, Tailnet: m.Tailnet[0], Yggdrasil: m.Yggdrasil})
	}
	p, err := tier.New(s)
	if err != nil {
		return nil, err
	}
	// The hosts again, with the IPv6 addresses that a site does not have.
	n = 0
	ms := []tier.Machine{named("nullstone", "infra"), named("office", "infra"), named("onyx", "admin"), named("failsafe", "admin")}
	ms = append(ms, named("desk", "admin"), named("cousin-1", "family"), named("cousin-2", "family"))
	for i := range guests {
		ms = append(ms, named(fmt.Sprintf("laptop-%d", i), "guest"))
	}
	for i := range 3 {
		ms = append(ms, named(fmt.Sprintf("nobody-%d", i), ""))
	}
	for _, of := range []string{"admin", "infra", "guest", "family"} {
		m := named("lost-"+of, of)
		m.Revoked = true
		ms = append(ms, m)
	}
	f, err := p.Fleet(ms...)
	if err != nil {
		return nil, err
	}
	return &Town{Site: s, Policy: p, Fleet: f, Machines: f.Machines()}, nil
}

// machine makes the n-th machine: its addresses and keys follow from n.
func machine(name, of string, n int) tier.Machine {
	four := binary.BigEndian.AppendUint32(nil, 100<<24|64<<16+uint32(n))
	six := netip.MustParseAddr("fd7a:115c:a1e0::").As16()
	binary.BigEndian.PutUint32(six[12:], uint32(n))
	key := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("yggdrasil"), uint32(n)))
	id := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("reticulum"), uint32(n)))
	return tier.Machine{
		Name: name, Tier: of,
		Tailnet:   []netip.Addr{netip.AddrFrom4([4]byte(four)), netip.AddrFrom16(six)},
		Yggdrasil: site.Key(hex.EncodeToString(key[:])),
		Reticulum: hex.EncodeToString(id[:16]),
	}
}

// Tuple is one question: may this machine open that port of that one?
type Tuple struct {
	Source, Destination tier.Machine
	Protocol            tier.Protocol
	Port                uint16
}

func (t Tuple) String() string {
	return fmt.Sprintf("%s (%s) -> %s (%s) %s %d", t.Source.Name, t.Source.Tier, t.Destination.Name, t.Destination.Tier, t.Protocol, t.Port)
}

// Tuple draws a question. Half of them are about ports and machines that some
// rule speaks of, so that both answers are frequent.
func (t *Town) Tuple(rng *rand.Rand) Tuple {
	q := Tuple{
		Source:   t.Machines[rng.IntN(len(t.Machines))],
		Protocol: []tier.Protocol{tier.TCP, tier.TCP, tier.TCP, tier.UDP, tier.ICMP, 132, 47}[rng.IntN(7)],
		Port:     uint16(1 + rng.IntN(65535)),
	}
	for {
		q.Destination = t.Machines[rng.IntN(len(t.Machines))]
		if rng.IntN(2) == 0 {
			q.Destination = t.Machines[rng.IntN(4)]
		}
		// A machine speaks to itself over loopback, not over an overlay.
		if q.Destination.Name != q.Source.Name {
			break
		}
	}
	if rng.IntN(2) == 0 {
		v := t.Site.Services[rng.IntN(len(t.Site.Services))]
		q.Port = v.Ports[rng.IntN(len(v.Ports))]
	} else if rng.IntN(4) == 0 {
		q.Port = []uint16{1, 22, 53, 80, 442, 444, 8443, 65535}[rng.IntN(8)]
	}
	if q.Protocol != tier.TCP && q.Protocol != tier.UDP {
		q.Port = 0
	}
	return q
}

// Decide is the answer.
func (t *Town) Decide(q Tuple) bool {
	return t.Policy.Decide(q.Source, q.Destination, q.Protocol, q.Port).Allow
}
