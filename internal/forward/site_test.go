package forward

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/site"
)

func TestFromSite(t *testing.T) {
	s := &site.Site{
		Zone:  "veilor",
		Tiers: []site.Tier{{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}}, {Name: "infra", Tag: "tag:infra"}},
		Hosts: []site.Host{{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1"), Yggdrasil: "abababababababababababababababababababababababababababababababab"}, {Name: "office", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.2")}},
		Services: []site.Service{
			{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443, 8080}, Loopback: netip.MustParseAddr("127.83.0.1")},
			{Name: "y.veilor", Host: "office", Ports: []uint16{443}, Loopback: netip.MustParseAddr("127.83.0.2")},
		},
	}
	got, err := FromSite(s)
	if err != nil {
		t.Fatal(err)
	}
	want := []Service{
		// Nobody may reach 8080, so it is not there; 443 speaks TLS.
		{Name: "x.veilor", Listen: netip.MustParseAddr("127.83.0.1"), Ports: []uint16{443}, TLS: []uint16{443}, Routes: []Route{
			{mesh.Tailnet, "tailscale0", netip.MustParseAddr("100.64.0.1")},
			{mesh.Yggdrasil, "ygg0", netip.MustParseAddr("200:a8a8:a8a8:a8a8:a8a8:a8a8:a8a8:a8a8")},
		}},
		// Nobody may reach y.veilor at all.
		{Name: "y.veilor", Listen: netip.MustParseAddr("127.83.0.2")},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.Services[0].Host = "nobody"
	if _, err := FromSite(s); err == nil {
		t.Error("a service on no host was taken")
	}
}
