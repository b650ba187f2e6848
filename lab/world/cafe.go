package world

import (
	"net"
	"net/netip"
	"os"

	"github.com/veilor/veilor-os/lab/namespace"
)

// The café: a network with a router of its own, which translates addresses
// before the ISP gets to see them, and which has no IPv6. The ISP's censor does
// not act on its leg.
const (
	cafeBridge  = "br0"
	cafeUplink  = "eth0"
	cafeGateway = "10.89.1.1"
	// cafeResolver is the ISP's, as the café's DHCP would say.
	cafeResolver = "10.88.2.1"
	homeGateway  = "10.88.1.1"
)

// CafeAddress is the laptop's in the café.
var CafeAddress = netip.MustParseAddr("10.89.1.10")

// openCafe lays its cable and configures its router.
func (w *World) openCafe() error {
	err := namespace.Cable(namespace.End{In: w.ISP, Name: toCafe, Addresses: []string{"10.88.2.1/24"}},
		namespace.End{In: w.Cafe, Name: cafeUplink, Addresses: []string{"10.88.2.10/24"}})
	if err != nil {
		return err
	}
	if err := w.Cafe.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if err := w.Cafe.Bridge(cafeBridge); err != nil {
		return err
	}
	if err := w.Cafe.Address(cafeBridge, cafeGateway+"/24"); err != nil {
		return err
	}
	if err := w.Cafe.Gateway(net.ParseIP(cafeResolver)); err != nil {
		return err
	}
	return translate(w.Cafe, netip.PrefixFrom(CafeAddress, 24), cafeBridge)
}

// GoOut takes the guest to the café: its cable is pulled and plugged in there,
// and its old addresses give way to a new one, as DHCP would have it.
func (w *World) GoOut() error {
	if err := w.carry(w.Laptop, w.Cafe, cafeBridge, cafeResolver, CafeAddress.String()+"/24"); err != nil {
		return err
	}
	return w.Guest.Gateway(net.ParseIP(cafeGateway))
}

// GoHome takes it back.
func (w *World) GoHome() error {
	if err := w.carry(w.Cafe, w.Laptop, "br0", homeGateway, w.both(LaptopAddress.String())...); err != nil {
		return err
	}
	return w.gateways(w.Guest, homeGateway)
}

func (w *World) carry(from, to *namespace.Namespace, bridge, resolver string, addresses ...string) error {
	if err := from.Move(socket, to); err != nil {
		return err
	}
	if err := w.Guest.Flush("eth0"); err != nil {
		return err
	}
	if err := to.Plug(bridge, socket); err != nil {
		return err
	}
	if err := w.Guest.Address("eth0", addresses...); err != nil {
		return err
	}
	return w.Guest.Do(func() error { return os.WriteFile("/etc/resolv.conf", []byte("nameserver "+resolver+"\n"), 0o644) })
}

// CafeSent is how many packets have left the café for the ISP.
func (w *World) CafeSent() (uint64, error) { return w.Cafe.Sent(cafeUplink) }
