package world

import (
	"net"
	"net/netip"

	"github.com/veilor/veilor-os/lab/namespace"
)

// The addresses of the world; see Twin for IPv6. All names are in lab.test (RFC 6761: .test is
// nobody's).
var (
	// Control is hs.lab.test: Headscale, its DERP and STUN.
	Control = netip.MustParseAddr("10.88.3.10")
	// EdgeAddress is edge.lab.test: the Yggdrasil edge behind TLS.
	EdgeAddress = netip.MustParseAddr("10.88.3.20")
	// PeerAddress is peer.lab.test: the public Yggdrasil peer behind TLS.
	PeerAddress = netip.MustParseAddr("10.88.5.10")
	// SecondPeerAddress is peer2.lab.test: another, in a network of its own.
	SecondPeerAddress = netip.MustParseAddr("10.88.6.10")
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
	toSecondPeer                            = "to-peer2"
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
		{&w.SecondPeer, "peer2", "", w.cfg.SecondPeerKey != ""},
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
	if err := w.quickSix(); err != nil {
		return err
	}
	type end = namespace.End
	cables := [][2]end{
		{{In: w.ISP, Name: toLaptop, Addresses: w.both(homeGateway)}, {In: w.Laptop, Name: "uplink"}},
		{{In: w.ISP, Name: toHome, Addresses: w.both("10.88.3.1")}, {In: w.Home, Name: "eth0", Addresses: w.both(Control.String(), EdgeAddress.String())}},
		{{In: w.ISP, Name: toPeer, Addresses: w.both("10.88.5.1")}, {In: w.Peer, Name: "eth0", Addresses: w.both(PeerAddress.String())}},
	}
	routes := map[*namespace.Namespace]string{w.Home: "10.88.3.1", w.Peer: "10.88.5.1"}
	if w.Far != nil {
		cables = append(cables, [2]end{{In: w.ISP, Name: toFar, Addresses: w.both("10.88.4.1")}, {In: w.Far, Name: "eth0", Addresses: w.both(FarEdgeAddress.String())}})
		routes[w.Far] = "10.88.4.1"
	}
	if w.SecondPeer != nil {
		cables = append(cables, [2]end{{In: w.ISP, Name: toSecondPeer, Addresses: w.both("10.88.6.1")}, {In: w.SecondPeer, Name: "eth0", Addresses: w.both(SecondPeerAddress.String())}})
		routes[w.SecondPeer] = "10.88.6.1"
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
	if w.Guest != nil {
		if err := w.seat(w.Guest, socket, LaptopAddress); err != nil {
			return err
		}
		routes[w.Guest] = homeGateway
	}
	if w.Attic != nil {
		if err := w.seat(w.Attic, "attic", atticAddress); err != nil {
			return err
		}
		routes[w.Attic] = homeGateway
	}
	for ns, via := range routes {
		if err := w.gateways(ns, via); err != nil {
			return err
		}
	}
	if w.Cafe != nil {
		return w.openCafe()
	}
	return nil
}

// quickSix makes IPv6 ready for use in every namespace, and has the ISP forward.
func (w *World) quickSix() error {
	for _, ns := range w.namespaces() {
		if err := w.prepareSix(ns); err != nil {
			return err
		}
	}
	if !w.cfg.IPv6 {
		return nil
	}
	return w.ISP.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// prepareSix has addresses be there at once: nobody else has them.
func (w *World) prepareSix(ns *namespace.Namespace) error {
	if !w.cfg.IPv6 {
		return nil
	}
	for _, of := range []string{"all", "default"} {
		if err := ns.Sysctl("net.ipv6.conf."+of+".accept_dad", "0"); err != nil {
			return err
		}
	}
	return nil
}

// both are IPv4 addresses of the world and their twins, in CIDR form.
func (w *World) both(addresses ...string) []string {
	var all []string
	for _, a := range addresses {
		all = append(all, a+"/24")
		if w.cfg.IPv6 {
			all = append(all, Twin(netip.MustParseAddr(a)).String()+"/64")
		}
	}
	return all
}

// gateways sends everything of ns to a router, by both families.
func (w *World) gateways(ns *namespace.Namespace, router string) error {
	if w.cfg.IPv6 {
		if err := ns.Gateway(Twin(netip.MustParseAddr(router)).AsSlice()); err != nil {
			return err
		}
	}
	return ns.Gateway(net.ParseIP(router))
}

// Twin is the IPv6 address of the machine that has an IPv4 address of the world's:
// 10.88.3.20 is 2001:db8:3::14 as well (RFC 3849: that prefix is nobody's).
func Twin(a netip.Addr) netip.Addr {
	four := a.As4()
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 5: four[2], 15: four[3]})
}

// Seat makes a namespace for a further machine at address: in the laptop's network
// or in the café's. It ends with the world.
func (w *World) Seat(name string, address netip.Addr) (*namespace.Namespace, error) {
	cafe := netip.PrefixFrom(CafeAddress, 24).Contains(address)
	resolver := homeGateway
	if cafe {
		resolver = cafeResolver
	}
	ns, err := namespace.New(name, namespace.Options{Dir: w.cfg.Names, ResolvConf: "nameserver " + resolver + "\n"})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.seats = append(w.seats, ns)
	w.mu.Unlock()
	if !cafe {
		if err := w.prepareSix(ns); err != nil {
			return nil, err
		}
		if err := w.seat(ns, name, address); err != nil {
			return nil, err
		}
		return ns, w.gateways(ns, homeGateway)
	}
	err = namespace.Cable(namespace.End{In: w.Cafe, Name: name}, namespace.End{In: ns, Name: "eth0", Addresses: []string{address.String() + "/24"}})
	if err == nil {
		err = w.Cafe.Plug(cafeBridge, name)
	}
	if err == nil {
		err = ns.Gateway(net.ParseIP(cafeGateway))
	}
	return ns, err
}

// seat plugs a namespace into the laptop's network; name is its cable's there.
func (w *World) seat(ns *namespace.Namespace, name string, address netip.Addr) error {
	err := namespace.Cable(namespace.End{In: w.Laptop, Name: name}, namespace.End{In: ns, Name: "eth0", Addresses: w.both(address.String())})
	if err != nil {
		return err
	}
	return w.Laptop.Plug("br0", name)
}
