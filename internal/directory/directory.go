// Package directory is what laptops believe of the network: the services with
// their loopback addresses, the hosts behind them, the control server and its
// relays, and the Yggdrasil edges and public peers with their keys.
//
// It is two files of one TUF repository. directory.json, signed by N of M
// maintainers, has every name and every key. addresses.json, which a delegated
// role with a lower threshold signs, has the addresses of the servers that
// directory.json names, and nothing else: whoever holds that role's keys can move
// an edge to another network within the hour, but can neither add one nor change
// a key, a service or a tier.
//
// A laptop routes by the last copy that it verified, for ever: an expired
// signature stops changes and raises a condition, and nothing else. It never
// goes back to an older copy, also when the system itself is rolled back.
//
// See theupdateframework.github.io/specification for the format of the metadata.
package directory

import (
	"net/netip"
	"time"
)

// Format is the version of both files that this package reads and writes.
const Format = 1

// Names is directory.json: every name and key, and no address of a server.
type Names struct {
	Format int `json:"format"`
	// Zone is the private DNS zone of the services.
	Zone string `json:"zone"`
	// Control is the URL of the Headscale server.
	Control string `json:"control"`
	// Relays are host names of DERP servers besides the control server.
	Relays   []string  `json:"relays"`
	Hosts    []Host    `json:"hosts"`
	Services []Service `json:"services"`
	Edges    []Node    `json:"edges"`
	Public   []Node    `json:"public"`
}

// Host is a machine of the operator that serves something. Its addresses are
// those in the overlays, which follow from keys; they are not for the addresses
// role.
type Host struct {
	Name      string     `json:"name"`
	Tier      string     `json:"tier"`
	Tailnet   netip.Addr `json:"tailnet"`
	Yggdrasil string     `json:"yggdrasil"`
}

// Service is a name in the zone.
type Service struct {
	Name  string   `json:"name"`
	Host  string   `json:"host"`
	Ports []uint16 `json:"ports"`
	// Number is N of the loopback address 127.83.0.N that the name has on every
	// laptop, for as long as it exists.
	Number uint8 `json:"number"`
}

// Node is a Yggdrasil node that takes peerings: an edge or a public peer.
type Node struct {
	Name string `json:"name"`
	// URL is what the TLS client says.
	URL string `json:"url"`
	// Key is its public key, 64 hex digits.
	Key string `json:"key"`
}

// Addresses is addresses.json.
type Addresses struct {
	Format int `json:"format"`
	// Servers are the control server and the relays, by host name.
	Servers []ServerAddress `json:"servers"`
	// Nodes are edges and public peers, by the names they have in Names.
	Nodes []NodeAddress `json:"nodes"`
}

// ServerAddress says where a server is.
type ServerAddress struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// Network is its operator or AS in words; empty if unknown.
	Network string `json:"network"`
}

// NodeAddress says where a node listens.
type NodeAddress struct {
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
	Network string         `json:"network"`
}

// Origin says why a directory is believed.
type Origin string

const (
	// Signed: by the maintainers, checked on this machine.
	Signed Origin = "signed"
	// Image: it is the site file in the image, which nobody signed as a
	// directory. Whoever signed the image vouches for it.
	Image Origin = "image"
)

// Directory is both files together, checked.
type Directory struct {
	Names     Names
	Addresses Addresses

	Origin Origin
	// Version counts directory.json, Moves counts addresses.json; 0 if Origin is
	// Image.
	Version, Moves int64
	// Made is when the newest signature was made, and Expires when the first of
	// them ends; zero if Origin is Image. Nothing stops working then.
	Made, Expires time.Time
	// Damage is why a copy that this machine had kept could not be used; nil if
	// there is none or it could. The next best is in force.
	Damage error
}

// Server is where the control server or a relay is.
type Server struct {
	Name      string
	Addresses []netip.Addr
	Network   string
}

// Servers are the control server, then the relays.
func (d Directory) Servers() []Server {
	var all []Server
	for _, name := range d.Names.serverNames() {
		s := Server{Name: name}
		for _, a := range d.Addresses.Servers {
			if a.Name == name {
				s.Addresses, s.Network = a.Addresses, a.Network
			}
		}
		all = append(all, s)
	}
	return all
}

// Peer is a node and where it listens. Address is not valid if nobody said.
type Peer struct {
	Node
	Address netip.AddrPort
	Network string
}

// Edges are in the order in which the maintainers wrote them.
func (d Directory) Edges() []Peer { return d.peers(d.Names.Edges) }

// Public are peers of the public Yggdrasil network.
func (d Directory) Public() []Peer { return d.peers(d.Names.Public) }

func (d Directory) peers(nodes []Node) []Peer {
	var all []Peer
	for _, n := range nodes {
		p := Peer{Node: n}
		for _, a := range d.Addresses.Nodes {
			if a.Name == n.Name {
				p.Address, p.Network = a.Address, a.Network
			}
		}
		all = append(all, p)
	}
	return all
}

// Freshness is what the clock says of a directory.
type Freshness int

const (
	// Fresh also is a directory that never expires.
	Fresh Freshness = iota
	// Expired: nobody has renewed it in time, or the clock is ahead. It is used,
	// but takes no change that has expired too.
	Expired
	// FromTheFuture: it was signed later than it is now: the clock is behind.
	FromTheFuture
)

// clockTolerance is how far two honest clocks may differ. The signing machine's
// and the laptop's are both set by hand or by NTP; a day covers a wrong zone.
const clockTolerance = 24 * time.Hour

// Freshness compares d with the clock.
func (d Directory) Freshness(now time.Time) Freshness {
	switch {
	case d.Origin != Signed:
		return Fresh
	case now.After(d.Expires):
		return Expired
	case now.Add(clockTolerance).Before(d.Made):
		return FromTheFuture
	}
	return Fresh
}
