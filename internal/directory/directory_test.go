package directory

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/veilor/veilor-os/internal/site"
)

var addrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.EquateErrors(),
}

// What the site says comes back from a directory made of it.
func TestApplyGivesTheSiteBack(t *testing.T) {
	s := town()
	got, err := directoryOf(t, s).Apply(&site.Site{Zone: "veilor", Tiers: s.Tiers})
	if err != nil {
		t.Fatal(err)
	}
	s.Services[1].Ports = []uint16{80, 443} // in order
	if diff := cmp.Diff(s, got, addrs); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := directoryOf(t, s).Apply(&site.Site{Zone: "other"}); err == nil {
		t.Error("a directory of another zone was applied")
	}
}

// TestApplyFitsTheTiers: services come and go with the directory, and what the image
// opens stays what it is.
func TestApplyFitsTheTiers(t *testing.T) {
	image := town()
	image.Hosts = append(image.Hosts, site.Host{Name: "office", Tier: image.Hosts[0].Tier, Tailnet: netip.MustParseAddr("100.64.0.77")})
	at := func(name, host string, number byte, ports ...uint16) site.Service {
		return site.Service{Name: name, Host: host, Ports: ports, Loopback: netip.AddrFrom4([4]byte{127, 83, 0, number})}
	}
	first := image.Hosts[0].Name
	image.Services = []site.Service{at("x.veilor", first, 1, 443), at("goes.veilor", first, 2, 443), at("port.veilor", first, 3, 443, 8443)}
	image.Tiers = []site.Tier{
		{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
		{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
		{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443", "goes.veilor:443", "port.veilor:443", "port.veilor:8443"}},
	}
	newer := *image
	newer.Services = []site.Service{
		at("x.veilor", first, 1, 443), at("port.veilor", first, 3, 443),
		at("same.veilor", first, 4, 443), at("other.veilor", first, 5, 22), at("office.veilor", "office", 6, 443),
	}
	got, err := directoryOf(t, &newer).Apply(image)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"x.veilor:443", "port.veilor:443", "same.veilor:443"}
	if d := cmp.Diff(want, got.Tiers[2].Reach); d != "" {
		t.Errorf("guests (-want +got):\n%s", d)
	}
	if d := cmp.Diff(image.Tiers[:2], got.Tiers[:2]); d != "" {
		t.Errorf("the others (-want +got):\n%s", d)
	}
	if len(image.Tiers[2].Reach) != 4 {
		t.Errorf("the image's own: %v", image.Tiers[2].Reach)
	}

	// One by which no policy can be made changes nothing.
	newer.Hosts = append([]site.Host{{Name: "guest", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.78")}}, newer.Hosts...)
	if _, err := directoryOf(t, &newer).Apply(image); err == nil {
		t.Error("a directory with a host that is called as a tier was applied")
	}
}

func TestOneFormOnly(t *testing.T) {
	d := directoryOf(t, town())
	names, err := d.Names.Encode()
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := d.Addresses.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseNames(names); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseAddresses(addresses); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", `"zone"`, `"colour": "red",` + "\n" + ` "zone"`, "not in the form"},
		{"repeated key", `"zone": "veilor"`, `"zone": "other", "zone": "veilor"`, "not in the form"},
		{"other case", `"zone"`, `"Zone"`, "not in the form"},
		{"end", "\n}\n", "\n}\n{}", "after top-level"},
		{"format", `"format": 1`, `"format": 2`, "update the system"},
		{"same number", `"number": 2`, `"number": 1`, "loopback number 1 is there twice"},
		{"resolver's number", `"number": 2`, `"number": 53`, "not for a service"},
		{"number 0", `"number": 2`, `"number": 0`, "not for a service"},
		{"number 300", `"number": 2`, `"number": 300`, "cannot unmarshal"},
		{"outside the zone", `"name": "x.veilor"`, `"name": "x.example"`, "no name in the zone"},
		{"no host", `"host": "nullstone"`, `"host": "other"`, "is not there"},
		{"plain text", `"https://hs`, `"http://hs`, "no https URL"},
		{"port 0", "    443\n   ],\n   \"number\": 1", "    0\n   ],\n   \"number\": 1", "port 0 is 0"},
		{"public tailnet", `100.64.0.1`, `5.9.10.1`, "is not in 100.64.0.0/10"},
		{"key", edgeKey2, edgeKey1, "key " + edgeKey1 + " is there twice"},
		{"upper case key", edgeKey2, strings.ToUpper(edgeKey2), "no Yggdrasil key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(string(names), c.old, c.new, 1)
			if text == string(names) {
				t.Fatalf("the mistake was not made in\n%s", text)
			}
			if _, err := ParseNames([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"mapped address", `"5.9.10.10"`, `"::ffff:5.9.10.10"`, "no address of a server"},
		{"zoned address", `"2a01:4f8:1::10"`, `"fe80::1%eth0"`, "no address of a server"},
		{"loopback", `"5.9.10.10"`, `"127.0.0.1"`, "no address of a server"},
		{"spelling", `"2a01:4f8:1::10"`, `"2A01:4F8:1::10"`, "not in the form"},
		{"twice", `"2a01:4f8:1::10"`, `"5.9.10.10"`, "is there twice"},
		{"key", `"name": "edge-1",`, `"key": "` + edgeKey2 + `", "name": "edge-1",`, "not in the form"},
		{"line break", `"AS64501"`, `"a\nb"`, "no line of text"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(string(addresses), c.old, c.new, 1)
			if text == string(addresses) {
				t.Fatalf("the mistake was not made in\n%s", text)
			}
			if _, err := ParseAddresses([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
}

func TestAddressesAddNothing(t *testing.T) {
	d := directoryOf(t, town())
	for name, a := range map[string]Addresses{
		"node":   {Format: Format, Nodes: []NodeAddress{{Name: "edge-9", Address: netip.MustParseAddrPort("46.4.1.9:443")}}},
		"server": {Format: Format, Servers: []ServerAddress{{Name: "evil.example.org", Addresses: []netip.Addr{netip.MustParseAddr("46.4.1.9")}}}},
	} {
		if _, err := Merge(d.Names, a); err == nil || !strings.Contains(err.Error(), "does not name") {
			t.Errorf("a new %s: %v", name, err)
		}
	}
}

func TestCheck(t *testing.T) {
	if errs := Check(directoryOf(t, town())); len(errs) > 0 {
		t.Fatalf("a good town: %v", errs)
	}
	for _, c := range []struct {
		name string
		do   func(*site.Site)
		want string
	}{
		{"edge in the /24", func(s *site.Site) {
			s.Yggdrasil.Edges[0].Address = netip.MustParseAddrPort("5.9.10.200:443")
		}, "edge-1 is in the control server's network (5.9.10.0/24)"},
		{"edge in the /48", func(s *site.Site) {
			s.Yggdrasil.Edges[0].Address = netip.MustParseAddrPort("[2a01:4f8:1:ffff::1]:443")
		}, "edge-1 is in the control server's network (2a01:4f8:1::/48)"},
		{"edge in the AS", func(s *site.Site) { s.Yggdrasil.Edges[1].Network = " as64500" }, "edge-2 is in the control server's network (AS64500)"},
		{"one edge", func(s *site.Site) { s.Yggdrasil.Edges = s.Yggdrasil.Edges[:1] }, "edges in 1 networks"},
		{"two edges in one AS", func(s *site.Site) { s.Yggdrasil.Edges[1].Network = "AS64501" }, "edges in 1 networks"},
		{"two edges in one /24", func(s *site.Site) {
			s.Yggdrasil.Edges[1].Address = netip.MustParseAddrPort("46.4.1.9:443")
		}, "edges in 1 networks"},
		{"private edge", func(s *site.Site) {
			s.Yggdrasil.Edges[1].Address = netip.MustParseAddrPort("10.88.3.20:443")
		}, "nobody outside reaches 10.88.3.20"},
		{"documentation", func(s *site.Site) { s.Control.Addresses[0] = netip.MustParseAddr("192.0.2.1") }, "nobody outside reaches 192.0.2.1"},
		{"no address of control", func(s *site.Site) { s.Control.Addresses = nil }, "control server hs.example.org has no address"},
		{"no address of an edge", func(s *site.Site) { s.Yggdrasil.Edges[0].Address = netip.AddrPort{} }, "edge-1 has no address"},
		{"no network", func(s *site.Site) { s.Yggdrasil.Edges[0].Network = "" }, "its network is not named"},
		{"no network of control", func(s *site.Site) { s.Control.Network = "" }, "control server's network is not named"},
		{"host without key", func(s *site.Site) { s.Hosts[0].Yggdrasil = "" }, "one layer cannot reach it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := town()
			c.do(s)
			for _, err := range Check(directoryOf(t, s)) {
				if strings.Contains(err.Error(), c.want) {
					return
				}
			}
			t.Errorf("got %v, want …%s…", Check(directoryOf(t, s)), c.want)
		})
	}
	lab := town()
	lab.Control.URL = "https://hs.lab.test"
	lab.Yggdrasil.Edges[1].Address = netip.MustParseAddrPort("10.88.3.20:443")
	if errs := Check(directoryOf(t, lab)); len(errs) > 0 {
		t.Errorf("a lab may have private addresses: %v", errs)
	}
}

func TestRenumbered(t *testing.T) {
	old, d := town(), town()
	d.Services[0].Loopback, d.Services[1].Loopback = netip.MustParseAddr("127.83.0.9"), netip.MustParseAddr("127.83.0.2")
	d.Services = append(d.Services, site.Service{Name: "new.veilor", Host: "nullstone", Ports: []uint16{443}, Loopback: netip.MustParseAddr("127.83.0.1")})
	errs := Renumbered(directoryOf(t, old), directoryOf(t, d))
	if len(errs) != 2 || !strings.Contains(errs[0].Error(), "x.veilor had the loopback number 1") || !strings.Contains(errs[1].Error(), "which was x.veilor's") {
		t.Errorf("got %v", errs)
	}
	if errs := Renumbered(directoryOf(t, old), directoryOf(t, old)); errs != nil {
		t.Errorf("nothing changed: %v", errs)
	}
}

func TestFreshness(t *testing.T) {
	d := Directory{Origin: Signed, Made: start, Expires: start.Add(timestampLife)}
	for now, want := range map[time.Time]Freshness{
		start:                        Fresh,
		start.Add(-time.Hour):        Fresh,
		start.AddDate(-1, 0, 0):      FromTheFuture,
		start.AddDate(1, 0, 0):       Expired,
		start.Add(timestampLife):     Fresh,
		start.Add(timestampLife + 1): Expired,
	} {
		if got := d.Freshness(now); got != want {
			t.Errorf("at %v: %v, want %v", now, got, want)
		}
	}
	if got := (Directory{Origin: Image}).Freshness(start.AddDate(9, 0, 0)); got != Fresh {
		t.Errorf("an unsigned one has no end: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	d := directoryOf(f, town())
	for _, e := range []func() ([]byte, error){d.Names.Encode, d.Addresses.Encode} {
		data, err := e()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ParseNames(data); err == nil {
			again, err := n.Encode()
			if err != nil || string(again) != string(data) {
				t.Fatalf("%v\n%s\n%s", err, data, again)
			}
			seen := map[netip.Addr]bool{}
			for _, s := range n.Services {
				if seen[s.Loopback()] || !site.Loopback.Contains(s.Loopback()) {
					t.Fatalf("address %v", s.Loopback())
				}
				seen[s.Loopback()] = true
			}
			if d, err := Merge(n, Addresses{}); err == nil {
				Check(d)
			}
		}
		if a, err := ParseAddresses(data); err == nil {
			if again, err := a.Encode(); err != nil || string(again) != string(data) {
				t.Fatalf("%v\n%s\n%s", err, data, again)
			}
		}
	})
}
