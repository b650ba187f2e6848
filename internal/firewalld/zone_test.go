package firewalld

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

var update = flag.Bool("update", false, "write the golden files anew")

func town(t *testing.T) (*tier.Fleet, tier.Machine) {
	t.Helper()
	p, err := tier.New(&site.Site{
		Zone:  "veilor",
		Tiers: []site.Tier{{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}}, {Name: "infra", Tag: "tag:infra"}, {Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}}},
		Hosts: []site.Host{
			{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1")},
			{Name: "failsafe", Tier: "admin", Tailnet: netip.MustParseAddr("100.64.0.2"), Yggdrasil: site.Key(strings.Repeat("ab", 32))},
		},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Fleet()
	if err != nil {
		t.Fatal(err)
	}
	m, _ := f.ByName("nullstone")
	return f, m
}

func TestGolden(t *testing.T) {
	f, self := town(t)
	for _, c := range []struct {
		m tier.Machine
		l tier.Layer
	}{{self, tier.Tailnet}, {self, tier.Yggdrasil}} {
		z, err := Render(f, c.m, c.l)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", z.Name+".xml")
		if *update {
			if err := os.WriteFile(path, z.XML(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(z.XML())); diff != "" {
			t.Error(diff)
		}
	}
}
