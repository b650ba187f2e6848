package meshsock

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// start serves and returns a client and what the socket is.
func start(t *testing.T, allow func(uint32) bool) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		uid, _ := User(r)
		Answer(w, uid)
	})
	mux.HandleFunc("POST /do", RootOnly(func(w http.ResponseWriter, r *http.Request) {
		if json.NewDecoder(r.Body).Decode(new(string)) != nil {
			http.Error(w, "nonsense", http.StatusBadRequest)
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- Server{Handler: mux, Allow: allow}.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return Client{path}
}

func TestAsk(t *testing.T) {
	c := start(t, func(uint32) bool { return true })
	var uid uint32
	if err := c.Get(t.Context(), "/who", &uid); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), "/nothing", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get = %v", err)
	}
	err := c.Post(t.Context(), "/do", "now")
	if uid == 0 && err != nil || uid != 0 && (err == nil || !strings.Contains(err.Error(), "only root may do that")) {
		t.Errorf("as user %d: %v", uid, err)
	}
	if uid == 0 {
		if err := c.Post(t.Context(), "/do", strings.Repeat("x", 2*maxQuestion)); err == nil {
			t.Error("a question without end was read")
		}
	}
	if _, err := Listen(t.Context(), c.Path); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Errorf("taking a socket that is in use: %v", err)
	}
}

func TestStranger(t *testing.T) {
	c := start(t, func(uint32) bool { return false })
	if err := c.Get(t.Context(), "/who", new(uint32)); err == nil || !strings.Contains(err.Error(), "only root and people who log in") {
		t.Errorf("Get = %v", err)
	}
}

func TestNobody(t *testing.T) {
	c := Client{filepath.Join(t.TempDir(), "none")}
	if err := c.Get(t.Context(), "/who", nil); err == nil || !strings.Contains(err.Error(), "nobody listens on ") {
		t.Errorf("Get = %v", err)
	}
}

// TestIdleClients: clients that connect and ask nothing do not pile up, and do
// not keep others out for long.
func TestIdleClients(t *testing.T) {
	c := start(t, func(uint32) bool { return true })
	var idle []net.Conn
	for range maxOpen + 10 {
		conn, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	// They are taken in the order in which they came, so the last find it full.
	for i, conn := range idle[maxOpen:] {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		var ne net.Error
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("connection %d was not refused: %v", maxOpen+i+1, err)
		}
	}
	for _, conn := range idle {
		conn.Close()
	}
	for range 100 { // the server sees the hangups in its own time
		if err := c.Get(t.Context(), "/who", new(uint32)); err == nil {
			return
		}
	}
	t.Error("nobody can ask any more")
}

// crowd is a listener to whom so many come, one after the other.
type crowd struct {
	net.Listener
	left   int
	closed int
	// depths are how many calls deep Accept was.
	depths map[int]bool
}

func (l *crowd) Accept() (net.Conn, error) {
	l.depths[runtime.Callers(0, make([]uintptr, 500))] = true
	if l.left--; l.left < 0 {
		return nil, net.ErrClosed
	}
	return refusedConn{l: l}, nil
}

type refusedConn struct {
	net.Conn
	l *crowd
}

func (c refusedConn) Close() error { c.l.closed++; return nil }

// TestRefused: a user who connects again and again while it is full is hung up on
// and costs nothing that stays.
func TestRefused(t *testing.T) {
	const many = 100
	l := &crowd{left: many, depths: map[int]bool{}}
	if c, err := (&bounded{l, make(chan struct{})}).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, %v", c, err)
	}
	if l.closed != many || len(l.depths) != 1 {
		t.Errorf("%d of %d were hung up on, at %d depths of calls; want all, at one", l.closed, many, len(l.depths))
	}
}
