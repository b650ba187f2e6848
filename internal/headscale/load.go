package headscale

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/tier"
)

// Step is how far a load came. Each is safe to stop after.
//
//	Unchanged ── the server's policy is as before
//	    │ the rules, without tests
//	Bare ──────── the site's rules are in force
//	    │ the same rules, with the tests that the tailnet can run
//	Whole ─────── the server itself refuses a policy that fails them
type Step int

// The steps.
const (
	Unchanged Step = iota
	Bare
	Whole
)

func (s Step) String() string {
	switch s {
	case Bare:
		return "the rules are in force, the tests are not"
	case Whole:
		return "the rules and their tests are in force"
	}
	return "nothing was changed"
}

// Loaded says what a load did.
type Loaded struct {
	Step Step
	// Already is true if the server had it all before.
	Already bool
	// Untested are tags that no node has yet; Headscale refuses tests of them.
	// Load again when there are.
	Untested []string
	// Unsupported is true if the server knows no tests (before 0.29).
	Unsupported bool
}

// LoadPolicy puts a policy in force. Headscale refuses tests of a tag that no
// node has, and old ones refuse tests altogether; so the rules go first, alone,
// and then once more with the tests that can run. Before anything changes the
// server is asked whether it would take it all. Each step is read back.
//
// On an error the result says which step is in force. Calling it again goes on
// from there.
func (c *Client) LoadPolicy(ctx context.Context, d *acl.Document) (Loaded, error) {
	var l Loaded
	fail := func(err error) (Loaded, error) {
		return l, fmt.Errorf("loading the policy (%s): %w", l.Step, err)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return fail(err)
	}
	var tags []string
	for _, n := range nodes {
		tags = append(tags, n.Tags...)
	}
	tested, untested := d.TestedBy(tags)
	l.Untested = untested
	bare, whole := d.Bare().Text(), tested.Text()

	have, err := c.Policy(ctx)
	if err != nil && !errors.Is(err, ErrNoPolicy) {
		return fail(err)
	}
	switch {
	case string(have) == string(whole):
		l.Step, l.Already = Whole, true
		return l, nil
	case string(have) == string(bare):
		l.Step = Bare
	}
	err = c.CheckPolicy(ctx, whole)
	switch {
	case errors.Is(err, ErrUnsupported):
		l.Unsupported = true
	case err != nil:
		return fail(err)
	}
	if l.Step != Bare {
		if err := c.setAndRead(ctx, bare); err != nil {
			return fail(err)
		}
		l.Step = Bare
	}
	if l.Unsupported || len(tested.Tests) == 0 {
		return l, nil
	}
	if err := c.setAndRead(ctx, whole); err != nil {
		return fail(err)
	}
	l.Step = Whole
	return l, nil
}

// setAndRead sets a policy and compares what the server then has.
func (c *Client) setAndRead(ctx context.Context, policy []byte) error {
	if err := c.SetPolicy(ctx, policy); err != nil {
		return err
	}
	have, err := c.Policy(ctx)
	if err != nil {
		return err
	}
	if string(have) == string(policy) {
		return nil
	}
	// A server that stores another form of the same policy is fine.
	h, others, err := acl.Parse(have)
	if err != nil {
		return fmt.Errorf("comparing what the server has now: %w", err)
	}
	w, _, err := acl.Parse(policy)
	if err != nil {
		return err
	}
	if ds := acl.Diff(h, others, w); ds != nil {
		return fmt.Errorf("the server said yes, but has another policy: %s", ds[0])
	}
	return nil
}

// Machines turns the tailnet's nodes into machines, to be joined with the site's
// hosts and with what else is known of them by [tier.Policy.Fleet]. Nodes that
// are one of the site's hosts, by address, get its name. A node whose tags are
// no tier's is an error: nobody could say what it opens.
func Machines(p *tier.Policy, nodes []Node) ([]tier.Machine, error) {
	var ms []tier.Machine
	var errs []error
	for _, n := range nodes {
		of, err := p.OfTags(n.Tags)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s (%s): %w", n.ID, n.Name, err))
			continue
		}
		m := tier.Machine{Name: strings.ToLower(n.Name), Tier: of, Tailnet: n.Addresses}
		named := false
		for _, h := range p.Site().Hosts {
			if h.Tailnet.IsValid() && slices.Contains(n.Addresses, h.Tailnet) {
				m.Name, named = h.Name, true
			}
		}
		if !named && taken(p, m.Name) {
			// A laptop may call itself nullstone, or guest; it is not. No host name
			// has a #, so nobody can take this one too.
			m.Name = "node#" + n.ID
		}
		ms = append(ms, m)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("reading the tailnet's nodes: %w", err)
	}
	return ms, nil
}

// taken says whether a name means something else than a laptop.
func taken(p *tier.Policy, name string) bool {
	_, host := p.Site().Host(name)
	return host || name == tier.Stranger || name == tier.Revoked || p.Tag(name) != ""
}

// Join joins the tailnet's machines with a list of machines in which the same
// ones may be: a list adds what Headscale does not know of a node, its Yggdrasil
// key and whether it is revoked. Machines of the same name are one, unless their
// tiers or all of their addresses differ; then one of the two is wrong.
func Join(nodes, list []tier.Machine) ([]tier.Machine, error) {
	joined := slices.Clone(nodes)
	seen := map[int]bool{}
	var errs []error
	for _, m := range list {
		i := slices.IndexFunc(nodes, func(n tier.Machine) bool { return strings.EqualFold(n.Name, m.Name) })
		if i < 0 {
			joined = append(joined, m)
			continue
		}
		n := nodes[i]
		switch {
		case seen[i]:
			errs = append(errs, fmt.Errorf("machine %s: it is in the list twice; remove one", m.Name))
			continue
		case m.Tier != n.Tier:
			errs = append(errs, fmt.Errorf("machine %s: the tailnet has it in tier %q, the list in %q; correct the one that is wrong", m.Name, n.Tier, m.Tier))
			continue
		case len(m.Tailnet) > 0 && !slices.ContainsFunc(m.Tailnet, func(a netip.Addr) bool { return slices.Contains(n.Tailnet, a) }):
			errs = append(errs, fmt.Errorf("machine %s: the tailnet has it at %v, the list at %v; correct the list, or give one of the two another name", m.Name, n.Tailnet, m.Tailnet))
			continue
		}
		m.Name, m.Tailnet = n.Name, n.Tailnet
		joined[i], seen[i] = m, true
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("joining the tailnet's nodes with the list of machines: %w", err)
	}
	return joined, nil
}
