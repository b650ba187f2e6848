package acl

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

func town(t testing.TB, change func(*site.Site), more ...tier.Machine) *tier.Fleet {
	t.Helper()
	s := &site.Site{
		Zone: "veilor",
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
			{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
			{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}},
		},
		Hosts: []site.Host{
			{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1")},
			{Name: "failsafe", Tier: "admin"},
		},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	}
	if change != nil {
		change(s)
	}
	p, err := tier.New(s)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Fleet(more...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var both = tier.Machine{Name: "nullstone", Tier: "infra", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")}}

func compile(t testing.TB, f *tier.Fleet) *Document {
	t.Helper()
	d, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var update = flag.Bool("update", false, "write the golden files anew")

func TestGolden(t *testing.T) {
	if *update {
		if err := os.WriteFile("testdata/policy.hujson", compile(t, town(t, nil, both)).Text(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/policy.hujson")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(compile(t, town(t, nil, both)).Text())); diff != "" {
		t.Error(diff)
	}
}

// What is written is read back as the same policy.
func TestReadBack(t *testing.T) {
	d := compile(t, town(t, nil, both))
	for _, want := range []*Document{d, d.Bare()} {
		have, others, err := Parse(want.Text())
		if err != nil {
			t.Fatal(err)
		}
		if ds := Diff(have, others, want); ds != nil {
			t.Errorf("%v", ds)
		}
	}
}

func TestBareHasTheSameRules(t *testing.T) {
	d := compile(t, town(t, nil))
	ds := Diff(d.Bare(), nil, d)
	for _, x := range ds {
		if x.Part != "tests" || x.Server {
			t.Errorf("%s", x)
		}
	}
	if len(ds) != len(d.Tests) || len(ds) == 0 {
		t.Errorf("%d differences, want the %d tests", len(ds), len(d.Tests))
	}
}

func TestTestedBy(t *testing.T) {
	d := compile(t, town(t, nil))
	some, missing := d.TestedBy([]string{"tag:guest", "tag:infra"})
	if diff := cmp.Diff([]string{"tag:admin"}, missing); diff != "" {
		t.Error(diff)
	}
	if len(some.Tests) != 2 || strings.Contains(line(some.Tests), "tag:admin") {
		t.Errorf("tests of a tag that no node has: %s", line(some.Tests))
	}
	if none, _ := d.TestedBy(nil); none.Tests != nil {
		t.Error("tests of no node at all")
	}
	if all, missing := d.TestedBy([]string{"tag:guest", "tag:infra", "tag:admin"}); missing != nil || len(all.Tests) != len(d.Tests) {
		t.Error("some tests were left out of a tailnet that can run all")
	}
}

func TestCompileMistakes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*site.Site)
		more   []tier.Machine
		want   string
	}{
		{"no address", func(s *site.Site) { s.Hosts[0].Tailnet = netip.Addr{} }, nil, "guest -> x.veilor:443 needs the tailnet address of nullstone; join the host and write hosts[nullstone].tailnet"},
		{"over the limit", func(s *site.Site) {
			// Every tier has a test of every other.
			for i := range 300 {
				name := fmt.Sprintf("t%d", i)
				s.Tiers = append(s.Tiers, site.Tier{Name: name, Tag: "tag:" + name})
			}
		}, nil, "at most 1048576 can be loaded and read back"},
		{"three addresses", nil, []tier.Machine{{Name: "nullstone", Tier: "infra", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.5")}}}, "would stand for two addresses"},
	} {
		if _, err := Compile(town(t, c.change, c.more...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want …%s…", c.name, err, c.want)
		}
	}
}

func TestRevokedHostIsClosed(t *testing.T) {
	d := compile(t, town(t, nil, tier.Machine{Name: "nullstone", Tier: "infra", Revoked: true}))
	if text := string(d.Text()); strings.Contains(text, "nullstone") || len(d.ACLs) != 2 {
		t.Errorf("a revoked host is in the policy:\n%s", text)
	}
}

func TestDiff(t *testing.T) {
	want := compile(t, town(t, nil))
	for _, c := range []struct{ name, text, line string }{
		{"another rule", `{"acls": [{"action": "accept", "src": ["tag:guest"], "dst": ["*:*"]}]}`, `+ acls      {"action":"accept","src":["tag:guest"],"dst":["*:*"]}   (opens what the site does not)`},
		{"no rules", `{}`, "+ acls      no such member: everything is open"},
		{"grants", `{"acls": [], "grants": []}`, "+ grants    a member that the site's policy has not   (opens"},
		{"a range that swallows a tier", `{"acls": [], "hosts": {"nullstone": "100.64.0.0/10"}}`, "+ hosts (with ranges)"},
		{"another host", `{"acls": [], "hosts": {"nullstone": "100.64.0.9"}}`, `+ hosts     nullstone: "100.64.0.9"   (opens`},
		{"an owner", `{"acls": [], "tagOwners": {"tag:admin": ["eve@"]}}`, `+ tagOwners tag:admin: ["eve@"]   (opens`},
		{"an attribute", `{"acls": [], "nodeAttrs": [{"target": ["tag:guest"], "attr": ["funnel"]}]}`, `+ nodeAttrs {"target":["tag:guest"],"attr":["funnel"]}   (opens`},
		{"an attribute with more", `{"acls": [], "nodeAttrs": [{"target": ["*"], "ipPool": []}]}`, "+ nodeAttrs (with more)"},
		{"an attribute that lacks", `{"acls": []}`, `- nodeAttrs {"target":["*"],"attr":["disable-captive-portal-detection"]}`},
		{"a rule that lacks", "{\"acls\": [],} // HuJSON\n", `- acls      {"action":"accept","src":["tag:admin"],"dst":["*:*"]}`},
	} {
		have, others, err := Parse([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var all []string
		for _, d := range Diff(have, others, want) {
			all = append(all, d.String())
		}
		if text := strings.Join(all, "\n"); !strings.Contains(text, c.line) {
			t.Errorf("%s: got\n%s\nwant a line %s", c.name, text, c.line)
		}
	}
	for _, text := range []string{"", "[]", "{", `{"acls": {}}`, `{"acls": [{"acton": "accept"}]}`, strings.Repeat(" ", MaxSize+1)} {
		if _, _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%.20q was read", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	d := compile(f, town(f, nil))
	f.Add(d.Text())
	f.Add([]byte(`{"acls": [{"#": 1}], "hosts": {"a": "10.0.0.0/8"},}`))
	// Each differs in one thing, but for the first, which says a rule twice.
	const rule = `{"action":"accept","src":["tag:admin"],"dst":["*:*"]}`
	for old, new := range map[string]string{
		rule:               rule + "," + rule,
		"\"acls\": [":      `"acls": [{"action":"accept","src":["*"],"dst":["*:*"]},`,
		rule + ",":         "",
		`"100.64.0.1"`:     `"100.64.0.2"`,
		`"tag:admin": []`:  `"tag:admin": ["eve@"]`,
		`"disable-captive`: `"funnel", "disable-captive`,
		`"tests": [`:       `"tests": [{"src": "tag:guest", "accept": ["tag:guest:1"]},`,
		`"tagOwners"`:      `"groups": {}, "tagOwners"`,
	} {
		if !strings.Contains(string(d.Text()), old) {
			f.Fatalf("the policy has no %s", old)
		}
		f.Add([]byte(strings.Replace(string(d.Text()), old, new, 1)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		have, others, err := Parse(text)
		if err != nil {
			return
		}
		// A policy with no difference has the very rules.
		if Diff(have, others, d) == nil {
			if diff := cmp.Diff(plain(t, d), plain(t, have)); diff != "" || len(others) > 0 {
				t.Errorf("no difference is seen, with %v and\n%s", others, diff)
			}
		}
		// What is written of it is the same policy, whatever it was read from.
		if have.ACLs == nil || len(others) > 0 || len(have.Text()) > MaxSize {
			return
		}
		again, others, err := Parse(have.Text())
		if err != nil {
			t.Fatal(err)
		}
		if ds := Diff(again, others, have); ds != nil {
			t.Errorf("its text is another policy: %s\n%s", ds[0], have.Text())
		}
	})
}

// plain is a policy without the order of its lists, and with each line once.
func plain(t *testing.T, d *Document) map[string][]string {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for name, member := range members {
		var list []json.RawMessage
		var object map[string]json.RawMessage
		if json.Unmarshal(member, &list) == nil && list != nil {
			out[name] = []string{}
			for _, v := range list {
				out[name] = append(out[name], string(v))
			}
		} else if json.Unmarshal(member, &object) == nil && object != nil {
			for k, v := range object {
				out[name] = append(out[name], k+" = "+string(v))
			}
		} else {
			out[name] = []string{string(member)} // null: a policy without rules opens everything
		}
		slices.Sort(out[name])
		out[name] = slices.Compact(out[name])
	}
	return out
}

// The policy does not grow with the number of laptops.
func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		var ms []tier.Machine
		for i := range n {
			ms = append(ms, tier.Machine{
				Name: fmt.Sprintf("laptop-%d", i), Tier: "guest",
				Tailnet: []netip.Addr{netip.AddrFrom4([4]byte{100, 65 + byte(i>>16), byte(i >> 8), byte(i)})},
			})
		}
		f := town(b, nil, ms...)
		b.Run(fmt.Sprintf("laptops=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.ReportMetric(float64(len(compile(b, f).Text())), "bytes")
			}
		})
	}
}
