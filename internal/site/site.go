// Package site reads site/veilor.yaml, the one file that makes this veilor and
// not another: names, image reference, release, control server, tiers, hosts,
// services, Yggdrasil peers and public keys.
//
// The reader is strict. An unknown key, a wrong type or a broken reference is
// an error that names file, line and what to write instead. Facts that only the
// operator can supply (a key nobody has made yet) may be absent from a valid
// file; [Site.Complete] says which are missing and how each is made.
package site

import (
	"net/netip"
	"net/url"
)

// Site is one veilor, as its site file describes it.
type Site struct {
	// Zone is the private DNS zone of the services, one label: "veilor".
	Zone string `yaml:"zone"`
	OS   OS     `yaml:"os"`
	// Image says what clients pull and whose signatures they demand.
	Image   Image   `yaml:"image"`
	Control Control `yaml:"control"`
	// Authority is the certificate (PEM) of the site's own CA. It is
	// name-constrained to Zone and trusted by the image.
	Authority File      `yaml:"authority"`
	Tiers     []Tier    `yaml:"tiers"`
	Hosts     []Host    `yaml:"hosts"`
	Services  []Service `yaml:"services"`
	Yggdrasil Yggdrasil `yaml:"yggdrasil"`
	// Directory says who signs what laptops believe of all this later on; nil
	// while nobody does.
	Directory *Directory `yaml:"directory,omitempty"`
}

// OS is what the installed system calls itself.
type OS struct {
	// Name is the human name, and with spaces replaced the image title.
	Name string `yaml:"name"`
	// Release is the Fedora release of the base. Every tag follows it.
	Release int `yaml:"release"`
	// Home is the project's page, an https URL.
	Home string `yaml:"home"`
}

// Image is the published image and its trust.
type Image struct {
	// Ref is the repository without tag or digest: "ghcr.io/veilor/veilor-os".
	Ref string `yaml:"ref"`
	// Base is the repository that the recipe builds on.
	Base string `yaml:"base"`
	// Signatures are AND-ed: a client wants one good signature of each group.
	Signatures []SignatureGroup `yaml:"signatures"`
}

// SignatureGroup is a set of public keys of which any one may sign.
type SignatureGroup struct {
	Name string `yaml:"name"`
	// Keys are cosign public keys (PEM, PKIX), usually the present and the next.
	Keys []File `yaml:"keys"`
}

// Control is the Headscale server.
type Control struct {
	URL string `yaml:"url"`
	// Addresses are those of the URL's host. Laptops use them and ask no DNS.
	Addresses []netip.Addr `yaml:"addresses,omitempty"`
	// Network is where the addresses are, as its operator or its AS is called;
	// edges must be elsewhere.
	Network string `yaml:"network,omitempty"`
	// Relays are DERP servers other than the one in Headscale itself.
	Relays []Relay `yaml:"relays,omitempty"`
}

// Relay is a host that relays for the tailnet (DERP).
type Relay struct {
	// Name is its host name.
	Name      string       `yaml:"name"`
	Addresses []netip.Addr `yaml:"addresses"`
	Network   string       `yaml:"network,omitempty"`
}

// Directory says whose signatures a change of names, keys and addresses needs.
type Directory struct {
	// Keys are the maintainers' public keys (PEM), of which Threshold must sign.
	Keys      []File `yaml:"keys"`
	Threshold int    `yaml:"threshold"`
	// Addresses is who may change addresses and nothing else.
	Addresses AddressSigners `yaml:"addresses"`
	// Signed is the directory as they signed it, which the image carries:
	// directory.pem of `veilor-forge directory sign`. It may not be there yet.
	Signed File `yaml:"signed,omitempty"`
}

// AddressSigners are the keys that may move a server to another address.
type AddressSigners struct {
	Keys      []File `yaml:"keys"`
	Threshold int    `yaml:"threshold"`
}

// Tier is a class of machines and what it may reach.
type Tier struct {
	Name string `yaml:"name"`
	// Tag is the Headscale tag: "tag:guest".
	Tag string `yaml:"tag"`
	// Reach lists "TARGET:PORT" where TARGET is a tier, a service or "*", and
	// PORT a number or "*".
	Reach []string `yaml:"reach"`
}

// Host is one machine of the operator.
type Host struct {
	Name string `yaml:"name"`
	Tier string `yaml:"tier"`
	// Tailnet is the address Headscale gave it, if it serves anything.
	Tailnet netip.Addr `yaml:"tailnet"`
	// Yggdrasil is its public key, 64 hex digits, if it serves anything.
	Yggdrasil Key `yaml:"yggdrasil,omitempty"`
}

// Service is a name under Zone that a host serves.
type Service struct {
	// Name is fully qualified without the final dot: "x.veilor".
	Name string `yaml:"name"`
	// Host is the name of one of Site.Hosts.
	Host string `yaml:"host"`
	// Ports are TCP ports, the same on every layer.
	Ports []uint16 `yaml:"ports"`
	// Loopback is the address that the name has on a laptop, in 127.83.0.0/24.
	Loopback netip.Addr `yaml:"loopback"`
}

// Yggdrasil lists whom a laptop may peer with. It dials one at a time: an edge,
// and a public peer only while no edge answers.
type Yggdrasil struct {
	Edges  []Peer `yaml:"edges"`
	Public []Peer `yaml:"public"`
}

// Peer is a Yggdrasil node that listens for WebSocket peerings behind TLS.
type Peer struct {
	Name string `yaml:"name"`
	// URL is what the TLS client says: its host is the SNI and the Host header.
	URL string `yaml:"url"`
	// Address is where the TCP connection really goes, so that no DNS is asked.
	Address netip.AddrPort `yaml:"address"`
	// Network is where Address is, as its operator or its AS is called.
	Network string `yaml:"network,omitempty"`
	// Key pins the node's identity.
	Key Key `yaml:"key,omitempty"`
}

// Key is an Ed25519 public key as Yggdrasil writes it: 64 hex digits.
type Key string

// File is the content of a public file that the site names. In the site file it
// is a path relative to that file, or the PEM text itself.
type File struct {
	// Path is as written; empty if the text was inline.
	Path string
	// Data is nil while the file does not exist.
	Data []byte
}

// Host returns the host called name.
func (s *Site) Host(name string) (Host, bool) {
	for _, h := range s.Hosts {
		if h.Name == name {
			return h, true
		}
	}
	return Host{}, false
}

// ControlHost is the host name in Control.URL.
func (s *Site) ControlHost() string {
	u, err := url.Parse(s.Control.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// PeerKeys are the keys of all peers, edges first.
func (s *Site) PeerKeys() []Key {
	var keys []Key
	for _, p := range s.Peers() {
		keys = append(keys, p.Key)
	}
	return keys
}

// Peers are the edges, then the public peers.
func (s *Site) Peers() []Peer {
	return append(append([]Peer(nil), s.Yggdrasil.Edges...), s.Yggdrasil.Public...)
}
