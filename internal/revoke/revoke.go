// Package revoke takes a machine off every layer, and does not forget it.
//
// An order to revoke is a file before anything is done, and stays one until
// every place that knows the machine has confirmed: through errors, a control
// server that is down, and kill -9. The edges come first, since a laptop whose
// tailnet is cut goes there; then the control server; then the sockets and the
// lists of the machine that this runs on. A place that fails or hangs does not
// hold up the next. When all have confirmed, all are read once more: a machine
// that came back meanwhile is no machine that is gone.
//
//	Put ──> pending ──a place confirms──> pending, one fewer ──all have──> read again ──> done
//	         ^    ^          │ a place fails                                  │ it is back
//	         │    └── later ─┘                                                │
//	         └────────────────────────────────────────────────────────────────┘
package revoke

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// Subject is who is revoked: everything by which some layer knows the machine.
type Subject struct {
	// Name is what people call it, and what edges and Headscale know it by.
	Name string `json:"name"`
	// Keys are its Yggdrasil keys. Without one an edge looks for the name.
	Keys []site.Key `json:"keys,omitempty"`
	// NoKey says that it has no Yggdrasil key: a phone, for example.
	NoKey bool `json:"no_key,omitempty"`
	// Nodes are Headscale's ids, which it never gives out twice, and MachineKeys
	// what a machine keeps when it joins again. Without either, Headscale's nodes
	// are chosen by Addresses, or else by Name, and only those that had joined
	// when the order was given: both pass on to the next machine.
	Nodes       []string `json:"nodes,omitempty"`
	MachineKeys []string `json:"machine_keys,omitempty"`
	// NoNode says that it is not in the tailnet.
	NoNode bool `json:"no_node,omitempty"`
	// Addresses are those of the tailnet.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// PreAuthKeys are Headscale's ids of keys that would let it back in. Those
	// that its nodes joined with are found without being named.
	PreAuthKeys []string `json:"pre_auth_keys,omitempty"`
}

// plain is the subject in the one form that its file has too: sorted, without
// doubles, keys as edges write them.
func (s Subject) plain() Subject {
	s.Keys = slices.Clone(s.Keys)
	for i, k := range s.Keys {
		s.Keys[i] = site.Key(strings.ToLower(string(k)))
	}
	return s.with(Subject{})
}

// with joins two descriptions of the same machine.
func (s Subject) with(o Subject) Subject {
	s.Keys = union(s.Keys, o.Keys)
	s.Nodes = union(s.Nodes, o.Nodes)
	s.MachineKeys = union(s.MachineKeys, o.MachineKeys)
	s.Addresses = unionFunc(s.Addresses, o.Addresses, netip.Addr.Compare)
	s.PreAuthKeys = union(s.PreAuthKeys, o.PreAuthKeys)
	s.NoKey = (s.NoKey || o.NoKey) && len(s.Keys) == 0
	s.NoNode = (s.NoNode || o.NoNode) && len(s.Nodes) == 0
	return s
}

// onlyNamed says that nothing but the name leads to its nodes. Headscale takes
// that from the machine, whose owner may have changed it: that no node has it
// does not say that there is none.
func (s Subject) onlyNamed() bool {
	return !s.NoNode && len(s.Nodes) == 0 && len(s.MachineKeys) == 0 && len(s.Addresses) == 0
}

// all are its addresses on all layers.
func (s Subject) all() []netip.Addr {
	as := slices.Clone(s.Addresses)
	for _, k := range s.Keys {
		if a := (tier.Machine{Yggdrasil: k}).YggdrasilAddress(); a.IsValid() {
			as = append(as, a)
		}
	}
	return as
}

func (s Subject) check() error {
	if s.Name == "" || len(s.Name) > maxName || strings.ContainsFunc(s.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%q is no name of a machine", s.Name)
	}
	for _, k := range s.Keys {
		if k.Bytes() == nil {
			return fmt.Errorf("%q is no Yggdrasil key; write its 64 hex digits", k)
		}
	}
	for _, n := range slices.Concat(s.Nodes, s.PreAuthKeys) {
		if !number.MatchString(n) {
			return fmt.Errorf("%q is no id of Headscale; `headscale nodes list` shows them, as numbers", n)
		}
	}
	for _, a := range s.Addresses {
		if tier.LayerOf(a) != tier.Tailnet {
			return fmt.Errorf("%s is no address of the tailnet", a)
		}
	}
	if s.NoKey && s.NoNode {
		return errors.New("neither in the tailnet nor in Yggdrasil: nothing could be closed")
	}
	return nil
}

const maxName = 200

var number = regexp.MustCompile(`^[1-9][0-9]{0,19}$`)

func union[T cmp.Ordered](a, b []T) []T { return unionFunc(a, b, cmp.Compare[T]) }

func unionFunc[T comparable](a, b []T, order func(T, T) int) []T {
	out := slices.Concat(a, b)
	slices.SortFunc(out, order)
	return slices.Compact(out)
}

// Kind is a kind of place.
type Kind string

// The kinds, in the order in which they are closed.
const (
	Edge    Kind = "edge"    // At is the URL of its control socket
	Tailnet Kind = "tailnet" // At is Headscale's URL
	Here    Kind = "here"    // tailscaled (At is its socket), packet filter and sockets of this machine
	List    Kind = "list"    // At is a list of machines (tier.ReadMachines)
)

var kinds = []Kind{Edge, Tailnet, Here, List}

// Place is something that knows machines and must forget one.
type Place struct {
	Kind Kind   `json:"kind"`
	At   string `json:"at,omitempty"`
}

func (p Place) String() string { return strings.TrimSpace(string(p.Kind) + " " + p.At) }

// rank is when it is its turn.
func (p Place) rank() int { return slices.Index(kinds, p.Kind) }

// Confirmation is what a place has been read back to have done.
type Confirmation struct {
	At time.Time `json:"at"`
	// What is for people: "key refused, 1 link closed".
	What string `json:"what"`
}

// Order is one machine to revoke.
type Order struct {
	ID      string    `json:"-"`
	At      time.Time `json:"at"`
	Subject Subject   `json:"subject"`
	// Places are all that must confirm, in order.
	Places []Place `json:"places"`
	// Confirmed are those that have, by Place.String.
	Confirmed map[string]Confirmation `json:"confirmed"`
	// Failed are the last errors of the others.
	Failed map[string]error `json:"-"`
}

// Open are the places that have not confirmed.
func (o Order) Open() []Place {
	var open []Place
	for _, p := range o.Places {
		if _, ok := o.Confirmed[p.String()]; !ok {
			open = append(open, p)
		}
	}
	return open
}

// Done says whether every place has confirmed.
func (o Order) Done() bool { return len(o.Open()) == 0 }

// ID is the name of a machine's order: its own, if that can be a file's. Names
// are the same in capitals, as host names are.
func ID(name string) string {
	name = strings.ToLower(name)
	id := strings.Trim(notID.ReplaceAllString(name, "-"), "-")
	if id == name && len(id) <= maxID && id != "" {
		return id
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimLeft(id[:min(len(id), maxID)]+"-"+hex.EncodeToString(sum[:4]), "-")
}

const maxID = 80

var (
	notID = regexp.MustCompile(`[^a-z0-9-]+`)
	idRe  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,90}$`)
)
