package world

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/veilor/veilor-os/lab/namespace"
)

// headerLimit ends a client that says nothing. There is no limit on a peering's
// length: it is meant to stand for days.
const headerLimit = 10 * time.Second

// front terminates TLS as name at address:443, and at its twin, in ns and passes everything,
// WebSocket upgrades included, to backend in ns. It is what Traefik does in
// front of a real edge.
func (w *World) front(ns *namespace.Namespace, name string, address netip.Addr, backend string) error {
	cert, err := w.cfg.WebCA.Certificate(name)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: backend})
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ns.DialContext(ctx, network, backend)
		}},
	}
	at := []netip.AddrPort{netip.AddrPortFrom(address, 443)}
	if w.cfg.IPv6 {
		at = append(at, netip.AddrPortFrom(Twin(address), 443))
	}
	return w.serve(ns, name, cert, proxy, at...)
}

// serve serves handler by TLS at each of the addresses, until the world ends.
func (w *World) serve(ns *namespace.Namespace, name string, cert tls.Certificate, handler http.Handler, at ...netip.AddrPort) error {
	out, err := os.OpenFile(w.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("serving %s: %w", name, err)
	}
	logger := log.New(out, "", log.LstdFlags|log.Lmicroseconds)
	if p, ok := handler.(*httputil.ReverseProxy); ok {
		p.ErrorLog = logger
	}
	srv := &http.Server{
		Handler: handler, ErrorLog: logger, ReadHeaderTimeout: headerLimit,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		// A WebSocket upgrade is HTTP/1.1.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	w.onClose(func() {
		srv.Close()
		out.Close()
	})
	for _, a := range at {
		l, err := ns.Listen("tcp", a.String())
		if err != nil {
			return fmt.Errorf("serving %s: %w", name, err)
		}
		go srv.ServeTLS(l, "", "")
	}
	return nil
}
