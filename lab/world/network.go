package world

import (
	"net"
	"net/netip"

	"github.com/veilor/veilor-os/lab/namespace"
)

// The addresses of the world. All names are in lab.test (RFC 6761: .test is
// nobody's).
var (
	// Control is hs.lab.test: Headscale, its DERP and STUN.
	Control = netip.MustParseAddr("10.88.3.10")
	// EdgeAddress is edge.lab.test: the Yggdrasil edge behind TLS.
	EdgeAddress = netip.MustParseAddr("10.88.3.20")
	// PeerAddress is peer.lab.test: the public Yggdrasil peer behind TLS.
	PeerAddress = netip.MustParseAddr("10.88.5.10")
	// FarEdgeAddress is far.lab.test: an edge in a network that has nothing else of
	// the operator's.
	FarEdgeAddress = netip.MustParseAddr("10.88.4.20")
	// LaptopAddress is what the laptop gets by DHCP.
	LaptopAddress = netip.MustParseAddr("10.88.1.10")
	// atticAddress is the attic's, in the laptop's own network.
	atticAddress = netip.MustParseAddr("10.88.1.11")
)

const (
	// Tap is the interface in the namespace Laptop that the VM opens.
	Tap = "tap0"
	// LaptopMAC is the VM's network card (QEMU's prefix 52:54:00). With it the
	// laptop gets LaptopAddress whatever client identifier initrd and system use.
	LaptopMAC = "52:54:00:88:01:0a"

	toLaptop, toHome, toPeer, toFar, toCafe = "to-laptop", "to-home", "to-peer", "to-far", "to-cafe"
	// socket is the laptop's end of the cable to the guest.
	socket = "guest"
)

// network makes the namespaces and the cables between them.
func (w *World) network() error {
	for _, n := range []struct {
		to      **namespace.Namespace
		name    string
		resolve string
		want    bool
	}{
		{&w.ISP, "isp", "", true},
		{&w.Home, "home", "10.88.3.1", true},
		{&w.Peer, "peer", "", true},
		{&w.Laptop, "laptop", "", true},
		{&w.Far, "far", "10.88.4.1", w.cfg.FarEdgeKey != ""},
		{&w.Guest, "guest", "10.88.1.1", w.cfg.Guest},
		{&w.Attic, "attic", "10.88.1.1", w.cfg.AtticKey != ""},
		{&w.Cafe, "cafe", "", w.cfg.Cafe},
	} {
		if !n.want {
			continue
		}
		o := namespace.Options{Dir: w.cfg.Names}
		if n.resolve != "" {
			o.ResolvConf = "nameserver " + n.resolve + "\n"
		}
		ns, err := namespace.New(n.name, o)
		if err != nil {
			return err
		}
		*n.to = ns
	}
	type end = namespace.End
	cables := [][2]end{
		{{In: w.ISP, Name: toLaptop, Addresses: []string{"10.88.1.1/24"}}, {In: w.Laptop, Name: "uplink"}},
		{{In: w.ISP, Name: toHome, Addresses: []string{"10.88.3.1/24"}}, {In: w.Home, Name: "eth0", Addresses: []string{"10.88.3.10/24", "10.88.3.20/24"}}},
		{{In: w.ISP, Name: toPeer, Addresses: []string{"10.88.5.1/24"}}, {In: w.Peer, Name: "eth0", Addresses: []string{"10.88.5.10/24"}}},
	}
	if w.Far != nil {
		cables = append(cables, [2]end{{In: w.ISP, Name: toFar, Addresses: []string{"10.88.4.1/24"}}, {In: w.Far, Name: "eth0", Addresses: []string{"10.88.4.20/24"}}})
	}
	for _, c := range cables {
		if err := namespace.Cable(c[0], c[1]); err != nil {
			return err
		}
	}
	if err := w.ISP.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if err := w.Laptop.Tap(Tap); err != nil {
		return err
	}
	if err := w.Laptop.Bridge("br0", "uplink", Tap); err != nil {
		return err
	}
	routes := map[*namespace.Namespace]string{w.Home: "10.88.3.1", w.Peer: "10.88.5.1"}
	if w.Far != nil {
		routes[w.Far] = "10.88.4.1"
	}
	if w.Guest != nil {
		if err := w.seat(w.Guest, socket, LaptopAddress); err != nil {
			return err
		}
		routes[w.Guest] = "10.88.1.1"
	}
	if w.Attic != nil {
		if err := w.seat(w.Attic, "attic", atticAddress); err != nil {
			return err
		}
		routes[w.Attic] = "10.88.1.1"
	}
	if w.Cafe != nil {
		if err := w.openCafe(); err != nil {
			return err
		}
		routes[w.Cafe] = "10.88.2.1"
	}
	for ns, via := range routes {
		if err := ns.Gateway(net.ParseIP(via)); err != nil {
			return err
		}
	}
	return nil
}

// seat plugs a namespace into the laptop's network; name is its cable's there.
func (w *World) seat(ns *namespace.Namespace, name string, address netip.Addr) error {
	err := namespace.Cable(namespace.End{In: w.Laptop, Name: name}, namespace.End{In: ns, Name: "eth0", Addresses: []string{address.String() + "/24"}})
	if err != nil {
		return err
	}
	return w.Laptop.Plug("br0", name)
}
