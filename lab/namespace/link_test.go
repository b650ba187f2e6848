package namespace_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// TestBridgeKeepsItsAddress: whoever has a bridge for a router does not lose it when
// another comes or goes.
func TestBridgeKeepsItsAddress(t *testing.T) {
	gate.Root(t, "the bridges of the lab")
	make := func(name string) *namespace.Namespace {
		ns, err := namespace.New(name, namespace.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		return ns
	}
	router, laptop := make("router"), make("laptop")
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
