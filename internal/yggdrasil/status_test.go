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
	"path/filepath"
	"strings"
	"testing"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
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
