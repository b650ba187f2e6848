package tier

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
)

// key makes the n-th key. It is a hash, as a key looks: keys that begin with
// many zeros share an address.
func key(n int) site.Key {
	return site.Key(fmt.Sprintf("%x", sha256.Sum256([]byte{byte(n)})))
}

// town is the site of the strategy, with a second service.
func town() *site.Site {
	return &site.Site{
		Zone: "veilor",
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
			{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
			{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443", "files.veilor:8443"}},
		},
		Hosts: []site.Host{
			{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1"), Yggdrasil: key(1)},
			{Name: "office", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.2"), Yggdrasil: key(2)},
			{Name: "failsafe", Tier: "admin", Tailnet: netip.MustParseAddr("100.64.0.3"), Yggdrasil: key(3)},
		},
		Services: []site.Service{
			{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}},
			{Name: "files.veilor", Host: "office", Ports: []uint16{8443, 8444}},
		},
	}
}

func policy(t *testing.T, s *site.Site) *Policy {
	t.Helper()
	p, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func fleet(t *testing.T) *Fleet {
	t.Helper()
	laptop := func(name, of string, n int) Machine {
		return Machine{
			Name: name, Tier: of, Yggdrasil: key(100 + n),
			Tailnet: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 1, byte(n)})},
		}
	}
	lost := laptop("lost", "guest", 9)
	lost.Revoked = true
	f, err := policy(t, town()).Fleet(laptop("ann", "guest", 1), laptop("bob", "guest", 2), laptop("nobody", "", 3), lost)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDecide(t *testing.T) {
	f := fleet(t)
	for _, c := range []struct{ src, dst, port, want string }{
		{"ann", "x.veilor", "443", "guest[0]"},
		{"ann", "nullstone", "443", "guest[0]"},
		{"ann", "nullstone", "icmp", "guest[0]"},
		{"ann", "office", "icmp", "guest[1]"},
		{"ann", "files.veilor", "8443", "guest[1]"},
		{"ann", "files.veilor", "8444", "default"},
		{"ann", "nullstone", "443/udp", "default"},
		{"ann", "nullstone", "22", "default"},
		{"ann", "nullstone", "8443", "default"},
		{"ann", "office", "443", "default"},
		{"ann", "bob", "443", "default"},
		{"ann", "bob", "icmp", "default"},
		{"guest", "guest", "443", "default"},
		{"ann", "failsafe", "443", "default"},
		{"ann", "failsafe", "icmp", "default"},
		{"ann", "stranger", "443", "default"},
		{"nullstone", "office", "22", "infra[0]"},
		{"nullstone", "office", "53/udp", "infra[0]"},
		{"nullstone", "failsafe", "22", "default"},
		{"nullstone", "ann", "443", "default"},
		{"failsafe", "ann", "22", "admin[0]"},
		{"failsafe", "nullstone", "53/udp", "admin[0]"},
		{"failsafe", "nobody", "icmp", "admin[0]"},
		{"nobody", "nullstone", "443", "stranger"},
		{"stranger", "nullstone", "icmp", "stranger"},
		{"lost", "nullstone", "443", "revoked"},
		{"failsafe", "lost", "22", "revoked"},
		{"revoked", "nullstone", "443", "revoked"},
		{"100.64.1.1", "100.64.0.1", "443", "guest[0]"},
		{"100.64.9.9", "100.64.0.1", "443", "stranger"},
		{"tag:guest", "x.veilor", "443", "guest[0]"},
	} {
		e, err := f.Explain(c.src, c.dst, c.port)
		if err != nil {
			t.Errorf("%s %s %s: %v", c.src, c.dst, c.port, err)
			continue
		}
		if e.Rule != c.want || e.Allow != strings.Contains(c.want, "[") {
			t.Errorf("%s -> %s %s: got %+v, want %s", c.src, c.dst, c.port, e.Verdict, c.want)
		}
	}
}

func TestDecidePacket(t *testing.T) {
	f := fleet(t)
	ygg := func(name string) netip.Addr {
		m, _ := f.ByName(name)
		return m.YggdrasilAddress()
	}
	a := netip.MustParseAddr
	for _, c := range []struct {
		name string
		k    Packet
		want string
	}{
		{"over the tailnet", Packet{a("100.64.1.1"), a("100.64.0.1"), TCP, 443}, "guest[0]"},
		{"over Yggdrasil", Packet{ygg("ann"), ygg("nullstone"), TCP, 443}, "guest[0]"},
		{"ping over Yggdrasil", Packet{ygg("ann"), ygg("nullstone"), icmp6, 0}, "guest[0]"},
		{"IPv4's ping in IPv6", Packet{ygg("ann"), ygg("nullstone"), ICMP, 0}, "default"},
		{"SCTP", Packet{ygg("failsafe"), ygg("nullstone"), 132, 443}, "default"},
		{"revoked", Packet{ygg("lost"), ygg("nullstone"), TCP, 443}, "revoked"},
		{"across layers", Packet{ygg("ann"), a("fd7a:115c:a1e0::1"), TCP, 443}, "address"},
		{"across families", Packet{a("100.64.1.1"), a("fd7a:115c:a1e0::1"), TCP, 443}, "address"},
		{"IPv4-mapped", Packet{a("::ffff:100.64.0.3"), a("100.64.0.1"), TCP, 443}, "address"},
		{"link-local", Packet{a("fe80::1"), ygg("nullstone"), TCP, 443}, "address"},
		{"a subnet behind a node", Packet{a("300::1"), ygg("nullstone"), TCP, 443}, "address"},
		{"another network", Packet{ygg("failsafe"), a("fd00::1"), TCP, 443}, "address"},
		{"a zone", Packet{ygg("failsafe").WithZone("eth0"), ygg("nullstone"), TCP, 443}, "address"},
		{"unknown key", Packet{a("200::77"), ygg("nullstone"), TCP, 443}, "stranger"},
		{"no address", Packet{}, "address"},
	} {
		if v := f.Decide(c.k); v.Rule != c.want {
			t.Errorf("%s: got %+v, want %s", c.name, v, c.want)
		}
	}
}

// A site that opens more than the strategy allows is refused, with the place
// and what to write.
func TestWide(t *testing.T) {
	guest := func(reach ...string) func(*site.Site) { return func(s *site.Site) { s.Tiers[2].Reach = reach } }
	for _, c := range []struct {
		name   string
		change func(*site.Site)
		want   string // "" is fine
	}{
		{"the strategy's", guest("x.veilor:443"), ""},
		{"a named service", guest("x.veilor:443", "files.veilor:8444"), ""},
		{"nothing", guest(), ""},
		{"everything", guest("*:*"), `tiers[2].reach[0]: "*" is wider than tier guest may have: it must name each service that it opens; write for example x.veilor:443`},
		{"a tier", guest("x.veilor:443", "infra:443"), `tiers[2].reach[1]: "infra" is wider`},
		{"each other", guest("guest:443"), "must name each service"},
		{"every port", guest("x.veilor:*"), "every port of x.veilor is every port of its host nullstone"},
		{"another port", guest("x.veilor:22"), "x.veilor has no port 22, so this opens something else on nullstone; write x.veilor:443"},
		{"a range that swallows a tier", guest("100.64.0.0/10:443"), `"100.64.0.0/10" is neither a tier nor a service`},
		{"an address", guest("100.64.0.1:443"), `"100.64.0.1" is neither`},
		{"a tag", guest("tag:infra:443"), "is not TARGET:PORT"},
		{"unnamed target", guest("y.veilor:443"), `"y.veilor" is neither a tier nor a service`},
		{"no port", guest("x.veilor"), "is not TARGET:PORT"},
		{"a shared port", func(s *site.Site) {
			s.Services = append(s.Services, site.Service{Name: "secret.veilor", Host: "nullstone", Ports: []uint16{443}})
		}, "tiers[2].reach: x.veilor:443 also opens secret.veilor, which shares the port on nullstone; name secret.veilor:443 too"},
		{"both of a shared port", func(s *site.Site) {
			s.Services = append(s.Services, site.Service{Name: "y.veilor", Host: "nullstone", Ports: []uint16{443}})
			s.Tiers[2].Reach = []string{"x.veilor:443", "y.veilor:443"}
		}, ""},
		{"an admin's machine", func(s *site.Site) {
			s.Services[0].Host = "failsafe"
		}, "x.veilor is on failsafe, a machine of tier admin, which only admins may open"},
		{"a guest's machine", func(s *site.Site) {
			s.Hosts[1].Tier = "guest"
		}, "files.veilor is on office, a machine of its own tier guest"},
		{"infra to guests", func(s *site.Site) { s.Tiers[1].Reach = []string{"guest:*"} }, `"guest" is wider than infra may have`},
		{"infra to admins", func(s *site.Site) { s.Tiers[1].Reach = []string{"admin:22"} }, `"admin" is wider than infra may have`},
		{"infra to all", func(s *site.Site) { s.Tiers[1].Reach = []string{"*:443"} }, "wider than infra"},
		{"a loop of tiers", func(s *site.Site) {
			s.Tiers = append(s.Tiers, site.Tier{Name: "a", Tag: "tag:a", Reach: []string{"b:1"}}, site.Tier{Name: "b", Tag: "tag:b", Reach: []string{"a:1"}})
		}, `tiers[3].reach[0]: "b" is wider than tier a may have`},
		{"one tag for two", func(s *site.Site) { s.Tiers[2].Tag = "tag:admin" }, "tiers[2].tag: tag:admin is the tag of tier admin already"},
		{"a tier called stranger", func(s *site.Site) { s.Tiers[2].Name = "stranger" }, "is whoever is in no tier"},
		{"a host called as a tier", func(s *site.Site) { s.Hosts[0].Name = "guest" }, "hosts[0].name:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := town()
			c.change(s)
			_, err := New(s)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
}

// The project's own site must be within its own limits.
func TestProjectSite(t *testing.T) {
	s, err := site.Load("../../site/veilor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	policy(t, s)
}

func TestFleetMistakes(t *testing.T) {
	p := policy(t, town())
	a := netip.MustParseAddr
	for _, c := range []struct {
		name string
		ms   []Machine
		want string
	}{
		{"unknown tier", []Machine{{Name: "ann", Tier: "gast"}}, `machine ann: tier "gast" is not in the site; write one of admin, infra, guest`},
		{"twice", []Machine{{Name: "ann"}, {Name: "ann"}}, "machine ann: it is there twice"},
		{"address of a host", []Machine{{Name: "ann", Tier: "guest", Tailnet: []netip.Addr{a("100.64.0.1")}}}, "its address 100.64.0.1 is also that of nullstone"},
		{"key of a host", []Machine{{Name: "ann", Tier: "guest", Yggdrasil: town().Hosts[2].Yggdrasil}}, "is also that of failsafe"},
		{"address elsewhere", []Machine{{Name: "ann", Tailnet: []netip.Addr{a("192.0.2.1")}}}, "192.0.2.1 is in neither 100.64.0.0/10 nor"},
		{"IPv4-mapped", []Machine{{Name: "ann", Tailnet: []netip.Addr{a("::ffff:100.64.0.9")}}}, "is in neither"},
		{"no name", []Machine{{Tier: "guest"}}, "is no name"},
		{"name of a tier", []Machine{{Name: "admin", Tier: "guest"}}, "the name of a class"},
		{"short key", []Machine{{Name: "ann", Yggdrasil: "01"}}, "is no Yggdrasil key"},
		{"short identity", []Machine{{Name: "ann", Reticulum: "01"}}, "is no Reticulum identity"},
		{"a guest called nullstone", []Machine{{Name: "nullstone", Tier: "guest"}}, `the site has it in tier infra, this list in "guest"`},
		{"nullstone elsewhere", []Machine{{Name: "nullstone", Tier: "infra", Tailnet: []netip.Addr{a("100.64.0.77")}}}, "the site has it at 100.64.0.1"},
		{"key of a revoked machine", []Machine{{Name: "ann", Yggdrasil: key(50), Revoked: true}, {Name: "ben", Yggdrasil: key(50)}}, "is also that of ann"},
		{"two live ones", []Machine{{Name: "ann", Tailnet: []netip.Addr{a("100.64.0.9")}}, {Name: "ben", Tailnet: []netip.Addr{a("100.64.0.9")}}}, "is also that of ann"},
		{"nullstone's IPv6", []Machine{{Name: "nullstone", Tier: "infra", Tailnet: []netip.Addr{a("100.64.0.1"), a("fd7a:115c:a1e0::1")}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.Fleet(c.ms...)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
}

// Headscale gives the address of a deleted node to the next one.
func TestAddressPassesOn(t *testing.T) {
	p := policy(t, town())
	old := Machine{Name: "old", Tier: "guest", Revoked: true, Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.9"), netip.MustParseAddr("fd7a:115c:a1e0::9")}}
	next := Machine{Name: "next", Tier: "guest", Tailnet: old.Tailnet[:1]}
	older := Machine{Name: "older", Tier: "guest", Revoked: true, Tailnet: old.Tailnet[:1]}
	for _, ms := range [][]Machine{{older, old, next}, {next, old, older}, {old, next, older}} {
		f, err := p.Fleet(ms...)
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := f.ByAddress(old.Tailnet[0]); m.Name != "next" {
			t.Errorf("the address is that of %s", m.Name)
		}
		if m, _ := f.ByName("old"); len(m.Tailnet) != 1 || m.Tailnet[0] != old.Tailnet[1] {
			t.Errorf("the revoked one has %v", m.Tailnet)
		}
		if m, _ := f.ByName("older"); len(m.Tailnet) != 0 {
			t.Errorf("the one revoked before has %v", m.Tailnet)
		}
		if len(old.Tailnet) != 2 || old.Tailnet[0] != next.Tailnet[0] {
			t.Errorf("the caller's list was changed: %v", old.Tailnet)
		}
	}
}

func TestOfTags(t *testing.T) {
	p := policy(t, town())
	for _, c := range []struct {
		tags []string
		want string
		bad  bool
	}{
		{nil, "", false},
		{[]string{"tag:guest"}, "guest", false},
		{[]string{"tag:ghost"}, "", true},
		{[]string{"tag:guest", "tag:admin"}, "", true},
	} {
		got, err := p.OfTags(c.tags)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%v: got %q, %v", c.tags, got, err)
		}
	}
}

func TestExplainText(t *testing.T) {
	f := fleet(t)
	for _, c := range []struct{ src, dst, port, want string }{
		{"ann", "x.veilor", "443", "allowed    ann -> nullstone (x.veilor), 443/tcp\n  rule     guest[0]: guest -> x.veilor:443\n  holds on tailnet (100.64.0.1), yggdrasil ("},
		{"guest", "nullstone", "22", "denied     guest -> nullstone, 22/tcp\n  rule     default: tier guest opens x.veilor:443, files.veilor:8443, and nothing else\n"},
		{"guest", "admin", "icmp", "denied     guest -> admin, icmp\n"},
	} {
		e, err := f.Explain(c.src, c.dst, c.port)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.String(); !strings.HasPrefix(got, c.want) {
			t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
		}
	}
	for _, c := range [][3]string{{"an", "nullstone", "443"}, {"ann", "192.0.2.1", "443"}, {"ann", "nullstone", "0"}, {"ann", "nullstone", "443/sctp"}} {
		if _, err := f.Explain(c[0], c[1], c[2]); err == nil {
			t.Errorf("%v: no error", c)
		}
	}
}

// The matrix is another way to ask Decide.
func TestMatrix(t *testing.T) {
	p := policy(t, town())
	var open []string
	for _, c := range p.Matrix() {
		if len(c.Opens) > 0 {
			open = append(open, fmt.Sprintf("%s -> %s: %s", c.Source, c.Destination, strings.Join(c.Opens, " ")))
		}
	}
	want := []string{
		"admin -> nullstone: every port", "admin -> office: every port", "admin -> admin: every port",
		"admin -> infra: every port", "admin -> guest: every port", "admin -> stranger: every port",
		"infra -> nullstone: every port", "infra -> office: every port", "infra -> infra: every port",
		"guest -> nullstone: 443/tcp", "guest -> office: 8443/tcp",
	}
	if diff := cmp.Diff(want, open); diff != "" {
		t.Error(diff)
	}
}

func TestMachinesRoundTrip(t *testing.T) {
	ms := fleet(t).Machines()
	var b bytes.Buffer
	if err := WriteMachines(&b, ms); err != nil {
		t.Fatal(err)
	}
	again, err := ReadMachines(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ms, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestReadMachinesMistakes(t *testing.T) {
	for text, want := range map[string]string{
		``:                                     "EOF",
		`{"machines": [{"nmae": "ann"}]}`:      "unknown field",
		`{"machines": []} {}`:                  "something follows",
		`{"machines": [{"tailnet": ["no"]}]}`:  "reading the machines",
		`{"machines": [{"revoked": "perhaps"}`: "reading the machines",
	} {
		if _, err := ReadMachines(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", text, err, want)
		}
	}
}

func FuzzReadMachines(f *testing.F) {
	f.Add([]byte(`{"machines": [{"name": "ann", "tier": "guest", "tailnet": ["100.64.0.9"], "yggdrasil": "00"}]}`))
	f.Add([]byte(`{"machines": [{"name": "ann", "revoked": true, "reticulum": "00"}]}`))
	p, err := New(town())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ms, err := ReadMachines(bytes.NewReader(data))
		if err != nil {
			return
		}
		fl, err := p.Fleet(ms...)
		if err != nil {
			return
		}
		for _, m := range fl.Machines() {
			for _, l := range []Layer{Tailnet, Yggdrasil} {
				for _, a := range m.Addresses(l) {
					if got, ok := fl.ByAddress(a); !ok || got.Name != m.Name || LayerOf(a) != l {
						t.Fatalf("%s of %s belongs to %s on %s", a, m.Name, got.Name, LayerOf(a))
					}
				}
			}
		}
	})
}

// FuzzNew writes anything into a guest's reach: whatever is accepted, a guest
// opens nothing but ports of services of the zone.
func FuzzNew(f *testing.F) {
	for _, s := range []string{"x.veilor:443", "*:*", "infra:443", "x.veilor:*", "x.veilor:0443", ":", "guest:*", "x.veilor::443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reach string) {
		s := town()
		s.Tiers[2].Reach = []string{reach}
		p, err := New(s)
		if err != nil {
			return
		}
		guest := Machine{Tier: "guest"}
		for port := uint16(1); port != 0; port++ {
			for _, m := range []Machine{{Tier: "guest"}, {Tier: "infra"}, {Tier: "admin"}, {}, {Name: "failsafe", Tier: "admin"}} {
				if v := p.Decide(guest, m, TCP, port); v.Allow {
					t.Fatalf("reach %q opens %d of %+v by %s", reach, port, m, v.Rule)
				}
			}
			allowed := p.Decide(guest, Machine{Name: "nullstone", Tier: "infra"}, TCP, port).Allow
			if allowed && port != 443 {
				t.Fatalf("reach %q opens %d of nullstone", reach, port)
			}
		}
	})
}
