package packetfilter

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

var update = flag.Bool("update", false, "write the golden files anew")

func key(n int) site.Key { return site.Key(fmt.Sprintf("%x", sha256.Sum256([]byte{byte(n)}))) }

func town(t *testing.T) *tier.Fleet {
	t.Helper()
	p, err := tier.New(&site.Site{
		Zone: "veilor",
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"nullstone.veilor:22", "*:*"}},
			{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
			{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}},
		},
		Hosts: []site.Host{
			{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1"), Yggdrasil: key(1)},
			{Name: "office", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.2"), Yggdrasil: key(2)},
			{Name: "failsafe", Tier: "admin", Tailnet: netip.MustParseAddr("100.64.0.3"), Yggdrasil: key(3)},
		},
		Services: []site.Service{
			{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}},
			{Name: "nullstone.veilor", Host: "nullstone", Ports: []uint16{22}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Fleet(
		tier.Machine{Name: "ann", Tier: "guest", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.9")}, Yggdrasil: key(9)},
		tier.Machine{Name: "lost", Tier: "guest", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.8")}, Yggdrasil: key(8), Revoked: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGolden(t *testing.T) {
	f := town(t)
	for _, c := range []struct {
		file, self string
		layer      tier.Layer
	}{
		{"server-ygg.nft", "nullstone", tier.Yggdrasil},
		{"server-ts.nft", "nullstone", tier.Tailnet},
		{"laptop-ygg.nft", "ann", tier.Yggdrasil},
	} {
		m, _ := f.ByName(c.self)
		table, err := Compile(f, m, c.layer)
		if err != nil {
			t.Fatal(err)
		}
		path := "testdata/" + c.file
		if *update {
			if err := os.WriteFile(path, []byte(table.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), table.String()); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

// Who joins or is revoked changes sets and no rule: a running table need not be
// replaced for it.
func TestOnlySetsChange(t *testing.T) {
	f := town(t)
	self, _ := f.ByName("nullstone")
	before, err := Compile(f, self, tier.Yggdrasil)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := f.Policy().Fleet()
	if err != nil {
		t.Fatal(err)
	}
	after, err := Compile(alone, self, tier.Yggdrasil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.Chains, after.Chains, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if before.String() == after.String() {
		t.Error("and no set either")
	}
}

// An address that a revoked machine had is the next one's only.
func TestAddressPassesOn(t *testing.T) {
	a := []netip.Addr{netip.MustParseAddr("100.64.0.8")}
	f, err := town(t).Policy().Fleet(
		tier.Machine{Name: "lost", Tier: "guest", Tailnet: a, Revoked: true},
		tier.Machine{Name: "next", Tier: "guest", Tailnet: a},
	)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := f.ByName("nullstone")
	table, err := Compile(f, self, tier.Tailnet)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]bool{}
	for _, s := range table.Sets {
		in[s.Name] = slices.Contains(s.Addresses, a[0])
	}
	if !in["tier_guest_4"] || in["revoked_4"] {
		t.Errorf("it is in %v", in)
	}
}

func TestRuleNamesAreUnique(t *testing.T) {
	f := town(t)
	for _, m := range f.Machines() {
		for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
			table, err := Compile(f, m, l)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, c := range table.Chains {
				for _, r := range c.Rules {
					if seen[r.Name] {
						t.Errorf("%s on %s: %q is there twice", m.Name, l, r.Name)
					}
					seen[r.Name] = true
				}
			}
		}
	}
	if _, err := Compile(f, tier.Machine{}, tier.None); err == nil {
		t.Error("a table for no layer")
	}
}

func TestOpen(t *testing.T) {
	f := town(t)
	self, _ := f.ByName("nullstone")
	table, err := Compile(f, self, tier.Tailnet)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint16{443}, table.Open()); diff != "" {
		t.Error(diff)
	}
	if got := fmt.Sprint(table.Unrestricted()); got != "[100.64.0.3 100.64.0.2]" {
		t.Errorf("unrestricted: %s", got)
	}
}
