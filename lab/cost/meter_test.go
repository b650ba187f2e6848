package cost

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

// TestMeter sends past a router what each class counts, in both families. Nobody
// answers, which does not matter here.
func TestMeter(t *testing.T) {
	gate.Root(t, "counting the bytes on the wire")
	start := func(name string) *namespace.Namespace {
		ns, err := namespace.New(name, namespace.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		// Addresses are there at once: nobody else has them.
		if err := ns.Sysctl("net.ipv6.conf.default.accept_dad", "0"); err != nil {
			t.Fatal(err)
		}
		return ns
	}
	router, laptop := start("router"), start("laptop")
	gateway := netip.MustParseAddr("10.88.1.1")
	both := func(a netip.Addr) []string { return []string{a.String() + "/24", world.Twin(a).String() + "/64"} }
	err := namespace.Cable(namespace.End{In: router, Name: leg, Addresses: both(gateway)},
		namespace.End{In: laptop, Name: "eth0", Addresses: both(world.LaptopAddress)})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if err := laptop.Gateway(f.of(gateway).AsSlice()); err != nil {
			t.Fatal(err)
		}
	}
	m, err := newMeter(router.FD())
	if err != nil {
		t.Fatal(err)
	}
	const text, udp = 100, 8
	for i, f := range families {
		header := []int64{20, 40}[i]
		for _, c := range []struct {
			class string
			to    netip.Addr
			port  uint16
		}{{tailscaled, world.Control, 3478}, {tailscaled, world.SecondPeerAddress, 443}, {questions, gateway, 53}} {
			before, err := m.read()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := laptop.DialContext(t.Context(), "udp", netip.AddrPortFrom(f.of(c.to), c.port).String())
			if err != nil {
				t.Fatal(err)
			}
			_, err = conn.Write(make([]byte, text))
			conn.Close()
			if err != nil {
				t.Fatal(err)
			}
			after, err := m.read()
			if err != nil {
				t.Fatal(err)
			}
			for _, class := range []string{tailscaled, questions, ygg} {
				want := int64(0)
				if class == c.class {
					want = header + udp + text
				}
				if got := after[class].Up - before[class].Up; got != want {
					t.Errorf("to %v: %s counts %d bytes, want %d", f.of(c.to), class, got, want)
				}
			}
		}
		// Yggdrasil's peers are told by TCP: a first packet is enough.
		before, err := m.read()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		conn, err := laptop.DialContext(ctx, "tcp", netip.AddrPortFrom(f.of(world.SecondPeerAddress), 443).String())
		cancel()
		if err == nil {
			conn.Close()
		}
		if after, err := m.read(); err != nil || after[ygg].Up == before[ygg].Up || after[tailscaled].Up != before[tailscaled].Up {
			t.Errorf("to a peer in the %d-byte family: %v, then %v (%v)", f.size, before, after, err)
		}
	}
}
