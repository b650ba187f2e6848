package world

import (
	"net/netip"
	"strings"

	"github.com/veilor/veilor-os/lab/daemon"
)

// startDNS runs the ISP's DHCP and DNS. It knows the lab's public names and
// answers NXDOMAIN to every other; it has nobody to ask.
func (w *World) startDNS() error {
	config := []string{
		"no-resolv", "no-hosts", "no-poll", "address=/#/", "cache-size=0",
		"bind-interfaces", "except-interface=lo",
		w.record("hs", Control), w.record("edge", EdgeAddress), w.record("far", FarEdgeAddress),
		w.record("peer", PeerAddress), w.record("peer2", SecondPeerAddress),
		// A machine other than the laptop may ask, as a test's would.
		"dhcp-range=10.88.1.100,10.88.1.120,infinite",
		"dhcp-host=" + LaptopMAC + ",id:*," + LaptopAddress.String() + ",infinite",
		"dhcp-authoritative", "no-ping", "leasefile-ro", "log-dhcp",
		"user=root", "pid-file", "log-facility=-",
	}
	// From its standard input: nothing has to be put where it can read it.
	cmd := w.cfg.Tools.Dnsmasq("--keep-in-foreground", "--conf-file=-")
	cmd.Stdin = strings.NewReader(strings.Join(config, "\n") + "\n")
	d, err := daemon.Start(w.ISP, "dnsmasq", w.log("dnsmasq"), cmd)
	if err != nil {
		return err
	}
	w.keep(d)
	return nil
}

// record is a name's line.
func (w *World) record(name string, a netip.Addr) string {
	line := "host-record=" + name + ".lab.test," + a.String()
	if w.cfg.IPv6 {
		line += "," + Twin(a).String()
	}
	return line
}
