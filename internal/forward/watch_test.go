package forward

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/mesh"
)

// TestWatchJudges goes through what the kernel may say of a connection.
func TestWatchJudges(t *testing.T) {
	t0 := time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return t0.Add(-d) }
	type verdict struct {
		Again       bool
		Alive, Dead bool
	}
	for _, tt := range []struct {
		name         string
		sent, answer time.Duration // ago
		burst        int
		quiet        time.Duration // of the kernel
		want         verdict
	}{
		{"a request is answered", 100 * time.Millisecond, 50 * time.Millisecond, 900, 50 * time.Millisecond, verdict{true, true, false}},
		{"a request was answered", 3 * time.Second, 2 * time.Second, 900, 2 * time.Second, verdict{false, false, false}},
		{"a request waits", 1100 * time.Millisecond, time.Minute, 0, time.Minute, verdict{true, false, true}},
		{"a request was acknowledged and waits", 1100 * time.Millisecond, time.Minute, 0, 1050 * time.Millisecond, verdict{true, false, true}},
		{"a request has just been sent", 100 * time.Millisecond, time.Minute, 0, time.Minute, verdict{true, false, false}},
		{"an upload is acknowledged", 10 * time.Millisecond, time.Minute, 0, 20 * time.Millisecond, verdict{true, true, false}},
		{"a download flows", time.Minute, 10 * time.Millisecond, 1 << 20, 10 * time.Millisecond, verdict{true, true, false}},
		{"a download stalls", time.Minute, 1100 * time.Millisecond, 1 << 20, 1100 * time.Millisecond, verdict{true, false, true}},
		{"silence for an hour", time.Hour, 2 * time.Hour, 0, time.Hour, verdict{false, false, false}},
	} {
		w := &watch{now: func() time.Time { return t0 }, sent: ago(tt.sent), answer: ago(tt.answer), burst: tt.burst, expect: expect}
		again, alive, dead := w.judge(t0, sign{ago: tt.quiet}, true)
		if diff := cmp.Diff(tt.want, verdict{again > 0, alive, dead}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestRepetitionIsNoLife: a server that says its last words again and again, since it
// does not hear that they have arrived, is silent.
func TestRepetitionIsNoLife(t *testing.T) {
	here, there := connected(t)
	deaf(t, there) // from here on it hears nothing
	if _, err := io.WriteString(there, "answer"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(here, make([]byte, len("answer"))); err != nil {
		t.Fatal(err)
	}
	life := lifeOf(here)
	first, ok := life()
	if !ok {
		t.Fatal("the kernel says nothing of the connection")
	}
	now := time.Now()
	w := &watch{now: time.Now, sent: now, expect: expect}
	w.judge(now, first, true)
	// The kernel counts a repetition as something that came.
	var s sign
	waitFor(t, func() bool { s, _ = life(); return segments(t, here) >= 4 && s.ago < expect/4 }, "repetitions")
	later := now.Add(2 * expect)
	if _, alive, dead := w.judge(later, s, true); alive || !dead {
		t.Errorf("after repetitions only: alive %v, dead %v", alive, dead)
	}
	if last := now.Add(-first.ago); !w.last.Equal(last) {
		t.Errorf("the last sign of life came %v after the answer", w.last.Sub(last))
	}
}

// connected makes a connection over loopback.
func connected(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// deaf makes the kernel drop every packet that arrives for c.
func deaf(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// segments is how many packets have arrived for c.
func segments(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Segs_in
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWatchAsksLessAndLess: a server that thinks for minutes is asked a few
// times, not every second.
func TestWatchAsksLessAndLess(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)
	start := now
	w := &watch{now: func() time.Time { return now }, sent: now, expect: expect}
	asked := 0
	again := expect
	for again > 0 && now.Sub(start) < time.Hour {
		now = now.Add(again)
		var dead bool
		again, _, dead = w.judge(now, sign{ago: now.Sub(start)}, true)
		if dead {
			asked++
		}
	}
	if asked < 5 || asked > 12 {
		t.Errorf("asked %d times", asked)
	}
	if d := now.Sub(start); d > watchFor+2*maxExpect {
		t.Errorf("watched for %v", d)
	}
}

// TestIdleCostsNothing: no timer runs for a connection on which nothing moves.
func TestIdleCostsNothing(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	r1, _ := routes()
	f, addr := start(t, port, r1)
	c := dial(t, addr)
	if _, err := c.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	idle := func() bool {
		s := f.services[0]
		s.mu.Lock()
		defer s.mu.Unlock()
		for fl := range s.flows[mesh.Tailnet] {
			fl.watch.mu.Lock()
			defer fl.watch.mu.Unlock()
			return !fl.watch.armed
		}
		return false
	}
	waitFor(t, idle, "the connection to be left alone")
}

// TestWaitingProbes: a connection that waits for an answer makes its layer be
// asked, once a second of silence is over, and a layer that does not answer is
// given up and the connection reset, without any other connection.
func TestWaitingProbes(t *testing.T) {
	port := freePort(t)
	got := make(chan bool, 1)
	o := serve(t, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) {
		c.Read(make([]byte, 16))
		got <- true
		io.Copy(io.Discard, c) // thinks for ever
	})
	r1, _ := routes()
	f, addr := start(t, port, r1)
	c := dial(t, addr)
	io.WriteString(c, "request")
	<-got
	waitFor(t, func() bool { return o.conns.Load() >= 2 }, "a probe")
	if st := state(f, mesh.Tailnet); st != mesh.Up {
		t.Errorf("a server that thinks makes the layer %v", st)
	}
	if n := f.services[0].status().Conns; n != 1 {
		t.Errorf("%d connections, want the one", n)
	}
	// Now nobody answers any more.
	o.Close()
	blackhole(t, netip.AddrPortFrom(tailnetAddr, port))
	io.WriteString(c, "more")
	waitFor(t, func() bool { return state(f, mesh.Tailnet) != mesh.Up }, "the layer to be suspect")
}

// TestQuiet: no new connection, no old one, no probe.
func TestQuiet(t *testing.T) {
	port := freePort(t)
	o := serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	r1, _ := routes()
	f, addr := start(t, port, r1)
	c := dial(t, addr)
	if _, err := c.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	f.Quiet(true)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("an open connection goes on")
	}
	before := o.conns.Load()
	if got, _ := who(t, addr); got == "tailnet" {
		t.Error("a new connection is carried")
	}
	f.Status(t.Context())
	if checks, ok := f.Check(t.Context(), "x.veilor"); !ok || checks[0].Err == nil {
		t.Errorf("Check = %+v", checks)
	}
	if n := o.conns.Load(); n != before {
		t.Errorf("%d connections were made", n-before)
	}
	f.Quiet(false)
	if got, _ := who(t, addr); got != "tailnet" {
		t.Errorf("after it: %s", got)
	}
}

func TestCanary(t *testing.T) {
	port := freePort(t)
	cert, roots := certificate(t, "x.veilor")
	ygg := serve(t, netip.AddrPortFrom(yggAddr, port), secure(cert, func(net.Conn) {}))
	_, r2 := routes()
	serve(t, netip.AddrPortFrom(tailnetAddr, port), secure(cert, func(net.Conn) {}))
	f, _ := startTLS(t, port, roots, slog.New(slog.DiscardHandler), Route{mesh.Tailnet, "lo", tailnetAddr}, r2)
	s := f.services[0]
	if checks, _ := f.Check(t.Context(), "x.veilor"); checks[0].Err != nil { // which puts the tailnet in use
		t.Fatal(checks[0].Err)
	}
	if next := s.tryFallback(t.Context()); next < canaryMin || next > canaryMax {
		t.Errorf("next after %v", next)
	}
	if c := s.status().Canary; c.Layer != mesh.Yggdrasil || c.Failures != 0 || c.Took <= 0 || c.Err != "" {
		t.Errorf("good: %+v", c)
	}
	ygg.Close()
	if next := s.tryFallback(t.Context()); next < canaryAgain || next > 2*canaryAgain {
		t.Errorf("a failure is tried again after %v", next)
	}
	s.tryFallback(t.Context())
	if c := s.status().Canary; c.Failures != Rotten || c.Err == "" {
		t.Errorf("rotten: %+v", c)
	}
}

// TestCheckNamesTheStranger: a server that cannot prove the name fails, although
// it answers.
func TestCheckNamesTheStranger(t *testing.T) {
	port := freePort(t)
	cert, _ := certificate(t, "evil.example")
	_, roots := certificate(t, "x.veilor")
	serve(t, netip.AddrPortFrom(tailnetAddr, port), secure(cert, func(net.Conn) {}))
	r1, _ := routes()
	f, _ := startTLS(t, port, roots, slog.New(slog.DiscardHandler), r1)
	checks, ok := f.Check(t.Context(), "x.veilor")
	if !ok || len(checks) != 1 || checks[0].Connect == 0 || checks[0].Handshake != 0 || checks[0].Err == nil {
		t.Errorf("Check = %+v, %v", checks, ok)
	}
	if _, ok := f.Check(t.Context(), "y.veilor"); ok {
		t.Error("a service that does not exist was tried")
	}
}

func TestLinkChanged(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), greet("tailnet"))
	r1, _ := routes()
	f, addr := start(t, port, r1)
	if got, _ := who(t, addr); got != "tailnet" {
		t.Fatal(got)
	}
	f.LinkChanged(t.Context())
	waitFor(t, func() bool { return state(f, mesh.Tailnet) == mesh.Up }, "the layer to be asked")
	f.services[0].Routes[0].Interface = "veilor-none0"
	f.LinkChanged(t.Context())
	if st := state(f, mesh.Tailnet); st != mesh.Off {
		t.Errorf("without its interface it is %v", st)
	}
}
