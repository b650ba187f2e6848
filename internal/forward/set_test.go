package forward

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/mesh"
)

// TestReplace gives a running forwarder another set: what stays is not touched,
// what goes is reset, what comes is served.
func TestReplace(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	serve(t, netip.AddrPortFrom(yggAddr, port), greet("yggdrasil"))
	r1, r2 := routes()
	at := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 83, 0, last}) }
	service := func(name string, last byte, routes ...Route) Service {
		return Service{Name: name, Listen: at(last), Ports: []uint16{port}, Routes: routes}
	}
	addr := func(last byte) string { return netip.AddrPortFrom(at(last), port).String() }
	stays, goes, moves := service("stays.veilor", 11, r1), service("goes.veilor", 12, r1), service("moves.veilor", 13, r1)
	f := New([]Service{stays, goes, moves}, slog.New(slog.DiscardHandler), nil)
	var told sync.Map
	f.Tell(func(n News) { told.Store(n.Service, true) })
	run(t, f)
	open := func(last byte) (*net.TCPConn, *bufio.Reader) {
		c := dial(t, addr(last))
		r := bufio.NewReader(c)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		return c, r
	}
	kept, keptReader := open(11)
	gone, goneReader := open(12)
	moved, movedReader := open(13)

	// Somebody connects all the time to a service that gets other routes: the port
	// is never closed.
	stop, refused := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(refused)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.Dial("tcp", addr(13))
			if errors.Is(err, unix.ECONNREFUSED) {
				refused <- err
				return
			}
			if err == nil {
				c.Close()
			}
		}
	}()
	moves.Routes = []Route{r2}
	comes := service("comes.veilor", 14, r1, r2)
	for range 3 { // again changes nothing
		if err := f.Replace(t.Context(), []Service{comes, moves, stays}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		moves.Routes = []Route{{mesh.Yggdrasil, "lo", []netip.Addr{tailnetAddr, yggAddr}[i%2]}}
		if err := f.Replace(t.Context(), []Service{comes, moves, stays}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-refused; err != nil {
		t.Errorf("while its routes changed: %v", err)
	}

	if _, err := io.WriteString(kept, "still here\n"); err != nil {
		t.Error(err)
	}
	if line, err := keptReader.ReadString('\n'); line != "still here\n" {
		t.Errorf("a service that stays: %q, %v", line, err)
	}
	for name, r := range map[string]*bufio.Reader{"goes": goneReader, "moves": movedReader} {
		if _, err := r.ReadString('\n'); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a service that %s: %v, want a reset", name, err)
		}
	}
	gone.Close()
	moved.Close()
	if _, err := net.Dial("tcp", addr(12)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a service that is gone: %v, want a refusal", err)
	}
	if got, _ := who(t, addr(13)); got != "yggdrasil" {
		t.Errorf("a service with another route: %s", got)
	}
	if got, _ := who(t, addr(14)); got != "tailnet" {
		t.Errorf("a new service: %s", got)
	}
	if _, ok := told.Load("comes.veilor"); !ok {
		t.Error("a new service tells nothing")
	}

	// A port that another program has, and quiet.
	other, err := net.Listen("tcp", addr(15))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f.Quiet(true)
	late := service("late.veilor", 16, r1)
	if err := f.Replace(t.Context(), []Service{stays, service("taken.veilor", 15, r1), late}); err == nil {
		t.Error("a port that another has was taken")
	}
	if got, _ := who(t, addr(16)); got == "tailnet" {
		t.Error("a service that comes into the quiet is carried")
	}
	f.Quiet(false)
	if got, _ := who(t, addr(16)); got != "tailnet" {
		t.Errorf("beside one whose port is taken: %s", got)
	}
	if names := f.Names(); len(names) != 3 {
		t.Errorf("services %v", names)
	}
	other.Close()
	if err := f.Replace(t.Context(), []Service{stays, service("taken.veilor", 15, r1), late}); err != nil {
		t.Error(err)
	}
	if got, _ := who(t, addr(15)); got != "tailnet" {
		t.Errorf("a port that has become free: %s", got)
	}
}
