package tiers

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v2 "github.com/juanfont/headscale/hscontrol/policy/v2"
	"github.com/juanfont/headscale/hscontrol/types"
	"go4.org/netipx"
	"gorm.io/gorm"
	"tailscale.com/tailcfg"
	"tailscale.com/types/ipproto"
	"tailscale.com/types/logger"
	"tailscale.com/wgengine/filter"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// towns and tuplesEach: together the 10^5 questions that the issue wants,
	// each asked over IPv4 and over IPv6.
	towns      = 20
	tuplesEach = 5000
	// mutantTuples find a broken rule. The rarest, a service of one of the two
	// machines of the further tier, is asked about by one question in a thousand;
	// the first that shows it ends the search.
	mutantTuples = 50_000
)

// tailnet is a policy in Headscale's own library, with tailscaled's own filter
// for each machine.
type tailnet struct {
	manager *v2.PolicyManager
	filters map[string]*filter.Filter
}

// newTailnet gives policy to Headscale's library with nodes for the machines
// that are not revoked: a revoked one is deleted.
func newTailnet(policy []byte, machines []tier.Machine, p *tier.Policy) (*tailnet, error) {
	user := types.User{Model: gorm.Model{ID: 1}, Name: "someone"}
	var nodes types.Nodes
	for i, m := range machines {
		if m.Revoked {
			continue
		}
		n := &types.Node{ID: types.NodeID(i + 1), Hostname: m.Name, GivenName: m.Name, IPv4: &m.Tailnet[0], IPv6: &m.Tailnet[1]}
		if m.Tier == "" {
			n.UserID, n.User = &user.ID, &user
		} else {
			n.Tags = []string{p.Tag(m.Tier)}
		}
		nodes = append(nodes, n)
	}
	manager, err := v2.NewPolicyManager(policy, []types.User{user}, nodes.ViewSlice())
	if err != nil {
		return nil, err
	}
	t := &tailnet{manager: manager, filters: map[string]*filter.Filter{}}
	for _, n := range nodes {
		rules, err := manager.FilterForNode(n.View())
		if err != nil {
			return nil, err
		}
		matches, err := filter.MatchesFromFilterRules(rules)
		if err != nil {
			return nil, err
		}
		var local netipx.IPSetBuilder
		local.Add(*n.IPv4)
		local.Add(*n.IPv6)
		set, err := local.IPSet()
		if err != nil {
			return nil, err
		}
		t.filters[n.Hostname] = filter.New(matches, nil, set, nil, nil, logger.Discard)
	}
	return t, nil
}

// allows asks tailscaled's filter at the destination; family is 0 for IPv4.
func (t *tailnet) allows(q Tuple, family int) bool {
	f := t.filters[q.Destination.Name]
	if f == nil || t.filters[q.Source.Name] == nil {
		return false // no node, no session key
	}
	proto := ipproto.Proto(q.Protocol)
	if q.Protocol == tier.ICMP && family == 1 {
		proto = ipproto.ICMPv6
	}
	return f.Check(q.Source.Tailnet[family], q.Destination.Tailnet[family], q.Port, proto) == filter.Accept
}

// disagreements counts the questions that the tailnet answers otherwise, and
// gives the first.
func disagreements(town *Town, net *tailnet, rng *rand.Rand, n int) (wrong, allowed int, first string) {
	for range n {
		q := town.Tuple(rng)
		want := town.Decide(q)
		if want {
			allowed++
		}
		for family := range 2 {
			if got := net.allows(q, family); got != want {
				if wrong++; wrong == 1 {
					first = fmt.Sprintf("%s, IPv%d: decided %t, Headscale %t", q, 4+2*family, want, got)
				}
			}
		}
	}
	return wrong, allowed, first
}

