package namespace

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// End is one end of a cable.
type End struct {
	In *Namespace
	// Name is the interface's name there, at most 15 bytes.
	Name string
	// Addresses in CIDR form: "10.88.1.1/24".
	Addresses []string
}

// Cable joins two namespaces by a veth pair and brings both ends up.
func Cable(a, b End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Name, PeerNamespace: netlink.NsFd(b.In.FD())}
	if err := a.In.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("laying a cable from %s to %s: %w", a.In.Name, b.In.Name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.In.Address(e.Name, e.Addresses...); err != nil {
			return err
		}
		if err := e.In.Up(e.Name); err != nil {
			return err
		}
	}
	return nil
}

// Address adds addresses in CIDR form to an interface.
func (n *Namespace) Address(link string, cidrs ...string) error {
	l, err := n.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", link, n.Name, err)
	}
	for _, c := range cidrs {
		a, err := netlink.ParseAddr(c)
		if err != nil {
			return fmt.Errorf("reading address %q: %w", c, err)
		}
		if err := n.links.AddrAdd(l, a); err != nil {
			return fmt.Errorf("adding %s to %s in %s: %w", c, link, n.Name, err)
		}
	}
	return nil
}

// Flush takes all addresses from an interface, and with them its routes.
func (n *Namespace) Flush(link string) error {
	l, err := n.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", link, n.Name, err)
	}
	all, err := n.links.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing the addresses of %s in %s: %w", link, n.Name, err)
	}
	for _, a := range all {
		if a.IP.IsLinkLocalUnicast() {
			continue // the kernel's own
		}
		if err := n.links.AddrDel(l, &a); err != nil {
			return fmt.Errorf("taking %v from %s in %s: %w", a.IPNet, link, n.Name, err)
		}
	}
	// Those of IPv6 by a gateway outlive the address.
	routes, err := n.links.RouteList(l, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("listing the routes of %s in %s: %w", link, n.Name, err)
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue
		}
		if err := n.links.RouteDel(&r); err != nil {
			return fmt.Errorf("removing the route via %s in %s: %w", r.Gw, n.Name, err)
		}
	}
	return nil
}

// Move moves an interface to another namespace, where it is down and without
// addresses: a cable is pulled here and plugged in there.
func (n *Namespace) Move(link string, to *Namespace) error {
	l, err := n.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", link, n.Name, err)
	}
	if err := n.links.LinkSetNsFd(l, to.FD()); err != nil {
		return fmt.Errorf("moving %s from %s to %s: %w", link, n.Name, to.Name, err)
	}
	return nil
}

// Sent is how many packets have left by an interface.
func (n *Namespace) Sent(link string) (uint64, error) {
	l, err := n.links.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("finding %s in %s: %w", link, n.Name, err)
	}
	return l.Attrs().Statistics.TxPackets, nil
}

// Up brings an interface up.
func (n *Namespace) Up(link string) error {
	l, err := n.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", link, n.Name, err)
	}
	if err := n.links.LinkSetUp(l); err != nil {
		return fmt.Errorf("bringing %s up in %s: %w", link, n.Name, err)
	}
	return nil
}

// Gateway sends everything that is not on a link to via.
func (n *Namespace) Gateway(via net.IP) error {
	if err := n.links.RouteAdd(&netlink.Route{Gw: via}); err != nil {
		return fmt.Errorf("adding the route of %s via %s: %w", n.Name, via, err)
	}
	return nil
}

// Bits of the first byte of a hardware address (IEEE 802).
const multicast, local = 1, 2

// Bridge makes a bridge of the named interfaces, which must exist, and brings
// it up. Its address stays: one that is not given is that of a port, and another when
// ports come and go, so that who has it for a router loses it for seconds.
func (n *Namespace) Bridge(name string, ports ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.HardwareAddr = make(net.HardwareAddr, 6)
	rand.Read(attrs.HardwareAddr)
	attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^multicast | local
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := n.links.LinkAdd(br); err != nil {
		return fmt.Errorf("making bridge %s in %s: %w", name, n.Name, err)
	}
	for _, p := range ports {
		if err := n.Plug(name, p); err != nil {
			return err
		}
	}
	return n.Up(name)
}

const (
	// burst may leave at once where the rate is limited: some milliseconds' worth of
	// the fastest, without which the kernel cannot keep up the rate.
	burst = 512 << 10
	// queue is what waits meanwhile, in bytes.
	queue = 2 << 20
)

// Limit lets no more than rate bytes a second leave by the interface; 0 ends that.
func (n *Namespace) Limit(name string, rate uint64) error {
	l, err := n.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", name, n.Name, err)
	}
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(max(rate, 1), burst), Limit: queue,
	}
	change := n.links.QdiscReplace
	if rate == 0 {
		change = n.links.QdiscDel
	}
	if err := change(q); err != nil {
		return fmt.Errorf("limiting %s in %s to %d bytes a second: %w", name, n.Name, rate, err)
	}
	return nil
}

// Plug makes an existing interface a port of a bridge and brings it up.
func (n *Namespace) Plug(bridge, port string) error {
	br, err := n.links.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", bridge, n.Name, err)
	}
	l, err := n.links.LinkByName(port)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", port, n.Name, err)
	}
	if err := n.links.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("plugging %s into %s in %s: %w", port, bridge, n.Name, err)
	}
	return n.Up(port)
}

// Tap makes a persistent tap, which an emulator in this namespace opens by
// name (with a virtio-net header), and brings it up.
func (n *Namespace) Tap(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	// TUNSETIFF makes the device in the namespace of the calling thread.
	if err := n.Do(func() error { return netlink.LinkAdd(tap) }); err != nil {
		return fmt.Errorf("making tap %s in %s: %w", name, n.Name, err)
	}
	return n.Up(name)
}

// Sysctl sets a network setting of the namespace: "net.ipv4.ip_forward".
func (n *Namespace) Sysctl(key, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
	// /proc/sys/net shows the namespace of the thread that opens it.
	if err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0) }); err != nil {
		return fmt.Errorf("setting %s in %s: %w", key, n.Name, err)
	}
	return nil
}
