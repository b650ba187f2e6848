package yggdrasil

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// TestHeardElsewhere: the link of a guest that comes by another way is asked, and
// closed if it does not answer; one that carries, or is young, is left alone.
func TestHeardElsewhere(t *testing.T) {
	key, _ := pair(t)
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	gone := func(ctx context.Context) error { return errors.New("nobody there") }
	there := func(context.Context) error { return nil }
	for name, c := range map[string]struct {
		age, quiet time.Duration
		ping       func(context.Context) error
		asked      bool
		closed     bool
	}{
		"gone":    {time.Minute, time.Second, gone, true, true},
		"there":   {time.Minute, time.Second, there, true, false},
		"carries": {time.Minute, linkQuiet / 2, gone, false, false},
		"young":   {linkYoung / 2, time.Second, gone, false, false},
	} {
		now := noon
		looked := 0
		d := &door{admits: func(ed25519.PublicKey) bool { return true }, now: func() time.Time { return now }, lookUp: func(ed25519.PublicKey) { looked++ }}
		node, ours := net.Pipe()
		in := &inbound{Conn: ours, door: d, key: key, since: now.Add(-c.age)}
		asked := make(chan bool, 1)
		in.Ask(func(ctx context.Context) error { asked <- true; return c.ping(ctx) })
		in.came.Store(now.Add(-c.quiet).UnixNano())
		if !d.enter(in) {
			t.Fatal("not let in")
		}
		d.settle(in)
		d.heard(key)
		if (looked == 1) != c.asked {
			t.Errorf("%s: looked up %d times", name, looked)
		}
		if !c.asked {
			select {
			case <-asked:
				t.Errorf("%s: it was asked", name)
			default:
			}
			continue
		}
		<-asked
		if c.closed {
			if _, err := node.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v, want it closed", name, err)
			}
		} else {
			for in.asking.Load() { // until it has noted the answer
				runtime.Gosched()
			}
			d.heard(key)
			select {
			case <-asked:
				t.Errorf("%s: asked again at once", name)
			default:
			}
		}
		in.Close()
		if d.heard(key); len(d.latest)+len(d.open) != 0 {
			t.Errorf("%s: not forgotten", name)
		}
	}
}

// TestNewerLink: a guest has one link; the older one goes.
func TestNewerLink(t *testing.T) {
	key, _ := pair(t)
	d := &door{admits: func(ed25519.PublicKey) bool { return true }, now: time.Now}
	var far []net.Conn
	for range 2 {
		node, ours := net.Pipe()
		in := &inbound{Conn: ours, door: d, key: key, since: time.Now()}
		if !d.enter(in) {
			t.Fatal("not let in")
		}
		d.settle(in)
		far = append(far, node)
	}
	if _, err := far[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the older link: %v, want it closed", err)
	}
	far[1].SetReadDeadline(time.Now().Add(2 * linkOver))
	if _, err := far[1].Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		t.Error("the newer link was closed too")
	}
}
