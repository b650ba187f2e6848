package main

import (
	"slices"
	"testing"

	"github.com/veilor/veilor-os/internal/site"
)

// A node with two tags has the sum of what both open, which is no tier.
func TestTierOf(t *testing.T) {
	s := &site.Site{
		Zone: "veilor",
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}}, {Name: "infra", Tag: "tag:infra"},
			{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}},
		},
		Hosts:    []site.Host{{Name: "nullstone", Tier: "infra"}},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	}
	wide := *s
	wide.Tiers = slices.Clone(s.Tiers)
	wide.Tiers[2].Reach = []string{"infra:*"}
	for name, c := range map[string]struct {
		site  *site.Site
		tags  []string
		tier  string
		opens []string
	}{
		"one tag":      {s, []string{"tag:guest"}, "guest", []string{"x.veilor:443"}},
		"an admin's":   {s, []string{"tag:admin"}, "admin", []string{"*:*"}},
		"opens none":   {s, []string{"tag:infra"}, "infra", nil},
		"two tags":     {s, []string{"tag:guest", "tag:admin"}, "", nil},
		"unknown":      {s, []string{"tag:ghost"}, "", nil},
		"none":         {s, nil, "", nil},
		"no such site": {&wide, []string{"tag:guest"}, "", nil},
	} {
		tier, opens := tierOf(c.site, c.tags)
		if tier != c.tier || !slices.Equal(opens, c.opens) {
			t.Errorf("%s: got %q, %q, want %q, %q", name, tier, opens, c.tier, c.opens)
		}
	}
}
