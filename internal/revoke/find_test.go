package revoke

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

func TestFind(t *testing.T) {
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	const (
		bobKey = site.Key("bb00000000000000000000000000000000000000000000000000000000000002")
		gusKey = site.Key("dd00000000000000000000000000000000000000000000000000000000000004")
		newKey = site.Key("ee00000000000000000000000000000000000000000000000000000000000005")
	)
	known := Known{
		Nodes: []headscale.Node{
			{ID: "7", Name: "ann", MachineKey: "mkey:07", Addresses: addr("100.64.0.7")},
			{ID: "8", Name: "bobs-laptop", MachineKey: "mkey:08", Addresses: addr("100.64.0.8")},
			{ID: "9", Name: "eve", MachineKey: "mkey:09", Addresses: addr("100.64.0.9")},
		},
		Edges: []edge.Node{{Key: annKey, Name: "ann"}, {Key: newKey, Name: "fay"}},
		Machines: []tier.Machine{
			{Name: "bob", Tailnet: addr("100.64.0.8"), Yggdrasil: bobKey}, {Name: "eve", Tailnet: addr("100.64.0.7")},
			{Name: "gus", Revoked: true, Tailnet: addr("100.64.0.7"), Yggdrasil: gusKey}, {Name: "hal", Revoked: true, Tailnet: addr("100.64.0.9")},
		},
		Past: []Order{
			{Subject: Subject{Name: "old", Keys: []site.Key{annKey}, Nodes: []string{"3"}, Addresses: addr("100.64.0.7")}},
			{Subject: Subject{Name: "hal", NoKey: true, Nodes: []string{"4"}, MachineKeys: []string{"mkey:04"}, Addresses: addr("100.64.0.9")}},
			{Subject: Subject{Name: "fay", Keys: []site.Key{annKey}, Nodes: []string{"5"}}},
			{Subject: Subject{Name: "ivy"}},
		},
	}
	whole := Subject{Name: "ann", Keys: []site.Key{annKey}, Nodes: []string{"7"}, MachineKeys: []string{"mkey:07"}, Addresses: addr("100.64.0.7")}
	for name, c := range map[string]struct {
		wanted Wanted
		partly bool
		want   Subject
		err    string
	}{
		"by name":                    {wanted: Wanted{Name: "ann"}, want: whole},
		"by key, name from edge":     {wanted: Wanted{Keys: []site.Key{annKey}}, want: whole},
		"by id, name from node":      {wanted: Wanted{Nodes: []string{"7"}}, want: whole},
		"by the list's address":      {wanted: Wanted{Name: "bob"}, want: Subject{Name: "bob", Keys: []site.Key{bobKey}, Nodes: []string{"8"}, MachineKeys: []string{"mkey:08"}, Addresses: addr("100.64.0.8")}},
		"no node":                    {wanted: Wanted{Name: "ann", NoNode: true}, want: Subject{Name: "ann", NoNode: true, Keys: []site.Key{annKey}}},
		"a key that nobody knows":    {wanted: Wanted{Keys: []site.Key{"cc00000000000000000000000000000000000000000000000000000000000003"}}, want: Subject{Name: "key-cc00000000000000", Keys: []site.Key{"cc00000000000000000000000000000000000000000000000000000000000003"}}},
		"revoked before":             {wanted: Wanted{Name: "Old"}, want: Subject{Name: "old", Keys: []site.Key{annKey}, Nodes: []string{"3"}}},
		"revoked in the list":        {wanted: Wanted{Name: "gus"}, want: Subject{Name: "gus", Keys: []site.Key{gusKey}}},
		"both":                       {wanted: Wanted{Name: "hal"}, want: Subject{Name: "hal", Nodes: []string{"4"}, MachineKeys: []string{"mkey:04"}}},
		"both, no node":              {wanted: Wanted{Name: "hal", NoNode: true}, want: Subject{Name: "hal", NoNode: true}},
		"another of the name":        {wanted: Wanted{Name: "fay"}, want: Subject{Name: "fay", Keys: []site.Key{newKey}}},
		"pending, no node after all": {wanted: Wanted{Name: "ivy", NoNode: true}, want: Subject{Name: "ivy", NoNode: true}},
		"unknown":                    {wanted: Wanted{Name: "anm"}, err: `"anm": no such machine; did you mean ann`},
		"unknown to those who talk":  {wanted: Wanted{Name: "zoe"}, partly: true, want: Subject{Name: "zoe"}},
		"two may be meant":           {wanted: Wanted{Name: "eve"}, err: "eve may be node 9 by its name or node 7 by its address in the list of machines; say which with --node ID"},
	} {
		t.Run(name, func(t *testing.T) {
			known.Partly = c.partly
			got, err := known.Find(c.wanted)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want …%s…", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := (Known{}).Find(Wanted{Name: "ann"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v is no ErrUnknown", err)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"ann", "ann", 0}, {"ann", "anm", 1}, {"ann", "", 3}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
