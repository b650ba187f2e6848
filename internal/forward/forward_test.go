package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/mesh"
)

var (
	tailnetAddr = netip.MustParseAddr("127.0.0.2")
	yggAddr     = netip.MustParseAddr("127.0.0.3")
	serviceAddr = netip.MustParseAddr("127.83.0.1")
)

// origin is a server on one address that counts connections and the bytes it
// got before serve took over.
type origin struct {
	*net.TCPListener
	conns, bytes atomic.Int64
}

// serve answers every connection with handle.
func serve(t testing.TB, addr netip.AddrPort, handle func(*net.TCPConn)) *origin {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{TCPListener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			o.conns.Add(1)
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return o
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// greet says name and then echoes.
func greet(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		io.WriteString(c, name+"\n")
		io.Copy(c, c)
	}
}

// freePort is a port that is free on all test addresses.
func freePort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// blackhole is an address whose handshakes are never answered, without any
// privilege: a listener whose backlog is full drops SYNs.
func blackhole(t testing.TB, addr netip.AddrPort) (open func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	closed := false
	open = func() {
		if !closed {
			unix.Close(fd)
		}
		closed = true
	}
	t.Cleanup(open)
	for range 4 {
		c, err := net.DialTimeout("tcp", addr.String(), 200*time.Millisecond)
		if err != nil {
			return open
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the kernel answers although the backlog is full")
	return nil
}

// start runs a forwarder for one service and returns where to dial.
func start(t testing.TB, port uint16, routes ...Route) (*Forwarder, string) {
	t.Helper()
	f := New([]Service{{Name: "x.veilor", Listen: serviceAddr, Ports: []uint16{port}, Routes: routes}}, slog.New(slog.DiscardHandler), nil)
	run(t, f)
	return f, netip.AddrPortFrom(serviceAddr, port).String()
}

// run serves until the test ends.
func run(t testing.TB, f *Forwarder) {
	t.Helper()
	if err := f.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

func routes() (tailnet, ygg Route) {
	return Route{mesh.Tailnet, "lo", tailnetAddr}, Route{mesh.Yggdrasil, "lo", yggAddr}
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(15 * time.Second))
	return c.(*net.TCPConn)
}

// who dials and reads which origin greets.
func who(t testing.TB, addr string) (string, time.Duration) {
	t.Helper()
	began := time.Now()
	c, err := net.Dial("tcp", addr)
	if err != nil { // a reset can be as quick as that
		return "error: " + err.Error(), time.Since(began)
	}
	defer c.Close()
	c.SetDeadline(began.Add(15 * time.Second))
	line := make([]byte, 64)
	n, err := c.Read(line)
	if err != nil {
		return "error: " + err.Error(), time.Since(began)
	}
	return strings.TrimSpace(string(line[:n])), time.Since(began)
}

func TestPrefersTailnet(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	ygg := serve(t, netip.AddrPortFrom(yggAddr, port), greet("yggdrasil"))
	r1, r2 := routes()
	f, addr := start(t, port, r1, r2)
	for range 20 {
		if got, _ := who(t, addr); got != "tailnet" {
			t.Fatalf("connected over %s", got)
		}
	}
	if n := ygg.conns.Load(); n != 0 {
		t.Errorf("yggdrasil was dialled %d times while the tailnet answered", n)
	}
	st := f.Status(t.Context())[0]
	if st.Active != mesh.Tailnet || st.Layers[1].State != mesh.Up {
		t.Errorf("status = %+v; want tailnet, with the fallback tried", st)
	}
}

func TestFailsOver(t *testing.T) {
	port := freePort(t)
	open := blackhole(t, netip.AddrPortFrom(tailnetAddr, port))
	serve(t, netip.AddrPortFrom(yggAddr, port), greet("yggdrasil"))
	r1, r2 := routes()
	f, addr := start(t, port, r1, r2)

	got, took := who(t, addr)
	if got != "yggdrasil" || took < mesh.Stagger || took > mesh.Stagger+500*time.Millisecond {
		t.Fatalf("first connection: %s after %v; want yggdrasil after a little more than %v", got, took, mesh.Stagger)
	}
	waitFor(t, func() bool { return state(f, mesh.Tailnet) == mesh.Suspect }, "the tailnet to be suspect")
	if got, took := who(t, addr); got != "yggdrasil" || took > mesh.Stagger {
		t.Fatalf("connection while the tailnet is suspect: %s after %v", got, took)
	}
	waitFor(t, func() bool { return state(f, mesh.Tailnet) == mesh.Down }, "the tailnet to be down")

	open()
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	waitFor(t, func() bool { return f.services[0].status().Active == mesh.Tailnet }, "the tailnet to be back")
	if got, _ := who(t, addr); got != "tailnet" {
		t.Fatalf("connected over %s after the tailnet came back", got)
	}
}

func TestAbsentInterface(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(yggAddr, port), greet("yggdrasil"))
	_, r2 := routes()
	f, addr := start(t, port, Route{mesh.Tailnet, "veilor-none0", tailnetAddr}, r2)
	if got, took := who(t, addr); got != "yggdrasil" || took > mesh.Stagger/2 {
		t.Errorf("%s after %v; want yggdrasil at once", got, took)
	}
	st := f.Status(t.Context())[0]
	if h := st.Layers[0]; h.State != mesh.Off || !strings.Contains(h.Err, "no interface veilor-none0") {
		t.Errorf("tailnet = %+v", h)
	}
}

// TestNothingAnswers: the client is told at once when every layer refuses.
func TestNothingAnswers(t *testing.T) {
	port := freePort(t)
	r1, _ := routes()
	f, addr := start(t, port, r1, Route{mesh.Yggdrasil, "veilor-none0", yggAddr})
	if got, took := who(t, addr); !strings.Contains(got, "connection reset") || took > 2*time.Second {
		t.Errorf("%s after %v; want a reset at once", got, took)
	}
	st := f.Status(t.Context())[0]
	if st.Active != "" || st.Layers[0].Err != "connection refused" {
		t.Errorf("status = %+v", st)
	}
}

// TestLateAnswer: a client that waits is served when a layer comes back.
func TestLateAnswer(t *testing.T) {
	port := freePort(t)
	open := blackhole(t, netip.AddrPortFrom(tailnetAddr, port))
	r1, _ := routes()
	_, addr := start(t, port, r1)
	got := make(chan string)
	go func() { s, _ := who(t, addr); got <- s }()
	timer := time.NewTimer(1500 * time.Millisecond)
	<-timer.C
	open()
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	if s := <-got; s != "tailnet" {
		t.Errorf("the waiting client got %s", s)
	}
}

// TestOneLayerOnly: bytes that a client sends before any layer has answered
// reach exactly one of them.
func TestOneLayerOnly(t *testing.T) {
	port := freePort(t)
	var got [2]bytes.Buffer
	done := make(chan int, 4)
	sink := func(i int) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			io.Copy(&got[i], c)
			done <- i
		}
	}
	// Both layers lost: they are raced at once.
	r1, r2 := routes()
	f, addr := start(t, port, r1, r2)
	for _, l := range mesh.Order {
		f.services[0].on(mesh.Event{Layer: l, Kind: mesh.Absent, At: time.Now()})
		f.services[0].on(mesh.Event{Layer: l, Kind: mesh.Begun, At: time.Now()})
	}
	serve(t, netip.AddrPortFrom(tailnetAddr, port), sink(0))
	serve(t, netip.AddrPortFrom(yggAddr, port), sink(1))
	c := dial(t, addr)
	io.WriteString(c, "secret")
	c.CloseWrite()
	<-done
	<-done
	if a, b := got[0].String(), got[1].String(); a+b != "secret" {
		t.Errorf("tailnet got %q, yggdrasil got %q; want it on one of them", a, b)
	}
}

