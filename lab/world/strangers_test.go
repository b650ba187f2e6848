package world

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/gate"
)

// settleLimit ends the waiting for what takes milliseconds.
const settleLimit = 10 * time.Second

// watched is the world's networks, with nobody in them, and the watch.
func watched(t *testing.T) (*World, *Strangers) {
	t.Helper()
	gate.Root(t, "the watch for strangers")
	w := &World{closed: make(chan struct{}), cfg: Config{
		Names: t.TempDir(), Guest: true, IPv6: true,
		Site: &site.Site{
			Control: site.Control{
				Addresses: []netip.Addr{Control, Twin(Control)},
				Relays:    []site.Relay{{Addresses: []netip.Addr{netip.MustParseAddr("10.88.3.77")}}},
			},
			Yggdrasil: site.Yggdrasil{
				Edges:  []site.Peer{{Address: netip.AddrPortFrom(EdgeAddress, 443)}},
				Public: []site.Peer{{Address: netip.AddrPortFrom(PeerAddress, 443)}},
			},
		},
	}}
	t.Cleanup(w.Close)
	if err := w.network(); err != nil {
		t.Fatal(err)
	}
	// Until the kernel is done with a new IPv6 address, what is sent has another
	// source or comes late. A router that refuses a connection has had the right one.
	for _, router := range []string{"10.88.1.1:1", "[2001:db8:1::1]:1"} {
		for began := time.Now(); ; {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			_, err := w.Guest.DialContext(ctx, "tcp", router)
			cancel()
			if errors.Is(err, unix.ECONNREFUSED) {
				break
			}
			if time.Since(began) > settleLimit {
				t.Fatalf("the router does not refuse a connection to %s: %v", router, err)
			}
		}
	}
	s, err := w.WatchStrangers()
	if err != nil {
		t.Fatal(err)
	}
	return w, s
}

// say sends a datagram from the laptop's place to an address and port.
func say(t *testing.T, w *World, to string) {
	t.Helper()
	err := w.Guest.Do(func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	if err != nil {
		t.Fatalf("to %s: %v", to, err)
	}
}

// Whoever is not in the directory is counted and named, in both families, and
// nobody else is: neither the router nor what stays in the laptop's own network.
func TestStrangers(t *testing.T) {
	w, s := watched(t)
	settle := func() {
		t.Helper()
		// What was sent before is at the router when this is.
		before, err := s.Probes()
		if err != nil {
			t.Fatal(err)
		}
		say(t, w, Probe.String())
		ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
		defer cancel()
		if err := s.AwaitProbe(ctx, before); err != nil {
			t.Fatal(err)
		}
	}
	is := func(when string, packets uint64, who ...string) {
		t.Helper()
		settle()
		n, first, err := s.Seen()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(who, first); n != packets || diff != "" {
			t.Errorf("%s: %d packets to strangers, want %d; their destinations (-want +got):\n%s", when, n, packets, diff)
		}
	}
	is("before", 0)
	for _, to := range []string{
		"10.88.3.10:443", "10.88.3.20:443", "10.88.5.10:443", "10.88.3.77:443", "[2001:db8:3::a]:443", // the directory's
		"10.88.1.1:53", "[2001:db8:1::1]:53", // the router
		"224.0.0.251:5353", "255.255.255.255:67", "10.88.1.11:443", // its own network's
	} {
		say(t, w, to)
	}
	is("those who may be asked", 0)

	say(t, w, "192.0.2.7:53")
	say(t, w, "192.0.2.7:53")
	say(t, w, netip.AddrPortFrom(Nobody, 443).String()) // in the world, and not in the directory
	say(t, w, "[2001:db8:ffff::7]:123")
	all := []string{"udp 10.88.5.66:443", "udp 192.0.2.7:53", "udp [2001:db8:ffff::7]:123"}
	is("strangers", 4, all...)

	// A censor hides nobody, nor does the resolver to which it leads all questions.
	c, err := censor.New(w.ISP.FD(), toLaptop)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Block(censor.UDP(), censor.Resolver("lies", 5354)); err != nil {
		t.Fatal(err)
	}
	say(t, w, "192.0.2.8:53")
	all = append(all, "udp 192.0.2.8:53")
	slices.Sort(all)
	is("strangers behind a censor", 5, all...)

	d := net.Dialer{Timeout: 100 * time.Millisecond}
	if err := w.Guest.Do(func() error {
		if conn, err := d.Dial("tcp", "192.0.2.7:80"); err == nil {
			conn.Close()
			return errors.New("192.0.2.7 answers")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n, first, err := s.Seen()
	if err != nil || n < 6 || !slices.Contains(first, "tcp 192.0.2.7:80") {
		t.Errorf("a connection to a stranger: %d packets, %v, %v", n, first, err)
	}
	// More than are remembered are counted all the same.
	for port := range 2 * keptStrangers {
		say(t, w, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(1000+port)).String())
	}
	settle()
	m, first, err := s.Seen()
	if err != nil || m != n+2*keptStrangers || len(first) != keptStrangers+1 { // one of IPv6
		t.Errorf("after %d more: %d packets, %d remembered, %v; there were %d", 2*keptStrangers, m, len(first), err, n)
	}
}
