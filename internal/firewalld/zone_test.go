package firewalld

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"os/exec"
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

// firewalld itself reads the zones; a broken one it must refuse, or this proves
// nothing.
func TestFirewalldReadsIt(t *testing.T) {
	program, err := exec.LookPath("firewall-offline-cmd")
	if err != nil {
		t.Skip("NOT TESTED without firewall-offline-cmd: apt-get install firewalld")
	}
	f, self := town(t)
	check := func(change func([]byte) []byte) error {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "zones"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
			z, err := Render(f, self, l)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "zones", z.Name+".xml"), change(z.XML()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command(program, "--system-config", dir, "--check-config").CombinedOutput()
		if err != nil {
			t.Logf("firewalld: %v: %s", err, bytes.TrimSpace(out))
		}
		return err
	}
	if err := check(func(b []byte) []byte { return b }); err != nil {
		t.Errorf("firewalld refuses our zones: %v", err)
	}
	for old, new := range map[string]string{`target="DROP"`: `target="DORP"`, `"ygg0"`: `"tailscale0"`, `protocol="tcp"`: `protocol="tpc"`} {
		if check(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(new)) }) == nil {
			t.Errorf("firewalld takes %s", new)
		}
	}
}
