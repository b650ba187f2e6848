package tiers

import (
	"encoding/xml"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/firewalld"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
)

// firewalldTable is what firewalld (1.3, nftables backend) makes of a zone, as far
// as it decides about what comes in.
func firewalldTable(t *testing.T, zone []byte) string {
	t.Helper()
	var z struct {
		Interface struct {
			Name string `xml:"name,attr"`
		} `xml:"interface"`
		Ports []struct {
			Protocol string `xml:"protocol,attr"`
			Port     uint16 `xml:"port,attr"`
		} `xml:"port"`
		Rules []struct {
			Source struct {
				Address netip.Addr `xml:"address,attr"`
			} `xml:"source"`
		} `xml:"rule"`
	}
	if err := xml.Unmarshal(zone, &z); err != nil {
		t.Fatal(err)
	}
	var allow strings.Builder
	for _, p := range z.Ports {
		fmt.Fprintf(&allow, "\t\t%s dport %d ct state { new, untracked } accept\n", p.Protocol, p.Port)
	}
	for _, r := range z.Rules {
		family := "ip"
		if r.Source.Address.Is6() {
			family = "ip6"
		}
		fmt.Fprintf(&allow, "\t\t%s saddr %s accept\n", family, r.Source.Address)
	}
	return fmt.Sprintf(`table inet firewalld {
	chain filter_IN_veilor_allow {
%s	}
	chain filter_IN_veilor {
		jump filter_IN_veilor_allow
		drop
	}
	chain filter_INPUT_ZONES {
		iifname %q goto filter_IN_veilor
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
}
`, allow.String(), z.Interface.Name)
}

// The packet filter comes, changes and goes beside firewalld's table and leaves
// every rule of it alone. While both are there nothing comes in that the tiers do
// not allow, and every port that they open is open.
func TestBesideFirewalld(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	for _, c := range []int{0, 3, 4, 7} {
		self, layer := rigs[c].self, rigs[c].layer
		t.Run(self+" "+layer.String(), func(t *testing.T) {
			r := newRig(t, town, self, layer)
			zone, err := firewalld.Render(town.Fleet, r.Self, layer)
			if err != nil {
				t.Fatal(err)
			}
			r.nft(t, firewalldTable(t, zone.XML()), "-f", "-")
			firewalls := func() string { return r.nft(t, "", "--handle", "list", "table", "inet", "firewalld") }
			before := firewalls()
			tab := table(t, town.Fleet, r)
			guest, ok := town.Fleet.ByName("laptop-2")
			if !ok {
				t.Fatal("no laptop-2 in this town")
			}
			a := &asker{town: town, rig: r}
			revoked := false
			for _, step := range []struct {
				name string
				do   func() error
				gone bool
			}{
				{name: "loaded", do: func() error { return tab.Load(r.NFT()) }},
				{name: "a guest is revoked", do: func() error {
					revoked = true
					return packetfilter.Revoke(tab.Name, guest.Addresses(layer), r.NFT())
				}},
				{name: "replaced", do: func() error {
					revoked = false
					return tab.Load(r.NFT())
				}},
				{name: "unloaded", do: func() error { return packetfilter.Unload(tab.Name, r.NFT()) }, gone: true},
			} {
				if err := step.do(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if diff := cmp.Diff(before, firewalls()); diff != "" {
					t.Errorf("%s: firewalld's table is another:\n%s", step.name, diff)
				}
				asks := a.grid()
				var ps []packet
				for i, k := range asks {
					if asks[i].want = k.want && !(revoked && isOf(guest, k.src.Addr())); asks[i].want != k.want {
						asks[i].name += ", revoked"
					}
					ps = append(ps, k.packet)
				}
				in, err := r.Send(ps)
				if err != nil {
					t.Fatal(err)
				}
				let := 0
				for i, k := range asks {
					// A zone that drops takes no pings but from those who may open all.
					port := k.proto == tier.TCP || k.proto == tier.UDP
					if in[i] && !k.want && !step.gone || !in[i] && k.want && port {
						t.Fatalf("%s: %s: decided %t, came in %t", step.name, k.name, k.want, in[i])
					}
					if in[i] {
						let++
					}
				}
				if let == 0 {
					t.Errorf("%s: nothing came in", step.name)
				}
			}
		})
	}
}

func isOf(m tier.Machine, a netip.Addr) bool {
	for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
		for _, b := range m.Addresses(l) {
			if a == b {
				return true
			}
		}
	}
	return false
}
