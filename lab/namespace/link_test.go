package namespace_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

func newNamespace(t *testing.T, name string) *namespace.Namespace {
	t.Helper()
	ns, err := namespace.New(name, namespace.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// TestBridgeKeepsItsAddress: whoever has a bridge for a router does not lose it when
// another comes or goes.
func TestBridgeKeepsItsAddress(t *testing.T) {
	gate.Root(t, "the bridges of the lab")
	router, laptop := newNamespace(t, "router"), newNamespace(t, "laptop")
	if err := router.Bridge("br0"); err != nil {
		t.Fatal(err)
	}
	address := func() (a net.HardwareAddr) {
		err := router.Do(func() error {
			i, err := net.InterfaceByName("br0")
			if err == nil {
				a = i.HardwareAddr
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	before := address()
	for i := range 4 { // a port's own address is lower or higher by chance
		port := fmt.Sprintf("port%d", i)
		if err := namespace.Cable(namespace.End{In: router, Name: port}, namespace.End{In: laptop, Name: fmt.Sprintf("eth%d", i)}); err != nil {
			t.Fatal(err)
		}
		if err := router.Plug("br0", port); err != nil {
			t.Fatal(err)
		}
		if now := address(); !bytes.Equal(before, now) {
			t.Errorf("with %d ports its address is %v, it was %v", i+1, now, before)
		}
	}
}

// TestLimit: what leaves at once is the burst, and the rest as fast as it may.
func TestLimit(t *testing.T) {
	gate.Root(t, "the limits of the lab")
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	if err := namespace.Cable(namespace.End{In: a, Name: "eth0", Addresses: []string{"10.0.0.1/24"}},
		namespace.End{In: b, Name: "eth0", Addresses: []string{"10.0.0.2/24"}}); err != nil {
		t.Fatal(err)
	}
	const rate, size = 1 << 20, 2 << 20
	for _, limit := range []uint64{rate, 0} {
		if err := a.Limit("eth0", limit); err != nil {
			t.Fatal(err)
		}
		l, err := b.Listen("tcp", "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		go func() {
			if c, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:80"); err == nil {
				c.Write(make([]byte, size))
				c.Close()
			}
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, c)
		c.Close()
		l.Close()
		if err != nil || n != size {
			t.Fatalf("%d bytes, %v", n, err)
		}
		// Not faster: slower any machine may be.
		if took := time.Since(began); limit > 0 && took < time.Second {
			t.Errorf("%d bytes took %v at %d a second", size, took, limit)
		}
	}
	if err := a.Limit("eth1", rate); err == nil {
		t.Error("an interface that is not there is limited")
	}
}
