package acl

import (
	"fmt"
	"maps"
	"slices"
)

// Difference is one thing that a server's policy has and the site's has not, or
// the other way round.
type Difference struct {
	// Server is true if the server has it, false if it lacks it.
	Server bool `json:"server"`
	// Part is "acls", "hosts", "tagOwners", "tests" or another member's name.
	Part string `json:"part"`
	Text string `json:"text"`
	// Opens says whether it can let somebody in whom the site does not.
	Opens bool `json:"opens"`
}

func (d Difference) String() string {
	sign := "-"
	if d.Server {
		sign = "+"
	}
	s := fmt.Sprintf("%s %-9s %s", sign, d.Part, d.Text)
	if d.Opens {
		s += "   (opens what the site does not)"
	}
	return s
}

// Diff compares the policy of a server, with the names of its other members,
// to the one that the site wants. The order of rules does not matter: Headscale
// only ever adds them up.
func Diff(have *Document, others []string, want *Document) []Difference {
	var ds []Difference
	lists := func(part string, have, want []string, opens bool) {
		for _, s := range have {
			if !slices.Contains(want, s) {
				ds = append(ds, Difference{Server: true, Part: part, Text: s, Opens: opens})
			}
		}
		for _, s := range want {
			if !slices.Contains(have, s) {
				ds = append(ds, Difference{Part: part, Text: s})
			}
		}
	}
	if have.ACLs == nil {
		ds = append(ds, Difference{Server: true, Part: "acls", Text: "no such member: everything is open", Opens: true})
	}
	lists("acls", lines(have.ACLs), lines(want.ACLs), true)
	lists("hosts", pairs(have.Hosts), pairs(want.Hosts), true)
	lists("tagOwners", pairs(have.TagOwners), pairs(want.TagOwners), true)
	// Some attributes open a machine to others: funnel, drive:share.
	lists("nodeAttrs", lines(have.NodeAttrs), lines(want.NodeAttrs), true)
	lists("tests", lines(have.Tests), lines(want.Tests), false)
	for _, name := range others {
		ds = append(ds, Difference{Server: true, Part: name, Text: "a member that the site's policy has not", Opens: true})
	}
	return ds
}

func lines[T any](vs []T) []string {
	var out []string
	for _, v := range vs {
		out = append(out, line(v))
	}
	return out
}

func pairs[V any](m map[string]V) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+": "+line(m[k]))
	}
	return out
}
