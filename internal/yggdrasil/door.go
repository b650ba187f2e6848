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
	now    func() time.Time

	mu   sync.Mutex
	open map[*inbound]struct{}
}

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
		d.open = map[*inbound]struct{}{}
	}
	d.open[in] = struct{}{}
	return true
}

// turn closes the transports of a key, which the roster must no longer admit.
// It says how many there were.
func (d *door) turn(key site.Key) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for in := range d.open {
		if textKey(in.key) == key {
			delete(d.open, in)
			in.Conn.Close()
			n++
		}
	}
	return n
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
}

func (c *inbound) Write(p []byte) (int, error) {
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
	return len(p), nil
}

func (c *inbound) Close() error {
	c.door.mu.Lock()
	delete(c.door.open, c)
	c.door.mu.Unlock()
	return c.Conn.Close()
}