func TestHalfClose(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // until the client's FIN
		fmt.Fprintf(c, "%d bytes", len(all))
	})
	r1, _ := routes()
	_, addr := start(t, port, r1)
	c := dial(t, addr)
	data := make([]byte, 3<<20)
	rand.Read(data)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	answer, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d bytes", len(data)); err != nil || string(answer) != want {
		t.Errorf("answer = %q, %v; want %q", answer, err, want)
	}
}

// TestBackpressure: a server that does not read stops the writer.
func TestBackpressure(t *testing.T) {
	port := freePort(t)
	release := make(chan struct{})
	serve(t, netip.AddrPortFrom(tailnetAddr, port), func(*net.TCPConn) { <-release })
	defer close(release)
	r1, _ := routes()
	_, addr := start(t, port, r1)
	c := dial(t, addr)
	c.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := io.Copy(c, io.LimitReader(zeros{}, 1<<30))
	if err == nil {
		t.Fatalf("wrote %d bytes that nobody reads", n)
	}
	if n > 64<<20 {
		t.Errorf("%d MiB are buffered somewhere", n>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestResetsWhenDown(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	r1, _ := routes()
	f, addr := start(t, port, r1)
	c := dial(t, addr)
	if _, err := c.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if n := f.services[0].status().Conns; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	f.services[0].on(mesh.Event{Layer: mesh.Tailnet, Kind: mesh.Absent, At: time.Now(), Err: "gone"})
	_, err := c.Read(make([]byte, 8))
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("reading on a dead layer = %v, want a reset", err)
	}
	waitFor(t, func() bool { return f.services[0].status().Conns == 0 }, "the connection to be forgotten")
}

func TestPassesResetOn(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})
	r1, _ := routes()
	_, addr := start(t, port, r1)
	c := dial(t, addr)
	io.WriteString(c, "!")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read = %v, want the server's reset", err)
	}
}

