package revoke

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// clockSkew is how far Headscale's clock may be from this machine's, when nodes
// are chosen by when they joined.
const clockSkew = time.Minute

// Doors opens the real places.
type Doors struct {
	// Headscale connects to the server at a URL, which it must refuse if it is
	// not the one that its API key is for.
	Headscale func(url string) (*headscale.Client, error)
}

// Open is for [Queue.Open].
func (d Doors) Open(p Place) (Step, error) {
	switch p.Kind {
	case Edge:
		c, err := edge.NewClient(p.At)
		return edgeStep{c}, err
	case Tailnet:
		c, err := d.Headscale(p.At)
		return tailnetStep{c}, err
	case Here:
		return hereStep{p.At}, nil
	case List:
		return listStep{p.At}, nil
	}
	return nil, fmt.Errorf("%q is no kind of place", p.Kind)
}

// edgeStep has an edge refuse the machine's keys.
type edgeStep struct{ c *edge.Client }

var errNoKey = errors.New("no Yggdrasil key of this machine is known: revoke it again with --key, or with --no-key if it has none")

func (s edgeStep) Close(ctx context.Context, o Order) (string, error) {
	keys, err := s.keys(ctx, o.Subject)
	if err != nil {
		return "", err
	}
	links, ended := 0, 0
	for _, k := range keys {
		closed, err := s.c.Revoke(ctx, k)
		if err != nil {
			return "", err
		}
		links, ended = links+closed.Links, ended+closed.Flows
	}
	if err := s.refused(ctx, keys); err != nil {
		return "", err
	}
	if len(keys) == 0 {
		return "it has no key, and no node here has its name", nil
	}
	return fmt.Sprintf("%s refused; %s and %s closed", count(len(keys), "key"), count(links, "link"), count(ended, "flow")), nil
}

func (s edgeStep) Check(ctx context.Context, o Order) error {
	if len(o.Subject.Keys) > 0 {
		return s.refused(ctx, o.Subject.Keys)
	}
	l, err := s.c.Nodes(ctx)
	if err == nil && len(named(l, o.Subject.Name)) > 0 {
		err = fmt.Errorf("it admits a key of %s", o.Subject.Name)
	}
	return err
}

// keys are the subject's, or those that the edge knows by its name.
func (s edgeStep) keys(ctx context.Context, sub Subject) ([]site.Key, error) {
	if len(sub.Keys) > 0 {
		return sub.Keys, nil
	}
	l, err := s.c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	keys := named(l, sub.Name)
	if len(keys) == 0 && !sub.NoKey {
		return nil, errNoKey
	}
	return keys, nil
}

func named(l edge.List, name string) []site.Key {
	var keys []site.Key
	for _, n := range l.Nodes {
		if strings.EqualFold(n.Name, name) {
			keys = append(keys, n.Key)
		}
	}
	return keys
}

// refused says yes only to what the edge itself lists.
func (s edgeStep) refused(ctx context.Context, keys []site.Key) error {
	l, err := s.c.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		switch {
		case l.Admits(k):
			return fmt.Errorf("it said yes, but still admits key %.8s…", k)
		case l.Connected(k):
			return fmt.Errorf("it refuses key %.8s…, but a link with it stands", k)
		case !slices.Contains(l.Revoked, k):
			return fmt.Errorf("it said yes, but key %.8s… is not among those it refuses for good", k)
		}
	}
	return nil
}

// tailnetStep deletes the machine's nodes and what would let it join again.
type tailnetStep struct{ c *headscale.Client }

var (
	errNoNode = errors.New("no node of this machine is known: its owner may have renamed it; say which with --node, or --no-node if it is not in the tailnet")
	errLate   = errors.New("its node was not known when the server was asked before; it is asked again")
)

