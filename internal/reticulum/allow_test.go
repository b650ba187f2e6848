package reticulum

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

func id(c string) string { return strings.Repeat(c, hashLength) }

func TestCompile(t *testing.T) {
	p, err := tier.New(&site.Site{
		Zone:     "veilor",
		Tiers:    []site.Tier{{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}}, {Name: "infra", Tag: "tag:infra"}, {Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}}},
		Hosts:    []site.Host{{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1")}},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Fleet(
		tier.Machine{Name: "nullstone", Tier: "infra", Reticulum: id("1")},
		tier.Machine{Name: "boss", Tier: "admin", Reticulum: id("a")},
		tier.Machine{Name: "ann", Tier: "guest", Reticulum: id("b")},
		tier.Machine{Name: "lost", Tier: "guest", Reticulum: id("c"), Revoked: true},
		tier.Machine{Name: "nobody", Reticulum: id("d")},
	)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := f.ByName("nullstone")
	var b strings.Builder
	if _, err := Compile(f, self).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	want := "veilor.tcp.* " + id("a") + "\nveilor.tcp.443 " + id("b") + "\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	l, err := Read(strings.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if !l.Allows(id("b"), 443) || l.Allows(id("b"), 22) || !l.Allows(id("a"), 22) || l.Allows(id("c"), 443) {
		t.Errorf("%+v", l)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("veilor.tcp.443 " + id("b") + "\n")
	f.Add("veilor.tcp.* " + id("b") + "\nveilor.tcp.0 x")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Read(strings.NewReader(text))
		if err != nil {
			return
		}
		var b strings.Builder
		l.WriteTo(&b)
		again, err := Read(strings.NewReader(b.String()))
		if err != nil || len(again.Any) != len(l.Any) || len(again.Ports) != len(l.Ports) {
			t.Errorf("%q is read as %+v, written and read again as %+v: %v", text, l, again, err)
		}
	})
}