func TestLimit(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	r1, _ := routes()
	f, addr := start(t, port, r1)
	s := f.services[0]
	for len(s.slots) < cap(s.slots) {
		s.slots <- struct{}{}
	}
	if got, _ := who(t, addr); !strings.Contains(got, "connection reset") {
		t.Errorf("over the limit: %s", got)
	}
	<-s.slots
	if got, _ := who(t, addr); got != "tailnet" {
		t.Errorf("below the limit again: %s", got)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.83.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	other := freePort(t)
	f := New([]Service{{Name: "x.veilor", Listen: serviceAddr, Ports: []uint16{other, port}}}, slog.New(slog.DiscardHandler), nil)
	err = f.Listen(t.Context())
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "x.veilor") {
		t.Fatalf("Listen = %v", err)
	}
	if l, err := net.Listen("tcp", fmt.Sprintf("127.83.0.1:%d", other)); err != nil {
		t.Errorf("the other port was left open: %v", err)
	} else {
		l.Close()
	}
}

// TestStatusOfSilence: an idle service whose layer went silent is not
// reported as reachable.
func TestStatusOfSilence(t *testing.T) {
	port := freePort(t)
	blackhole(t, netip.AddrPortFrom(tailnetAddr, port))
	r1, _ := routes()
	f, _ := start(t, port, r1)
	began := time.Now()
	st := f.Status(t.Context())[0]
	if st.Active != "" || st.Layers[0].State != mesh.Suspect {
		t.Errorf("status = %+v", st)
	}
	if took := time.Since(began); took > askLimit+500*time.Millisecond {
		t.Errorf("status took %v", took)
	}
}

func state(f *Forwarder, l mesh.Layer) mesh.State {
	s := f.services[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mesh.State(l)
}

func waitFor(t testing.TB, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout.C:
			t.Fatalf("waiting for %s: 10 s are over", what)
		}
	}
}
