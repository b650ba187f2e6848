package yggdrasil

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/veilor/veilor-os/internal/admission"
	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/wss"
)

// door is where inbound peerings come in, before the library hears of them: its
// own allow-list is fixed when it starts, and it takes a hello that anybody
// recorded. So the door knows every transport by the key that its token proved,
// and can close it.
type door struct {
	verify *admission.Verifier
	admits func(ed25519.PublicKey) bool
	lookUp func(ed25519.PublicKey) // asks the network for the way to a node
	now    func() time.Time

	mu     sync.Mutex
	open   map[*inbound]struct{}
	latest map[[ed25519.PublicKeySize]byte]*inbound // by key: whose hello is through
}

// A guest has one peer at a time. When it comes to us by another peer, its link to
// us is dead, though nothing was written that could have shown it; what is meant for
// the guest would go there for more than a second (package wss, echoDead), which
// was half of the gap after a block that came when all was quiet. So when a guest is
// heard elsewhere the network is asked for the way to it, and its link whether it is
// there.
const (
	// linkQuiet is how long nothing may have come over a link for a packet to have
	// come another way. An overloaded edge is slower than its links, but not by that.
	linkQuiet = 500 * time.Millisecond
	// linkYoung is the age below which a link is believed: what its guest sent by the
	// peer that it had before may still be on its way.
	linkYoung = 5 * time.Second
	// linkAnswer is how long an answer may take. Whoever is wrongly taken for gone,
	// on a round trip that is longer, peers anew.
	linkAnswer = 600 * time.Millisecond
	// linkOver is when an older link of a guest is closed, once the hello of a newer
	// one is through: by then the library has taken that in.
	linkOver = 300 * time.Millisecond
)

var (
	errTurned   = errors.New("the node was revoked meanwhile")
	errOtherKey = errors.New("the hello is of another key than the token")
)

// admit is for a wss.Server whose transports go to the library's socket at path.
func (d *door) admit(path string) func(*http.Request) (wss.Node, error) {
	return func(r *http.Request) (wss.Node, error) {
		token, err := admission.From(r)
		if err != nil {
			return nil, err
		}
		key, err := d.verify.Check(token, d.now())
		if err != nil {
			return nil, fmt.Errorf("looking at the token: %w", err)
		}
		return func(ctx context.Context) (net.Conn, error) {
			// The library tells inbound peerings apart by the address they come
			// from, so each needs one.
			dialer := net.Dialer{LocalAddr: &net.UnixAddr{Name: "@veilor-ygg-" + rand.Text(), Net: "unix"}}
			c, err := dialer.DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			in := &inbound{Conn: c, door: d, key: key, since: d.now()}
			if !d.enter(in) {
				c.Close()
				return nil, errTurned
			}
			return in, nil
		}, nil
	}
}

// enter keeps a transport in mind. The look at the roster is under the same lock
// as turn's: whoever is revoked between token and here is not overlooked.
func (d *door) enter(in *inbound) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.admits(in.key) {
		return false
	}
	if d.open == nil {
		d.open, d.latest = map[*inbound]struct{}{}, map[[ed25519.PublicKeySize]byte]*inbound{}
	}
	d.open[in] = struct{}{}
	return true
}

// forget takes a transport out. d.mu is held.
func (d *door) forget(in *inbound) {
	delete(d.open, in)
	if k := [ed25519.PublicKeySize]byte(in.key); d.latest[k] == in {
		delete(d.latest, k)
	}
}

// turn closes the transports of a key, which the roster must no longer admit.
// It says how many there were.
func (d *door) turn(key site.Key) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for in := range d.open {
		if textKey(in.key) == key {
			d.forget(in)
			in.Conn.Close()
			n++
		}
	}
	return n
}

// settle notes that the hello of a link is through, and closes an older one of the
// same guest, which has given that up. Not at once: while there is one the guest
// keeps its place in the tree.
func (d *door) settle(in *inbound) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.open[in]; !ok {
		return // turned meanwhile
	}
	if old := d.latest[[ed25519.PublicKeySize]byte(in.key)]; old != nil {
		time.AfterFunc(linkOver, func() { old.Conn.Close() })
	}
	d.latest[[ed25519.PublicKeySize]byte(in.key)] = in
}

// heard is told the key of whoever sent a packet, or asks for a way, by whichever
// way that came. It returns at once. Whoever forges such a question makes us ask a
// guest's link twice a second, and no more.
func (d *door) heard(key ed25519.PublicKey) {
	d.mu.Lock()
	in := d.latest[[ed25519.PublicKeySize]byte(key)]
	d.mu.Unlock()
	if in == nil {
		return
	}
	now := d.now()
	if now.Sub(in.since) < linkYoung || now.Sub(time.Unix(0, in.came.Load())) < linkQuiet || !in.asking.CompareAndSwap(false, true) {
		return
	}
	d.lookUp(in.key)
	go func() {
		defer in.asking.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), linkAnswer)
		defer cancel()
		if err := in.ping(ctx); err != nil {
			in.Conn.Close() // the bridge ends, and closes the rest
			return
		}
		in.came.Store(d.now().UnixNano())
	}()
}

// links are the peerings whose hello is through.
func (d *door) links() []edge.Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	links := []edge.Link{}
	for in := range d.open {
		if in.through.Load() {
			links = append(links, edge.Link{Key: textKey(in.key), Since: in.since.UTC()})
		}
	}
	slices.SortFunc(links, func(a, b edge.Link) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), a.Since.Compare(b.Since))
	})
	return links
}

// inbound is one transport's connection to the library. Writes, which come from
// one goroutine, are what the guest says; its hello is held until it is whole
// and of the right key.
type inbound struct {
	net.Conn
	door    *door
	key     ed25519.PublicKey
	since   time.Time
	hello   []byte
	through atomic.Bool
	came    atomic.Int64 // when something last came over it, Unix nanoseconds
	asking  atomic.Bool
	ping    func(context.Context) error
}

// Ask is for wss.Server.
func (c *inbound) Ask(ping func(context.Context) error) { c.ping = ping }

func (c *inbound) Write(p []byte) (int, error) {
	c.came.Store(c.door.now().UnixNano())
	if c.through.Load() {
		return c.Conn.Write(p)
	}
	c.hello = append(c.hello, p...)
	key, _, err := admission.HelloKey(c.hello)
	switch {
	case errors.Is(err, admission.ErrShort):
		return len(p), nil
	case err != nil:
		return 0, err
	case !key.Equal(c.key):
		return 0, errOtherKey
	}
	if _, err := c.Conn.Write(c.hello); err != nil {
		return 0, err
	}
	c.hello = nil
	c.through.Store(true)
	c.door.settle(c)
	return len(p), nil
}

func (c *inbound) Close() error {
	c.door.mu.Lock()
	c.door.forget(c)
	c.door.mu.Unlock()
	return c.Conn.Close()
}
