package directory

import (
	"fmt"
	"net/netip"
	"strings"
)

// minEdgeNetworks is in how many networks edges must be, besides the control
// server's: a censor blocks by network, and one that is gone must leave another.
const minEdgeNetworks = 2

// prefixes that one operator has as a whole: /24 and /48 are what the Internet
// routes at the smallest.
const (
	samePrefix4 = 24
	samePrefix6 = 48
)

// place is where something is.
type place struct {
	what    string
	ips     []netip.Addr
	network string
}

// sameNetwork says in words why two are in one network; "" if they are not.
func sameNetwork(a, b place) string {
	if n := strings.TrimSpace(a.network); n != "" && strings.EqualFold(n, strings.TrimSpace(b.network)) {
		return n
	}
	for _, x := range a.ips {
		for _, y := range b.ips {
			if p := prefix(x); p == prefix(y) {
				return p.String()
			}
		}
	}
	return ""
}

func prefix(ip netip.Addr) netip.Prefix {
	bits := samePrefix6
	if ip.Is4() {
		bits = samePrefix4
	}
	p, _ := ip.Prefix(bits) // valid for every address that was parsed
	return p
}

// shared are the ranges besides those of netip.Addr.IsPrivate that nobody
// reaches from outside, or that are for documents: RFC 6598, 5737, 3849, 2544,
// 6890 and Yggdrasil's own.
var shared = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("200::/7"),
}

func private(ip netip.Addr) bool {
	if ip.IsPrivate() {
		return true
	}
	for _, p := range shared {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// lab says whether d is of a lab: its control server is under test., the domain
// that nobody can have (RFC 6761).
func (d Directory) lab() bool { return strings.HasSuffix(d.Names.serverNames()[0], ".test") }

// Check lists what is wrong with d as a thing to rely on when the network is
// taken away. It does not look at signatures.
func Check(d Directory) []error {
	var c checks
	servers := d.Servers()
	for i, s := range servers {
		what := "the relay " + s.Name
		if i == 0 {
			what = "the control server " + s.Name
		}
		if len(s.Addresses) == 0 {
			c.failf("%s has no address: a lying DNS can hide it; write it under control in the site file", what)
		}
		for _, ip := range s.Addresses {
			c.private(d, what, ip)
		}
	}
	control := place{"the control server", servers[0].Addresses, servers[0].Network}
	var networks []place
	for _, e := range d.Edges() {
		what := "the edge " + e.Name
		if !e.Address.IsValid() {
			c.failf("%s has no address: a lying DNS can hide it; write its IP:PORT as address in the site file", what)
			continue
		}
		c.private(d, what, e.Address.Addr())
		if strings.TrimSpace(e.Network) == "" {
			c.failf("%s: its network is not named; write the AS or the hoster as network in the site file, for example AS64500", what)
		}
		p := place{what, []netip.Addr{e.Address.Addr()}, e.Network}
		if why := sameNetwork(control, p); why != "" {
			c.failf("%s is in the control server's network (%s): whoever blocks one blocks both; move it elsewhere", what, why)
			continue
		}
		known := false
		for _, n := range networks {
			known = known || sameNetwork(n, p) != ""
		}
		if !known {
			networks = append(networks, p)
		}
	}
	for _, p := range d.Public() {
		if !p.Address.IsValid() {
			c.failf("the public peer %s has no address: a lying DNS can hide it; write its IP:PORT as address in the site file", p.Name)
			continue
		}
		c.private(d, "the public peer "+p.Name, p.Address.Addr())
	}
	if len(networks) < minEdgeNetworks {
		c.failf("edges in %d networks besides the control server's; at least %d are needed, so that one may be blocked as a whole", len(networks), minEdgeNetworks)
	}
	if strings.TrimSpace(servers[0].Network) == "" {
		c.failf("the control server's network is not named; write the AS or the hoster as control.network in the site file")
	}
	for _, s := range d.Names.Services {
		for _, h := range d.Names.Hosts {
			if h.Name == s.Host && (!h.Tailnet.IsValid() || h.Yggdrasil == "") {
				c.failf("the service %s is on the host %s, which lacks its tailnet address or its Yggdrasil key: one layer cannot reach it", s.Name, h.Name)
			}
		}
	}
	return c.errs
}

func (c *checks) private(d Directory, what string, ip netip.Addr) {
	if private(ip) && !d.lab() {
		c.failf("%s: nobody outside reaches %s; write its public address", what, ip)
	}
}

// Renumbered lists the services of d that have another loopback number than in
// old, or take one that another had: programs and resolvers keep those.
func Renumbered(old, d Directory) []error {
	var errs []error
	was := map[string]uint8{}
	holder := map[uint8]string{}
	for _, s := range old.Names.Services {
		was[s.Name], holder[s.Number] = s.Number, s.Name
	}
	for _, s := range d.Names.Services {
		n, known := was[s.Name]
		switch {
		case known && n != s.Number:
			errs = append(errs, fmt.Errorf("the service %s had the loopback number %d and now has %d: a number is for ever", s.Name, n, s.Number))
		case !known && holder[s.Number] != "":
			errs = append(errs, fmt.Errorf("the service %s takes the loopback number %d, which was %s's: take a free one", s.Name, s.Number, holder[s.Number]))
		}
	}
	return errs
}
