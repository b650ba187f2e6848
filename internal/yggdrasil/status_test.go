package yggdrasil

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"golang.org/x/sys/unix"
)

// testNode is a node without an interface and without peers.
func testNode(t *testing.T) (*core.Core, ed25519.PublicKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := core.New(&tls.Certificate{PrivateKey: key}, &logger{to: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c, pub
}

func serveAdmin(t *testing.T, c *core.Core) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	s, err := listenAdmin(t.Context(), path, c)
	if err != nil {
		t.Fatal(err)
	}
	go s.serve()
	t.Cleanup(func() { s.list.Close() })
	return path
}

func TestQuery(t *testing.T) {
	c, pub := testNode(t)
	path := serveAdmin(t, c)
	s, err := Query(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Address != Address(pub).String() || s.Up || s.Peer != "" {
		t.Errorf("status %+v", s)
	}
	if _, err := listenAdmin(t.Context(), path, c); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Errorf("a second node on the same socket: %v, want a refusal", err)
	}
	if _, err := Query(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody there: %v, want ErrNotRunning", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Query(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestAdminChangesNothing: what the library's socket would obey, ours refuses.
func TestAdminChangesNothing(t *testing.T) {
	c, _ := testNode(t)
	path := serveAdmin(t, c)
	for _, req := range []string{
		`{"request":"addPeer","arguments":{"uri":"tcp://192.0.2.1:1"}}`,
		`{"request":"removePeer","arguments":{"uri":"x"}}`,
		`{"request":"debug_remoteGetPeers","arguments":{"key":"00"}}`,
		`{"request":""}`, `{`, `[]`, `{"request":"` + strings.Repeat("x", maxRequest) + `"}`,
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.WriteString(conn, req)
			conn.(*net.UnixConn).CloseWrite()
		}()
		var r admin.AdminSocketResponse
		if err := json.NewDecoder(conn).Decode(&r); err != nil || r.Status != "error" {
			t.Errorf("%.60s: %+v, %v; want an error", req, r, err)
		}
		conn.Close()
	}
	if n := len(c.GetPeers()); n != 0 {
		t.Errorf("%d peers were added", n)
	}
}

// poor is a listener that fails a few times first.
type poor struct {
	net.Listener
	errs []error
}

func (l *poor) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return l.Listener.Accept()
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", err)}
}

// TestAdminWithoutFiles: who asks while there is no file for the connection waits
// and is answered; only closing the socket ends it.
func TestAdminWithoutFiles(t *testing.T) {
	c, _ := testNode(t)
	path := filepath.Join(t.TempDir(), "admin.sock")
	s, err := listenAdmin(t.Context(), path, c)
	if err != nil {
		t.Fatal(err)
	}
	s.list = &poor{s.list, []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM}}
	ended := make(chan bool)
	go func() { s.serve(); close(ended) }()
	if _, err := Query(t.Context(), path); err != nil {
		t.Error(err)
	}
	s.list.Close()
	<-ended
}

// TestAdminIdle: users who connect and say nothing keep neither those who ask nor
// a watcher out.
func TestAdminIdle(t *testing.T) {
	c, _ := testNode(t)
	path := filepath.Join(t.TempDir(), "admin.sock")
	s, err := listenAdmin(t.Context(), path, c)
	if err != nil {
		t.Fatal(err)
	}
	go s.serve()
	defer s.list.Close()
	told, ended := make(chan PeerState, 1), make(chan error, 1)
	go func() { ended <- Watch(t.Context(), path, func(p PeerState) { told <- p }) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	watches := func() bool {
		s.asking.mu.Lock()
		defer s.asking.mu.Unlock()
		return len(s.watching) == 1 && len(s.asking.conns) == 0
	}
	for !watches() {
		<-tick.C
	}
	var idle []net.Conn
	for range 2 * maxAdmin {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), adminTimeout/2) // the idle ones are there for all of it
	defer cancel()
	if _, err := Query(ctx, path); err != nil {
		t.Errorf("asking beside %d who say nothing: %v", len(idle), err)
	}
	idle[0].SetReadDeadline(time.Now().Add(adminTimeout / 2))
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the one that said nothing for longest: %v, want it hung up on", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the watcher was hung up on: %v", err)
	default:
	}
	for n := 0; len(told) == 0; n++ { // what is set before the first answer is not told
		s.board.set(PeerState{Peer: "edge-1", Late: n%2 == 0})
		<-tick.C
	}
}

func TestSummarize(t *testing.T) {
	self := &admin.GetSelfResponse{PublicKey: keyA, IPAddress: "200::1"}
	entry := func(name string, up, inbound bool) PeerEntry {
		return PeerEntry{Name: name, PeerEntry: admin.PeerEntry{Up: up, Inbound: inbound}}
	}
	s, err := summarize(self, &peersReply{Peers: []PeerEntry{
		entry("", true, true), entry("old", false, false), entry("edge-1", true, false), entry("", false, true),
	}})
	if err != nil || s.Peer != "edge-1" || !s.Up || s.Inbound != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"status":"success","request":{"request":"getself"},"response":{"key":"` + keyA + `","address":"200::1"}}`))
	f.Add([]byte(`{"status":"success","response":{"peers":[{"name":"e","up":true,"latency":-1}]}}`))
	f.Add([]byte(`{"status":"error","error":"no"}{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var self admin.GetSelfResponse
		var peers peersReply
		if readReply(json.NewDecoder(bytes.NewReader(data)), &self) != nil {
			self = admin.GetSelfResponse{IPAddress: "200::1"}
		}
		readReply(json.NewDecoder(bytes.NewReader(data)), &peers)
		if s, err := summarize(&self, &peers); (s == nil) == (err == nil) {
			t.Fatalf("%v, %v", s, err)
		}
	})
}