func (s tailnetStep) Close(ctx context.Context, o Order) (string, error) {
	onlyNamed := o.Subject.onlyNamed()
	if onlyNamed {
		// What is deleted without its id being written down cannot be told from
		// what was renamed.
		nodes, err := s.c.Nodes(ctx)
		if err != nil {
			return "", noWayIn(err)
		}
		if slices.ContainsFunc(nodes, o.matches) {
			return "", errLate
		}
	}
	gone, err := s.c.Evict(ctx, o.matches, o.Subject.PreAuthKeys)
	if err != nil {
		return "", noWayIn(err)
	}
	if onlyNamed {
		return "", errNoNode
	}
	what := "no node of it is there"
	if len(gone.Nodes) > 0 {
		what = "deleted node " + strings.Join(gone.Nodes, ", ")
	}
	if len(gone.Keys) > 0 {
		what += "; expired pre-auth key " + strings.Join(gone.Keys, ", ")
	}
	return what, nil
}

// noWayIn marks an error that every order would get.
func noWayIn(err error) error {
	if errors.Is(err, headscale.ErrUnauthorized) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}

// Learn is for [Learner].
func (s tailnetStep) Learn(ctx context.Context, o Order) (Subject, error) {
	nodes, err := s.c.Nodes(ctx)
	return o.known(nodes), err
}

// known is what nodes say of the order's machine.
func (o Order) known(nodes []headscale.Node) Subject {
	var s Subject
	for _, n := range nodes {
		if !o.matches(n) {
			continue
		}
		s.Nodes = append(s.Nodes, n.ID)
		s.Addresses = append(s.Addresses, n.Addresses...)
		if n.MachineKey != "" {
			s.MachineKeys = append(s.MachineKeys, n.MachineKey)
		}
	}
	return s
}

func (s tailnetStep) Check(ctx context.Context, o Order) error {
	nodes, err := s.c.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if o.matches(n) {
			return fmt.Errorf("node %s (%s) is there", n.ID, n.Name)
		}
	}
	if o.Subject.onlyNamed() {
		return errNoNode
	}
	return nil
}

// matches says whether a node is the machine's; see [Subject].
func (o Order) matches(n headscale.Node) bool {
	s := o.Subject
	if len(s.Nodes) > 0 || len(s.MachineKeys) > 0 {
		return slices.Contains(s.Nodes, n.ID) || slices.Contains(s.MachineKeys, n.MachineKey)
	}
	if s.NoNode || n.CreatedAt.After(o.At.Add(clockSkew)) {
		return false
	}
	if len(s.Addresses) > 0 {
		return slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return slices.Contains(s.Addresses, a) })
	}
	return strings.EqualFold(n.Name, s.Name)
}

// listStep marks the machine in a list that packet filters are compiled from:
// the next one must not let it in again.
type listStep struct{ file string }

func (s listStep) read(o Order) (ms []tier.Machine, its []int, err error) {
	data, err := os.ReadFile(s.file)
	if err != nil {
		return nil, nil, err
	}
	ms, err = tier.ReadMachines(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	for i, m := range ms {
		if InList(o.Subject, m) {
			its = append(its, i)
		}
	}
	return ms, its, nil
}

// InList says whether an entry of a list of machines is the subject: it has its
// name, or one of its keys.
func InList(s Subject, m tier.Machine) bool {
	return strings.EqualFold(m.Name, s.Name) || m.Yggdrasil != "" && slices.Contains(s.Keys, m.Yggdrasil)
}

func (s listStep) Close(_ context.Context, o Order) (string, error) {
	ms, its, err := s.read(o)
	if err != nil {
		return "", err
	}
	marked := 0
	for _, i := range its {
		if !ms[i].Revoked {
			ms[i].Revoked = true
			marked++
		}
	}
	if len(its) == 0 {
		return "it is not in the list", nil
	}
	if marked > 0 {
		mode := os.FileMode(0o644)
		if info, err := os.Stat(s.file); err == nil {
			mode = info.Mode().Perm()
		}
		var b bytes.Buffer
		if err := tier.WriteMachines(&b, ms); err != nil {
			return "", err
		}
		if err := renameio.WriteFile(s.file, b.Bytes(), mode); err != nil {
			return "", err
		}
	}
	return "marked as revoked", nil
}

func (s listStep) Check(_ context.Context, o Order) error {
	ms, its, err := s.read(o)
	if err != nil {
		return err
	}
	for _, i := range its {
		if !ms[i].Revoked {
			return fmt.Errorf("%s is not marked", ms[i].Name)
		}
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