func compile(t *testing.T, f *tier.Fleet) *acl.Document {
	t.Helper()
	d, err := acl.Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Headscale's library and tailscaled's filter answer as the decision function.
func TestHeadscaleAgrees(t *testing.T) {
	asked, allowed := 0, 0
	for seed := range uint64(towns) {
		rng := rand.New(rand.NewPCG(seed, 6))
		town, err := NewTown(rng, 20)
		if err != nil {
			t.Fatal(err)
		}
		text := compile(t, town.Fleet).Text()
		net, err := newTailnet(text, town.Machines, town.Policy)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if r := net.manager.RunTests(); r != nil {
			t.Errorf("the policy's own tests: %v", r)
		}
		wrong, yes, first := disagreements(town, net, rng, tuplesEach)
		if wrong > 0 {
			t.Errorf("town %d: %d of %d answers differ, the first: %s\n%s", seed, wrong, 2*tuplesEach, first, text)
		}
		asked, allowed = asked+2*tuplesEach, allowed+yes
	}
	t.Logf("%d questions over 2 families, %d allowed, 0 may differ", asked/2, allowed)
	if allowed < asked/40 {
		t.Errorf("only %d of %d questions are allowed: the comparison would miss a policy that closes everything", allowed, asked/2)
	}
}

// Every machine is told not to look for captive portals, and nothing else.
func TestHeadscaleStopsPortalDetection(t *testing.T) {
	town, err := NewTown(rand.New(rand.NewPCG(4, 6)), 3)
	if err != nil {
		t.Fatal(err)
	}
	net, err := newTailnet(compile(t, town.Fleet).Text(), town.Machines, town.Policy)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for i, m := range town.Machines {
		caps := net.manager.NodeCapMap(types.NodeID(i + 1))
		if m.Revoked {
			continue
		}
		if told++; !caps.Contains(tailcfg.NodeAttrDisableCaptivePortalDetection) || len(caps) != 1 {
			t.Errorf("%s is told %v", m.Name, caps)
		}
	}
	if told == 0 {
		t.Error("no machine was looked at")
	}
}

// Breaking any rule of the compiled policy in any way makes the comparison
// fail.
func TestHeadscaleMutants(t *testing.T) {
	town, err := NewTown(rand.New(rand.NewPCG(4, 6)), 20)
	if err != nil {
		t.Fatal(err)
	}
	good := compile(t, town.Fleet)
	made := 0
	try := func(name string, change func(*acl.Document)) {
		d := compile(t, town.Fleet)
		change(d)
		if string(d.Text()) == string(good.Text()) {
			t.Fatalf("%s: nothing was broken", name)
		}
		made++
		net, err := newTailnet(d.Bare().Text(), town.Machines, town.Policy)
		if err != nil {
			return // Headscale itself refuses it
		}
		seen := false
		rng := rand.New(rand.NewPCG(4, 7))
		for n := 0; n < mutantTuples && !seen; n += 500 {
			wrong, _, _ := disagreements(town, net, rng, 500)
			seen = wrong > 0
		}
		if !seen {
			t.Errorf("%s: not seen in %d questions\n%s", name, mutantTuples, d.Text())
		}
	}
	for i, a := range good.ACLs {
		try(fmt.Sprintf("rule %d removed", i), func(d *acl.Document) { d.ACLs = slices.Delete(d.ACLs, i, i+1) })
		if a.Proto != "" {
			try(fmt.Sprintf("rule %d for every protocol", i), func(d *acl.Document) { d.ACLs[i].Proto = "" })
			try(fmt.Sprintf("rule %d for UDP", i), func(d *acl.Document) { d.ACLs[i].Proto = "udp" })
		}
		for j, dst := range a.Dst {
			if len(a.Dst) > 1 {
				try(fmt.Sprintf("rule %d without %s", i, dst), func(d *acl.Document) {
					d.ACLs[i].Dst = slices.Delete(slices.Clone(d.ACLs[i].Dst), j, j+1)
				})
			}
			if dst != "*:*" {
				try(fmt.Sprintf("rule %d to everything", i), func(d *acl.Document) { d.ACLs[i].Dst = []string{"*:*"} })
			}
			if a.Proto != "" {
				try(fmt.Sprintf("rule %d every port of %s", i, dst), func(d *acl.Document) {
					d.ACLs[i].Proto = ""
					d.ACLs[i].Dst = []string{dst[:strings.LastIndex(dst, ":")] + ":*"}
				})
			}
		}
		for tag := range good.TagOwners {
			if tag == a.Src[0] {
				continue
			}
			if !mayAlready(town, tag, a) {
				try(fmt.Sprintf("rule %d for %s too", i, tag), func(d *acl.Document) { d.ACLs[i].Src = append(d.ACLs[i].Src, tag) })
			}
			try(fmt.Sprintf("rule %d for %s instead", i, tag), func(d *acl.Document) { d.ACLs[i].Src = []string{tag} })
		}
		try(fmt.Sprintf("rule %d for everybody", i), func(d *acl.Document) { d.ACLs[i].Src = []string{"*"} })
	}
	for name, addr := range good.Hosts {
		try("host "+name+" is another machine", func(d *acl.Document) { d.Hosts[name] = addr.Next().Next().Next() })
	}
	t.Logf("%d mutants, each must be seen", made)
}

// mayAlready says whether a tier opens what a rule says by other rules: adding
// it to the rule then changes nothing.
func mayAlready(town *Town, tag string, a acl.Rule) bool {
	from, _ := town.Policy.OfTags([]string{tag})
	to := tier.Machine{Tier: "admin"}
	if name, port, _ := strings.Cut(a.Dst[0], ":"); name == "tag" {
		tag, _, _ := strings.Cut(port, ":")
		to.Tier, _ = town.Policy.OfTags([]string{"tag:" + tag})
	} else if m, ok := town.Fleet.ByName(name); ok {
		to = m
	}
	return town.Policy.Decide(tier.Machine{Tier: from}, to, tier.UDP, 1).Allow
}

// Each test that goes into the policy fails if its answer is turned round: the
// tests test something.
func TestHeadscaleRunsOurTests(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 6))
	town, err := NewTown(rng, 3)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i, j int, accept bool) {
		d := compile(t, town.Fleet)
		x := &d.Tests[i]
		if accept {
			x.Deny = append(x.Deny, x.Accept[j])
			x.Accept = slices.Delete(x.Accept, j, j+1)
		} else {
			x.Accept = append(x.Accept, x.Deny[j])
			x.Deny = slices.Delete(x.Deny, j, j+1)
		}
		net, err := newTailnet(d.Text(), town.Machines, town.Policy)
		if err != nil {
			t.Fatal(err)
		}
		if net.manager.RunTests() == nil {
			t.Errorf("turning test %d of %s round is not seen", j, x.Src)
		}
	}
	n := 0
	for i, x := range compile(t, town.Fleet).Tests {
		for j := range x.Accept {
			flip(i, j, true)
			n++
		}
		for j := range x.Deny {
			flip(i, j, false)
			n++
		}
	}
	t.Logf("%d tests turned round", n)
}

// A laptop with one tag for which no rule exists, and a policy with no rule at
// all, open nothing: Headscale calls a policy without the member open.
func TestNoRulesIsClosed(t *testing.T) {
	d := &acl.Document{TagOwners: map[string][]string{"tag:admin": {}, "tag:infra": {}, "tag:guest": {}, "tag:family": {}}, ACLs: []acl.Rule{}}
	town, err := NewTown(rand.New(rand.NewPCG(1, 1)), 2)
	if err != nil {
		t.Fatal(err)
	}
	net, err := newTailnet(d.Text(), town.Machines, town.Policy)
	if err != nil {
		t.Fatal(err)
	}
	q := Tuple{Source: town.Machines[2], Destination: town.Machines[0], Protocol: tier.TCP, Port: 443}
	if net.allows(q, 0) || net.allows(q, 1) {
		t.Error("a policy without rules opens x.veilor")
	}
	if net.allows(Tuple{Source: tier.Machine{Name: "x", Tailnet: []netip.Addr{{}, {}}}, Destination: town.Machines[0]}, 0) {
		t.Error("a machine that is no node was let in")
	}
}
