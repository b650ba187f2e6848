package directory

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// FromSite is what the site file says, in the order of the file. A server or a
// node without an address in the site has none here either.
func FromSite(s *site.Site) (Directory, error) {
	n := Names{
		Format: Format, Zone: s.Zone, Control: s.Control.URL,
		Relays: []string{}, Hosts: []Host{}, Services: []Service{}, Edges: []Node{}, Public: []Node{},
	}
	a := Addresses{Format: Format, Servers: []ServerAddress{}, Nodes: []NodeAddress{}}
	if len(s.Control.Addresses) > 0 {
		a.Servers = append(a.Servers, ServerAddress{Name: s.ControlHost(), Addresses: s.Control.Addresses, Network: s.Control.Network})
	}
	for _, r := range s.Control.Relays {
		n.Relays = append(n.Relays, r.Name)
		a.Servers = append(a.Servers, ServerAddress(r))
	}
	for _, h := range s.Hosts {
		n.Hosts = append(n.Hosts, Host{Name: h.Name, Tier: h.Tier, Tailnet: h.Tailnet, Yggdrasil: string(h.Yggdrasil)})
	}
	for _, v := range s.Services {
		ports := slices.Clone(v.Ports)
		slices.Sort(ports)
		n.Services = append(n.Services, Service{Name: v.Name, Host: v.Host, Ports: ports, Number: v.Loopback.As4()[3]})
	}
	node := func(p site.Peer) Node {
		if p.Address.IsValid() {
			a.Nodes = append(a.Nodes, NodeAddress{Name: p.Name, Address: p.Address, Network: p.Network})
		}
		return Node{Name: p.Name, URL: p.URL, Key: string(p.Key)}
	}
	for _, p := range s.Yggdrasil.Edges {
		n.Edges = append(n.Edges, node(p))
	}
	for _, p := range s.Yggdrasil.Public {
		n.Public = append(n.Public, node(p))
	}
	if err := n.valid(); err != nil {
		return Directory{}, fmt.Errorf("making the directory of the site: %w", err)
	}
	if err := a.valid(); err != nil {
		return Directory{}, fmt.Errorf("making the directory of the site: %w", err)
	}
	d, err := Merge(n, a)
	d.Origin = Image
	return d, err
}

// Apply returns s with the names, keys and addresses of d in place of its own.
// Image and authority stay, and so does what the tiers open: those come with the
// image alone. A directory by which no policy can be made is an error.
func (d Directory) Apply(s *site.Site) (*site.Site, error) {
	if d.Names.Zone != s.Zone {
		return nil, fmt.Errorf("applying the directory: it is for the zone %s, and this system's is %s", d.Names.Zone, s.Zone)
	}
	c := *s
	c.Control = site.Control{URL: d.Names.Control}
	for i, v := range d.Servers() {
		if i == 0 {
			c.Control.Addresses, c.Control.Network = v.Addresses, v.Network
			continue
		}
		c.Control.Relays = append(c.Control.Relays, site.Relay(v))
	}
	c.Hosts, c.Services, c.Yggdrasil = nil, nil, site.Yggdrasil{}
	for _, h := range d.Names.Hosts {
		c.Hosts = append(c.Hosts, site.Host{Name: h.Name, Tier: h.Tier, Tailnet: h.Tailnet, Yggdrasil: site.Key(h.Yggdrasil)})
	}
	for _, v := range d.Names.Services {
		c.Services = append(c.Services, site.Service{Name: v.Name, Host: v.Host, Ports: v.Ports, Loopback: v.Loopback()})
	}
	peer := func(p Peer) site.Peer {
		return site.Peer{Name: p.Name, URL: p.URL, Address: p.Address, Network: p.Network, Key: site.Key(p.Key)}
	}
	for _, p := range d.Edges() {
		c.Yggdrasil.Edges = append(c.Yggdrasil.Edges, peer(p))
	}
	for _, p := range d.Public() {
		c.Yggdrasil.Public = append(c.Yggdrasil.Public, peer(p))
	}
	c.Tiers = fit(s.Tiers, &c)
	policy, err := tier.New(&c)
	if err == nil {
		_, err = policy.Fleet()
	}
	if err != nil {
		return nil, fmt.Errorf("applying the directory: %w", err)
	}
	return &c, nil
}

// fit words the image's tiers for the services that s has. A service that a rule
// names may be gone, or have lost the port. And a new one may share a host and a
// port with one that a rule names: no packet filter can tell the two apart, so the
// tier has both, and only the words are missing. Nothing more is opened.
func fit(tiers []site.Tier, s *site.Site) []site.Tier {
	var all []site.Tier
	for _, t := range tiers {
		var reach []string
		for _, r := range t.Reach {
			target, port, _ := strings.Cut(r, ":")
			if !strings.Contains(target, ".") { // a tier, or everything
				reach = append(reach, r)
				continue
			}
			named := slices.IndexFunc(s.Services, func(v site.Service) bool { return v.Name == target && has(v, port) })
			if named < 0 {
				continue
			}
			for _, v := range s.Services {
				if v.Host == s.Services[named].Host && has(v, port) && !slices.Contains(reach, v.Name+":"+port) {
					reach = append(reach, v.Name+":"+port)
				}
			}
		}
		t.Reach = reach
		all = append(all, t)
	}
	return all
}

// has says whether a service has the port that a rule names.
func has(v site.Service, port string) bool {
	return slices.ContainsFunc(v.Ports, func(p uint16) bool { return strconv.Itoa(int(p)) == port })
}
