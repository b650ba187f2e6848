package directory

import (
	"fmt"
	"slices"

	"github.com/veilor/veilor-os/internal/site"
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
// Tiers, image and authority stay: those come with the image alone.
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
	return &c, nil
}
