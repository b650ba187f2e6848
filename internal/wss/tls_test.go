package wss

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"slices"
	"testing"
)

// TestHello reads the hello as a server does.
func TestHello(t *testing.T) {
	heard := func(host string) *tls.ClientHelloInfo {
		t.Helper()
		got := make(chan *tls.ClientHelloInfo, 1)
		front := httptest.NewUnstartedServer(nil)
		front.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			got <- h
			return nil, nil
		}}
		front.StartTLS()
		defer front.Close()
		c, err := net.Dial("tcp", front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := handshake(t.Context(), c, host, nil, false); err != nil {
			t.Fatal(err)
		}
		return <-got
	}
	h := heard("edge.example")
	if h.ServerName != "edge.example" || !slices.Equal(h.SupportedProtos, []string{"http/1.1"}) {
		t.Errorf("SNI %q, ALPN %q", h.ServerName, h.SupportedProtos)
	}
	// Browsers put a reserved value first (RFC 8701), Go does not.
	if s := h.CipherSuites[0]; s&0x0f0f != 0x0a0a {
		t.Errorf("the first cipher suite is %#x, a browser's is reserved", s)
	}
	for _, id := range h.Extensions {
		if id == 17513 || id == 17613 {
			t.Errorf("extension %d is for HTTP/2", id)
		}
	}
	if h := heard("192.0.2.7"); h.ServerName != "" {
		t.Errorf("an address is named: %q", h.ServerName)
	}
}

func TestHandshakeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		b.Read(make([]byte, 1))
		cancel()
	}()
	if _, err := handshake(ctx, a, "edge.example", nil, true); err == nil {
		t.Error("a handshake with nobody ends well")
	}
}
