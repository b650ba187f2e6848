// Package firewalld renders zones for the overlay interfaces.
//
// On a machine with firewalld every chain must accept a packet, and its default
// zone opens more on an overlay interface than a tier does, or less. So each
// overlay has a zone of its own that drops what it does not name: the ports that
// some tier may open on this machine, and everything for those who may open
// every port. It is a coarse second line; who may open what is decided by
// Headscale's policy and by the packet filter, and this never opens more than
// the two together.
//
// One bad file makes firewalld (1.3) throw all zones away and fall back to its
// stock configuration, so what is rendered is checked here for what it refuses.
package firewalld

import (
	"encoding/xml"
	"fmt"
	"net/netip"
	"slices"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
)

// maxName is the longest name of a zone (firewalld, max_zone_name_len: what is
// left of the longest iptables chain name).
const maxName = 17

// Zone is a zone file.
type Zone struct {
	// Name is the file's name without .xml.
	Name string
	text []byte
}

// XML is the file's content.
func (z Zone) XML() []byte { return slices.Clone(z.text) }

type zoneXML struct {
	XMLName     xml.Name  `xml:"zone"`
	Target      string    `xml:"target,attr"`
	Short       string    `xml:"short"`
	Description string    `xml:"description"`
	Interface   namedXML  `xml:"interface"`
	Ports       []portXML `xml:"port"`
	Rules       []richXML `xml:"rule"`
}

type namedXML struct {
	Name string `xml:"name,attr"`
}

type portXML struct {
	Protocol string `xml:"protocol,attr"`
	Port     uint16 `xml:"port,attr"`
}

type richXML struct {
	Family string    `xml:"family,attr"`
	Source sourceXML `xml:"source"`
	Accept struct{}  `xml:"accept"`
}

type sourceXML struct {
	Address netip.Addr `xml:"address,attr"`
}

// Render makes the zone of machine self on a layer.
func Render(f *tier.Fleet, self tier.Machine, l tier.Layer) (Zone, error) {
	t, err := packetfilter.Compile(f, self, l)
	if err != nil {
		return Zone{}, err
	}
	name, iface := "veilor-ygg", packetfilter.YggdrasilInterface
	if l == tier.Tailnet {
		name, iface = "veilor-tailnet", packetfilter.TailnetInterface
	}
	if len(name) > maxName {
		return Zone{}, fmt.Errorf("rendering zone %s: a zone's name has at most %d letters", name, maxName)
	}
	z := zoneXML{
		Target: "DROP", Short: "veilor " + l.String(),
		Description: "Written by veilor-forge from the site file. What " + l.String() + " may open on this machine; everything else is dropped.",
		Interface:   namedXML{iface},
	}
	for _, p := range t.Open() {
		z.Ports = append(z.Ports, portXML{"tcp", p})
	}
	for _, a := range t.Unrestricted() {
		r := richXML{Family: "ipv4", Source: sourceXML{a}}
		if a.Is6() {
			r.Family = "ipv6"
		}
		z.Rules = append(z.Rules, r)
	}
	text, err := xml.MarshalIndent(z, "", "  ")
	if err != nil {
		return Zone{}, fmt.Errorf("rendering zone %s: %w", name, err)
	}
	return Zone{Name: name, text: append([]byte(xml.Header), append(text, '\n')...)}, nil
}
