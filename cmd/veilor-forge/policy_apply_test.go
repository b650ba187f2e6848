package main

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netns"

	"github.com/veilor/veilor-os/internal/revoke"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// TestPolicyApply puts the table in force in a network of its own: it is what
// render shows, as nft reads that, and applying it again changes nothing.
func TestPolicyApply(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: policy apply; run `sudo go test ./cmd/veilor-forge`")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("NOT TESTED without nft: policy apply; install nftables")
	}
	files, err := txtar.ParseFile(filepath.Join("testdata", "policy.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range files.Files {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	at := []string{"--site", filepath.Join(dir, "site.yaml"), "--machines", filepath.Join(dir, "machines.json"), "--host", "nullstone"}
	forge := func(args ...string) string {
		t.Helper()
		root := newRoot()
		var out, errs bytes.Buffer
		root.SetArgs(append(args, at...))
		root.SetOut(&out)
		root.SetErr(&errs)
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, errs.String())
		}
		return out.String()
	}
	// network is a new one, and what nft says is in it after f.
	network := func(f func()) string {
		t.Helper()
		runtime.LockOSThread() // for good: the thread ends with the test
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		f()
		out, err := exec.Command("nft", "--numeric", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
		return string(out)
	}
	shown := forge("policy", "render", "--as", "packetfilter", "--layer", "tailnet")
	want := network(func() {
		c := exec.Command("nft", "-f", "-")
		c.Stdin = strings.NewReader(shown)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s\n%s", err, out, shown)
		}
	})
	if !strings.Contains(want, "100.64.0.9") {
		t.Fatalf("render shows no guest:\n%s", want)
	}
	apply := func() {
		if said := forge("policy", "apply", "--queue", filepath.Join(dir, "queue")); !strings.Contains(said, "is in force: 3 machines, 1 of them revoked") {
			t.Errorf("it says %q", said)
		}
	}
	for name, f := range map[string]func(){"once": apply, "twice": func() { apply(); apply() }} {
		if diff := cmp.Diff(want, network(f)); diff != "" {
			t.Errorf("%s: -rendered +applied\n%s", name, diff)
		}
	}
}

// Whom an order is pending for is revoked in the packet filter, by whatever the
// order knows of the machine, hosts of the site too.
func TestWithoutPending(t *testing.T) {
	const key, other = site.Key("efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef"), site.Key("cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd")
	a := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	hosts := []site.Host{
		{Name: "nullstone", Tier: "infra", Tailnet: a("100.64.0.1")[0], Yggdrasil: other},
		{Name: "office", Tier: "infra"},
	}
	edge, control := revoke.Place{Kind: revoke.Edge, At: "unix:///run/edge"}, revoke.Place{Kind: revoke.Tailnet, At: "https://hs.example.org"}
	known := tier.Machine{Name: "nullstone", Tier: "infra", Tailnet: a("fd7a:115c:a1e0::1")}
	for name, c := range map[string]struct {
		more      []tier.Machine
		s         revoke.Subject
		confirmed revoke.Place
		want      []string
	}{
		"nobody":                   {s: revoke.Subject{Name: "zoe"}},
		"by name":                  {s: revoke.Subject{Name: "Ann"}, want: []string{"ann"}},
		"by key":                   {s: revoke.Subject{Name: "key-ef", Keys: []site.Key{key}}, want: []string{"ann"}},
		"by address":               {s: revoke.Subject{Name: "node-7", Nodes: []string{"7"}, Addresses: a("100.64.0.9")}, want: []string{"ann"}},
		"by address, edge closed":  {s: revoke.Subject{Name: "node-7", Nodes: []string{"7"}, Addresses: a("100.64.0.9")}, confirmed: edge, want: []string{"ann"}},
		"its address is passed on": {s: revoke.Subject{Name: "old", Nodes: []string{"3"}, Addresses: a("100.64.0.9")}, confirmed: control},
		"a host by name":           {s: revoke.Subject{Name: "office"}, want: []string{"office"}},
		"a host by key":            {s: revoke.Subject{Name: "key-cd", Keys: []site.Key{other}}, want: []string{"nullstone"}},
		"a host by address":        {s: revoke.Subject{Name: "srv-1", Addresses: a("100.64.0.1")}, want: []string{"nullstone"}},
		"a host in the list too":   {more: []tier.Machine{known}, s: revoke.Subject{Name: "srv-1", Addresses: a("100.64.0.1")}, want: []string{"nullstone"}},
	} {
		o := revoke.Order{Subject: c.s, Places: []revoke.Place{edge, control}, Confirmed: map[string]revoke.Confirmation{}}
		if c.confirmed.Kind != "" {
			o.Confirmed[c.confirmed.String()] = revoke.Confirmation{}
		}
		ms := append([]tier.Machine{{Name: "ann", Tier: "guest", Tailnet: a("100.64.0.9"), Yggdrasil: key}, {Name: "ben", Tier: "guest", Tailnet: a("100.64.0.10")}}, c.more...)
		var got []string
		for _, m := range withoutPending(ms, hosts, []revoke.Order{o}) {
			if m.Revoked {
				got = append(got, m.Name)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
