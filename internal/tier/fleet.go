package tier

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/yggdrasil-network/yggdrasil-go/src/address"

	"github.com/veilor/veilor-os/internal/site"
)

// Layer is a network that carries flows between machines by address.
type Layer int

// The layers.
const (
	None Layer = iota
	Tailnet
	Yggdrasil
)

func (l Layer) String() string {
	switch l {
	case Tailnet:
		return "tailnet"
	case Yggdrasil:
		return "yggdrasil"
	}
	return "none"
}

// Where the addresses of a layer come from.
var (
	// Tailnet4 and Tailnet6 are the ranges that Headscale allots from; its
	// `prefixes` must lie in them.
	Tailnet4 = netip.MustParsePrefix("100.64.0.0/10")
	Tailnet6 = netip.MustParsePrefix("fd7a:115c:a1e0::/48")
	// Yggdrasil6 are the addresses of Yggdrasil nodes: 02 and the key. The other
	// half of 0200::/7 are subnets behind nodes, of which veilor has none.
	Yggdrasil6 = netip.MustParsePrefix("200::/8")
)

// LayerOf is the layer that an address belongs to. IPv4-mapped, link-local and
// zoned forms belong to none.
func LayerOf(a netip.Addr) Layer {
	switch {
	case a.Zone() != "":
		return None
	case Tailnet4.Contains(a), Tailnet6.Contains(a):
		return Tailnet
	case Yggdrasil6.Contains(a):
		return Yggdrasil
	}
	return None
}

// Machine is one machine, or the zero value for a stranger.
type Machine struct {
	Name string
	// Tier is the name of a tier; empty for a stranger.
	Tier    string
	Revoked bool
	// Tailnet are its addresses there, usually one of each family.
	Tailnet []netip.Addr
	// Yggdrasil is its public key, and thereby its address there.
	Yggdrasil site.Key
	// Reticulum is the hash of its identity, 32 hex digits, if it has a radio.
	Reticulum string
}

// YggdrasilAddress is the address that follows from the key; the zero Addr
// without a key.
func (m Machine) YggdrasilAddress() netip.Addr {
	key := m.Yggdrasil.Bytes()
	if key == nil {
		return netip.Addr{}
	}
	return netip.AddrFrom16(*address.AddrForKey(ed25519.PublicKey(key)))
}

// Addresses are its addresses on a layer.
func (m Machine) Addresses(l Layer) []netip.Addr {
	switch a := m.YggdrasilAddress(); {
	case l == Tailnet:
		return m.Tailnet
	case l == Yggdrasil && a.IsValid():
		return []netip.Addr{a}
	}
	return nil
}

// Fleet is every machine that is known: the hosts of the site, and the laptops.
type Fleet struct {
	policy    *Policy
	machines  []Machine
	byName    map[string]int
	byAddress map[netip.Addr]int
}

