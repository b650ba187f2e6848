package wss

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// site is a Server behind a TLS terminator, as an edge is.
type site struct {
	target Target
	roots  *x509.CertPool
	nodes  chan net.Conn // the node's side of every transport
	hello  chan *tls.ClientHelloInfo
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{nodes: make(chan net.Conn, 10), hello: make(chan *tls.ClientHelloInfo, 10)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	server := &Server{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Admit: func(r *http.Request) (Node, error) {
			if r.Header.Get("Cookie") == "stranger" {
				return nil, errors.New("a stranger")
			}
			return func(context.Context) (net.Conn, error) {
				a, b := net.Pipe()
				s.nodes <- b
				return a, nil
			}, nil
		},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: l.Addr().String()}))
	front.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		s.hello <- h
		return nil, nil
	}}
	front.StartTLS()
	t.Cleanup(front.Close)
	s.target = Target{
		URL:     &url.URL{Scheme: "wss", Host: "example.com", Path: "/"},
		Address: netip.MustParseAddrPort(front.Listener.Addr().String()),
		Verify:  true,
	}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(front.Certificate()) // httptest's is valid for example.com
	return s
}

func TestBridgeCarriesBytesBothWays(t *testing.T) {
	s := newSite(t)
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	if h := <-s.hello; h.ServerName != "example.com" || strings.Join(h.SupportedProtos, " ") != "http/1.1" {
		t.Errorf("hello with SNI %q and ALPN %q, want example.com and http/1.1", h.ServerName, h.SupportedProtos)
	}
	far := <-s.nodes
	near, local := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- c.Bridge(t.Context(), local, nil) }()

	want := make([]byte, 1<<20)
	rand.Read(want)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go way[0].Write(want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("other bytes arrived, or an error: %v", err)
		}
	}
	near.Close()
	if err := <-done; !errors.Is(err, ErrLocal) {
		t.Errorf("ended with %v, want ErrLocal", err)
	}
	if _, err := far.Read(want); err == nil {
		t.Error("the far node's side is still open")
	}
}

func TestBridgeEndsWithTheRemote(t *testing.T) {
	s := newSite(t)
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	(<-s.nodes).Close()
	_, local := net.Pipe()
	if err := c.Bridge(t.Context(), local, nil); !errors.Is(err, ErrRemote) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ended with %v, want ErrRemote", err)
	}
}

func TestBridgeEndsWithItsContext(t *testing.T) {
	s := newSite(t)
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("leaving")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, local := net.Pipe()
	if err := c.Bridge(ctx, local, nil); !errors.Is(err, why) {
		t.Errorf("ended with %v, want %v", err, why)
	}
}

// TestServerGivesUpOnSilence has a client that never reads, and so never
// answers a ping.
func TestServerGivesUpOnSilence(t *testing.T) {
	s := newSite(t)
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	node := <-s.nodes
	began := time.Now()
	node.Write([]byte("anybody there?"))
	node.SetReadDeadline(began.Add(10 * time.Second))
	if _, err := node.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v, want EOF", err)
	}
	if took := time.Since(began); took < echoDead || took > echoDead+2*time.Second {
		t.Errorf("gave up after %v, want about %v", took, echoDead)
	}
}

func TestServerKeepsAnIdleClient(t *testing.T) {
	s := newSite(t)
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	node := <-s.nodes
	near, local := net.Pipe()
	go c.Bridge(t.Context(), local, nil)
	go node.Write([]byte("no answer needed"))
	io.ReadFull(near, make([]byte, 16))
	node.SetReadDeadline(time.Now().Add(echoDead + time.Second))
	var ne net.Error
	if _, err := node.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("read: %v, want the deadline: the client answers pings", err)
	}
}

func TestDialErrors(t *testing.T) {
	s := newSite(t)
	plain := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := websocket.Accept(w, r, &websocket.AcceptOptions{}); err == nil {
			defer c.CloseNow()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(other.Close)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	at := func(addr string) Target {
		u := *s.target.URL
		return Target{URL: &u, Address: netip.MustParseAddrPort(addr)}
	}
	named := s.target
	named.URL = &url.URL{Scheme: "wss", Host: "edge.example.org", Path: "/"}
	for _, c := range []struct {
		name   string
		target Target
		want   string
	}{
		{"a certificate for another name", named, "not edge.example.org"},
		{"a site without WebSocket", at(plain.Listener.Addr().String()), `the server answered "404 Not Found`},
		{"a WebSocket that is not Yggdrasil's", at(other.Listener.Addr().String()), "does not speak ygg-ws"},
		{"nobody", at(gone.Addr().String()), "connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), c.target)
			if err == nil {
				conn.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want it to contain %q", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
		})
	}
	t.Run("an unknown authority", func(t *testing.T) {
		if _, err := new(Dialer).Dial(t.Context(), s.target); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("error %v, want unknown authority", err)
		}
	})
	t.Run("no verification", func(t *testing.T) {
		u := s.target
		u.Verify = false
		conn, err := new(Dialer).Dial(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	})
}

func TestServerHealth(t *testing.T) {
	w := httptest.NewRecorder()
	new(Server).ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 || w.Body.String() != "OK" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestRefusedBeforeTheUpgrade(t *testing.T) {
	s := newSite(t)
	s.target.Header = http.Header{"Cookie": {"stranger"}}
	_, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusNotFound || refused.Header.Get("Date") == "" {
		t.Fatalf("%v (%+v), want a 404 with the time", err, refused)
	}
	s.target.Header = http.Header{"Cookie": {"friend"}}
	c, err := (&Dialer{Roots: s.roots}).Dial(t.Context(), s.target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go c.Bridge(t.Context(), <-s.nodes, nil)
	if idle, err := c.Idle(); err != nil || idle > time.Minute {
		t.Errorf("idle for %v, %v", idle, err)
	}
}
