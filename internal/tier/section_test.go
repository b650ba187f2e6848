package tier

import (
	"os"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/site"
)

// sectionLimit bounds what the fuzzer writes into the file: the library that
// reads YAML is slow, and a longer section says nothing that a shorter one does
// not.
const sectionLimit = 512

// The rest of the fuzzer's file is as short as it can be, for the same reason.
const (
	shortBefore = "zone: v\nos: {name: o, release: 1, home: https://h.example/}\n" +
		"image: {ref: g.example/o, base: g.example/b, signatures: [{name: ci, keys: [k]}]}\n" +
		"control: {url: https://h.example}\nauthority: a\ntiers:\n"
	shortTiers = "- {name: admin, tag: tag:admin, reach: [\"*:*\"]}\n" +
		"- {name: infra, tag: tag:infra, reach: [\"infra:*\"]}\n" +
		"- {name: guest, tag: tag:guest, reach: [\"x.v:443\"]}\n"
	shortAfter = "hosts: [{name: n, tier: infra}, {name: f, tier: admin}]\n" +
		"services: [{name: x.v, host: n, ports: [443], loopback: 127.83.0.1}]\n" +
		"yggdrasil: {edges: [], public: []}\n"
)

// sections splits the project's own site file around its tiers, so that what is
// read here is what a person edits.
func sections(t *testing.T) (before, tiers, after string) {
	t.Helper()
	text, err := os.ReadFile("../../site/veilor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "\ntiers:\n")
	tiers, after, ok2 := strings.Cut(rest, "\nhosts:\n")
	if !ok || !ok2 {
		t.Fatal("site/veilor.yaml has no tiers followed by hosts")
	}
	return before + "\ntiers:\n", tiers, "\nhosts:\n" + after
}

// A mistake in the file is refused by whoever reads it first.
func TestSectionMistakes(t *testing.T) {
	before, tiers, after := sections(t)
	read := func(tiers string) error {
		s, err := site.Parse("site.yaml", []byte(before+tiers+after))
		if err != nil {
			return err
		}
		_, err = New(s)
		return err
	}
	if err := read(tiers); err != nil {
		t.Fatalf("without a mistake: %v", err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"a tier twice", "name: infra", "name: admin", "twice"},
		{"a tag twice", "tag: tag:infra", "tag: tag:admin", "tag:admin"},
		{"no tag", "    tag: tag:guest\n", "", "tiers[2].tag"},
		{"a tag without its prefix", "tag: tag:guest", "tag: guest", "tiers[2].tag"},
		{"an unknown tier", `"infra:*"`, `"servers:*"`, `"servers" is neither`},
		{"an unknown service", `"x.veilor:443"`, `"y.veilor:443"`, `"y.veilor" is neither`},
		{"a range that swallows a tier", `"x.veilor:443"`, `"100.64.0.0/10:443"`, "neither a tier nor a service"},
		{"a range of IPv6", `"x.veilor:443"`, `"fd7a:115c:a1e0::/48:443"`, "tiers[2].reach[0]"},
		{"a port too far", `"x.veilor:443"`, `"x.veilor:65536"`, "tiers[2].reach[0]"},
		{"a range of ports", `"x.veilor:443"`, `"x.veilor:1-65535"`, "tiers[2].reach[0]"},
		{"everything", `"x.veilor:443"`, `"*:*"`, "wider than tier guest may have"},
		{"an unknown key", "name: guest", "name: guest\n    allow: all", `unknown field "allow"`},
		{"reach is a text", `reach: ["x.veilor:443"]`, `reach: "x.veilor:443"`, "site.yaml:"},
		{"an anchor", `reach: ["*:*"]`, `reach: &all ["*:*"]`, "site.yaml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(tiers, c.old, c.new, 1)
			if text == tiers {
				t.Fatal("the mistake was not made")
			}
			if err := read(text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
}

// FuzzSection writes anything under tiers. Whatever is accepted, nobody but an
// admin opens an admin's machine, a guest opens nothing but ports of services,
// and strangers and the revoked open nothing.
func FuzzSection(f *testing.F) {
	if _, err := site.Parse("site.yaml", []byte(shortBefore+shortTiers+shortAfter)); err != nil {
		f.Fatal(err)
	}
	f.Add(shortTiers)
	f.Add(strings.Replace(shortTiers, "x.v:443", "*:*", 1))
	f.Add(strings.Replace(shortTiers, "infra:*", "guest:*", 1))
	f.Add(shortTiers + "- {name: family, tag: tag:family, reach: [\"x.v:443\"]}\n")
	f.Fuzz(func(t *testing.T, section string) {
		if len(section) > sectionLimit {
			return
		}
		s, err := site.Parse("site.yaml", []byte(shortBefore+section+shortAfter))
		if err != nil {
			return
		}
		p, err := New(s)
		if err != nil {
			return
		}
		named := map[string]map[uint16]bool{}
		for _, v := range s.Services {
			named[v.Host] = map[uint16]bool{}
			for _, port := range v.Ports {
				named[v.Host][port] = true
			}
		}
		targets := []Machine{{}, {Name: "somebody", Tier: Guest}}
		for _, h := range s.Hosts {
			targets = append(targets, Machine{Name: h.Name, Tier: h.Tier})
		}
		for _, from := range append(p.Tiers(), "", "no such tier") {
			for _, to := range targets {
				for _, port := range []uint16{1, 22, 80, 443, 444, 65535} {
					for _, proto := range []Protocol{TCP, UDP, ICMP} {
						v := p.Decide(Machine{Name: "source", Tier: from}, to, proto, port)
						switch {
						case !v.Allow || from == Admin:
							continue
						case !p.hasTier(from):
							t.Fatalf("%q, no tier, opens %s %d of %+v", from, proto, port, to)
						case to.Tier == Admin && from != Admin:
							t.Fatalf("%s opens %s %d of the admin's %s by %s", from, proto, port, to.Name, v.Rule)
						case from == Infra && to.Tier == Infra:
							continue
						case proto == UDP, proto == TCP && !named[to.Name][port], proto == ICMP && len(named[to.Name]) == 0:
							t.Fatalf("%s opens %s %d of %s by %s", from, proto, port, to.Name, v.Rule)
						}
						if p.Decide(Machine{Name: "source", Tier: from, Revoked: true}, to, proto, port).Allow {
							t.Fatalf("revoked %s opens %s %d of %s", from, proto, port, to.Name)
						}
					}
				}
			}
		}
	})
}
