package revoke

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// Known is what is known of machines, where. Nothing joins a tailnet node with a
// Yggdrasil key but the name: an edge is told it when it admits the key, and a
// list of machines may hold both.
type Known struct {
	Nodes    []headscale.Node
	Edges    []edge.Node
	Machines []tier.Machine
	// Past are orders that were carried out: who is revoked twice is known by
	// nobody else.
	Past []Order
	// Partly says that some place did not answer, and may know more.
	Partly bool
}

// Wanted is how a person says who is meant: at least one of them.
type Wanted struct {
	Name  string
	Nodes []string
	Keys  []site.Key
	// NoKey and NoNode are as in [Subject].
	NoKey, NoNode bool
}

// ErrUnknown means that nobody knows a machine of that name.
var ErrUnknown = errors.New("no such machine")

// Find collects all that is known of who is meant. The error names the nearest
// names if there is nobody of that name; with more than one there may be
// nodes of different machines, of which one must be named by its id.
func (k Known) Find(w Wanted) (Subject, error) {
	s := Subject{Name: w.Name, Keys: w.Keys, Nodes: w.Nodes, NoKey: w.NoKey, NoNode: w.NoNode}.plain()
	if s.Name == "" {
		s.Name = k.name(s)
	}
	found := len(w.Keys) > 0 || len(w.Nodes) > 0
	for _, m := range k.Machines {
		if InList(s, m) {
			found = true
			// The address of one that is revoked may be another machine's by now.
			if !m.Revoked {
				s.Addresses = append(s.Addresses, m.Tailnet...)
			}
			if m.Yggdrasil != "" {
				s.Keys = append(s.Keys, m.Yggdrasil)
			}
		}
	}
	// A key that was named is who is meant; others of its name may be others.
	if len(w.Keys) == 0 {
		for _, n := range k.Edges {
			if strings.EqualFold(n.Name, s.Name) {
				found = true
				s.Keys = append(s.Keys, n.Key)
			}
		}
	}
	nodes, err := k.nodes(s, len(w.Nodes) > 0)
	if err != nil {
		return Subject{}, err
	}
	for _, n := range nodes {
		found = true
		s.Nodes = append(s.Nodes, n.ID)
		s.Addresses = append(s.Addresses, n.Addresses...)
		if n.MachineKey != "" {
			s.MachineKeys = append(s.MachineKeys, n.MachineKey)
		}
	}
	s = s.plain()
	for _, o := range k.Past {
		if !strings.EqualFold(o.Subject.Name, s.Name) {
			continue
		}
		// Its addresses may be another machine's by now.
		o.Subject.Addresses = nil
		if !found {
			return o.Subject.with(Subject{NoKey: w.NoKey, NoNode: w.NoNode}), nil
		}
		// Headscale knows no more of a node that is gone, and the name alone does
		// not say that it is. Another key is another machine of that name.
		another := slices.ContainsFunc(s.Keys, func(key site.Key) bool { return !slices.Contains(o.Subject.Keys, key) })
		if !w.NoNode && !another {
			s.Nodes = append(s.Nodes, o.Subject.Nodes...)
			s.MachineKeys = append(s.MachineKeys, o.Subject.MachineKeys...)
		}
	}
	s = s.plain()
	if found {
		return s, nil
	}
	if k.Partly {
		return s, nil // it may be known to who does not answer
	}
	return Subject{}, fmt.Errorf("%q: %w%s", w.Name, ErrUnknown, k.near(w.Name))
}

// name is what those who were named by a key or an id are called.
func (k Known) name(s Subject) string {
	for _, n := range k.Nodes {
		if slices.Contains(s.Nodes, n.ID) && n.Name != "" {
			return strings.ToLower(n.Name)
		}
	}
	for _, n := range k.Edges {
		if slices.Contains(s.Keys, n.Key) && n.Name != "" {
			return n.Name
		}
	}
	for _, m := range k.Machines {
		if m.Yggdrasil != "" && slices.Contains(s.Keys, m.Yggdrasil) {
			return m.Name
		}
	}
	if len(s.Nodes) > 0 {
		return "node-" + s.Nodes[0]
	}
	return "key-" + string(s.Keys[0][:min(16, len(s.Keys[0]))])
}

// nodes are Headscale's nodes of the subject: those named, or else those with
// its addresses, or with its name.
func (k Known) nodes(s Subject, named bool) ([]headscale.Node, error) {
	var by [2][]headscale.Node // name, address
	var its []headscale.Node
	for _, n := range k.Nodes {
		if slices.Contains(s.Nodes, n.ID) {
			its = append(its, n)
		}
		if strings.EqualFold(n.Name, s.Name) {
			by[0] = append(by[0], n)
		}
		if slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return slices.Contains(s.Addresses, a) }) {
			by[1] = append(by[1], n)
		}
	}
	switch {
	case named || s.NoNode:
		return its, nil
	case len(by[0]) > 0 && len(by[1]) > 0 && !slices.EqualFunc(by[0], by[1], func(a, b headscale.Node) bool { return a.ID == b.ID }):
		return nil, fmt.Errorf("%s may be node %s by its name or node %s by its address in the list of machines; say which with --node ID", s.Name, by[0][0].ID, by[1][0].ID)
	case len(by[0]) > 1:
		return nil, fmt.Errorf("%s is the name of %d nodes, %s and others; say which with --node ID", s.Name, len(by[0]), by[0][0].ID)
	case len(by[0]) > 0:
		return by[0], nil
	}
	return by[1], nil
}

// near lists the names that are most like one.
func (k Known) near(name string) string {
	const most = 3
	type candidate struct {
		name     string
		distance int
	}
	var cs []candidate
	add := func(n string) {
		d := distance(strings.ToLower(name), strings.ToLower(n))
		if n != "" && d <= max(2, len(name)/3) && !slices.ContainsFunc(cs, func(c candidate) bool { return strings.EqualFold(c.name, n) }) {
			cs = append(cs, candidate{n, d})
		}
	}
	for _, n := range k.Nodes {
		add(n.Name)
	}
	for _, n := range k.Edges {
		add(n.Name)
	}
	for _, m := range k.Machines {
		add(m.Name)
	}
	for _, o := range k.Past {
		add(o.Subject.Name)
	}
	if len(cs) == 0 {
		return fmt.Sprintf("; %d nodes of the tailnet and %d of the edges have other names", len(k.Nodes), len(k.Edges))
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return a.distance - b.distance })
	var names []string
	for _, c := range cs[:min(most, len(cs))] {
		names = append(names, c.name)
	}
	return "; did you mean " + strings.Join(names, " or ") + "?"
}

// distance counts the bytes to insert, delete or replace between two names
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