// Fleet joins the site's hosts with further machines and checks that no name
// and no address has two owners; only a tailnet address of a revoked machine may
// be another's by now, and is then the other's alone. A further machine may carry the name of a
// host of the site to add addresses to it; it must then have the same tier.
func (p *Policy) Fleet(more ...Machine) (*Fleet, error) {
	f := &Fleet{policy: p, byName: map[string]int{}, byAddress: map[netip.Addr]int{}}
	for _, h := range p.site.Hosts {
		m := Machine{Name: h.Name, Tier: h.Tier, Yggdrasil: h.Yggdrasil}
		if h.Tailnet.IsValid() {
			m.Tailnet = []netip.Addr{h.Tailnet}
		}
		f.byName[m.Name] = len(f.machines)
		f.machines = append(f.machines, m)
	}
	known := len(f.machines)
	seen := map[string]bool{}
	var errs []error
	for _, m := range more {
		at := "machine " + m.Name
		if seen[m.Name] {
			errs = append(errs, fmt.Errorf("%s: it is there twice; remove one", at))
			continue
		}
		seen[m.Name] = true
		if err := f.check(m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
			continue
		}
		if i, ok := f.byName[m.Name]; ok && i < known {
			if err := merge(&f.machines[i], m); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", at, err))
			}
			continue
		}
		f.byName[m.Name] = len(f.machines)
		f.machines = append(f.machines, m)
	}
	for i, m := range f.machines {
		for _, a := range append(slices.Clone(m.Tailnet), m.Addresses(Yggdrasil)...) {
			j, taken := f.byAddress[a]
			switch {
			case !taken || j == i:
				f.byAddress[a] = i
			case LayerOf(a) == Tailnet && (m.Revoked || f.machines[j].Revoked):
				// Headscale gave it to the next machine, which may be gone too.
				old := i
				if !m.Revoked {
					old, f.byAddress[a] = j, i
				}
				f.machines[old].Tailnet = slices.DeleteFunc(slices.Clone(f.machines[old].Tailnet), func(b netip.Addr) bool { return a == b })
			default:
				errs = append(errs, fmt.Errorf("machine %s: its address %s is also that of %s; one of the two is wrong", m.Name, a, f.machines[j].Name))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("reading the machines: %w", err)
	}
	return f, nil
}

// check looks at one machine that is no host of the site.
func (f *Fleet) check(m Machine) error {
	switch {
	case m.Name == "" || strings.ContainsAny(m.Name, " \t\r\n\"'/:"):
		return fmt.Errorf("%q is no name; use a-z, 0-9 and -", m.Name)
	case m.Name == Stranger || m.Name == Revoked || f.policy.hasTier(m.Name):
		return errors.New("that is the name of a class of machines; give it another")
	case m.Tier != "" && !f.policy.hasTier(m.Tier):
		return fmt.Errorf("tier %q is not in the site; write one of %s, or none for a stranger", m.Tier, strings.Join(f.policy.Tiers(), ", "))
	case m.Yggdrasil != "" && m.Yggdrasil.Bytes() == nil:
		return fmt.Errorf("%q is no Yggdrasil key; write its 64 hex digits", m.Yggdrasil)
	}
	for _, a := range m.Tailnet {
		if LayerOf(a) != Tailnet {
			return fmt.Errorf("%s is in neither %s nor %s, from which Headscale allots", a, Tailnet4, Tailnet6)
		}
	}
	if b, err := hex.DecodeString(m.Reticulum); err != nil || (len(b) != 0 && len(b) != reticulumHash) {
		return fmt.Errorf("%q is no Reticulum identity; write the %d hex digits of its hash", m.Reticulum, 2*reticulumHash)
	}
	return nil
}

// reticulumHash is the length of a truncated hash (Reticulum manual,
// "Understanding Reticulum": 16 bytes).
const reticulumHash = 16

// merge adds to a host of the site what else is known of it.
func merge(host *Machine, m Machine) error {
	if m.Tier != host.Tier {
		return fmt.Errorf("the site has it in tier %s, this list in %q; correct the one that is wrong", host.Tier, m.Tier)
	}
	if host.Yggdrasil != "" && m.Yggdrasil != "" && m.Yggdrasil != host.Yggdrasil {
		return errors.New("the site has another Yggdrasil key for it; correct the one that is wrong")
	}
	if host.Yggdrasil == "" {
		host.Yggdrasil = m.Yggdrasil
	}
	if len(host.Tailnet) > 0 && len(m.Tailnet) > 0 && !slices.Contains(m.Tailnet, host.Tailnet[0]) {
		return fmt.Errorf("the site has it at %s, this list at %v; correct the one that is wrong", host.Tailnet[0], m.Tailnet)
	}
	for _, a := range m.Tailnet {
		if !slices.Contains(host.Tailnet, a) {
			host.Tailnet = append(host.Tailnet, a)
		}
	}
	host.Revoked = host.Revoked || m.Revoked
	host.Reticulum = m.Reticulum
	return nil
}

// Policy is what the fleet lives under.
func (f *Fleet) Policy() *Policy { return f.policy }

// Machines are all machines, the site's hosts first.
func (f *Fleet) Machines() []Machine { return slices.Clone(f.machines) }

// ByName finds a machine.
func (f *Fleet) ByName(name string) (Machine, bool) {
	i, ok := f.byName[name]
	if !ok {
		return Machine{}, false
	}
	return f.machines[i], true
}

// ByAddress finds the machine that has an address on some layer.
func (f *Fleet) ByAddress(a netip.Addr) (Machine, bool) {
	i, ok := f.byAddress[a]
	if !ok {
		return Machine{}, false
	}
	return f.machines[i], true
}

// Lookup finds what a person may write for a machine: its name, the name of a
// service (its host), an address, a tier (some machine of it that has no name),
// or "stranger" or "revoked".
func (f *Fleet) Lookup(text string) (Machine, error) {
	if m, ok := f.ByName(text); ok {
		return m, nil
	}
	if v, ok := f.policy.service(strings.TrimSuffix(text, ".")); ok {
		if m, ok := f.ByName(v.Host); ok {
			return m, nil
		}
	}
	switch {
	case text == Stranger:
		return Machine{}, nil
	case text == Revoked:
		return Machine{Revoked: true}, nil
	case f.policy.hasTier(text):
		return Machine{Tier: text}, nil
	}
	for _, t := range f.policy.site.Tiers {
		if t.Tag == text {
			return Machine{Tier: t.Name}, nil
		}
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		return Machine{}, fmt.Errorf("%q is no machine, service, tier or address; known are the tiers %s, %s, %s, and the machines %s",
			text, strings.Join(f.policy.Tiers(), ", "), Stranger, Revoked, strings.Join(f.names(), ", "))
	}
	if LayerOf(a) == None {
		return Machine{}, fmt.Errorf("%s is no address of the tailnet or of Yggdrasil", a)
	}
	m, _ := f.ByAddress(a)
	return m, nil
}

// names are at most a screen line of machine names.
func (f *Fleet) names() []string {
	const most = 12
	var names []string
	for _, m := range f.machines {
		if len(names) == most {
			return append(names, "…")
		}
		names = append(names, m.Name)
	}
	return names
}

// maxList bounds a list of machines: 10^5 of them have about 20 MB.
const maxList = 64 << 20

// machine is Machine as a list writes it.
type machine struct {
	Name      string       `json:"name"`
	Tier      string       `json:"tier,omitempty"`
	Revoked   bool         `json:"revoked,omitempty"`
	Tailnet   []netip.Addr `json:"tailnet,omitempty"`
	Yggdrasil site.Key     `json:"yggdrasil,omitempty"`
	Reticulum string       `json:"reticulum,omitempty"`
}

type list struct {
	Machines []machine `json:"machines"`
}

// ReadMachines reads a list of machines:
//
//	{"machines": [{"name": "laptop-7f", "tier": "guest", "tailnet": ["100.64.0.9"], "yggdrasil": "<64 hex digits>"}]}
//
// Unknown keys are errors. What the machines may be is for [Policy.Fleet].
func ReadMachines(r io.Reader) ([]Machine, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxList+1))
	if err != nil {
		return nil, fmt.Errorf("reading the machines: %w", err)
	}
	if len(data) > maxList {
		return nil, fmt.Errorf("reading the machines: more than %d bytes; this is another file", maxList)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var l list
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf(`reading the machines: %w; write {"machines": [{"name": …, "tier": …, "tailnet": […], "yggdrasil": …}]}`, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading the machines: something follows the list; remove it")
	}
	var ms []Machine
	for _, m := range l.Machines {
		ms = append(ms, Machine(m))
	}
	return ms, nil
}

// WriteMachines writes what [ReadMachines] reads.
func WriteMachines(w io.Writer, ms []Machine) error {
	l := list{Machines: []machine{}}
	for _, m := range ms {
		l.Machines = append(l.Machines, machine(m))
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(l)
}
