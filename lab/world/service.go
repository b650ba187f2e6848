package world

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/namespace"
)

// maxBytes bounds /bytes/N: 1 GiB, minutes of any layer.
const maxBytes = 1 << 30

// page is what a person sees.
var page = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Name}}</title>
<style>
  :root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
  body { max-width: 32rem; margin: 20vh auto 0; padding: 0 1.5rem }
  code { font-family: ui-monospace, monospace }
</style>
<h1>{{.Name}}</h1>
<p>You reached this page. Your request came from <code>{{.From}}</code>.</p>
</html>
`))

// startService serves one of the site's services in ns, its host, on the tailnet
// and in Yggdrasil.
func (w *World) startService(ns *namespace.Namespace, v site.Service) error {
	tailnet, yggdrasil := w.AddressesOf(v)
	var at []netip.AddrPort
	for _, port := range v.Ports {
		at = append(at, netip.AddrPortFrom(tailnet, port), netip.AddrPortFrom(yggdrasil, port))
	}
	return w.serve(ns, v.Name, w.cfg.Service, serviceHandler(v.Name), at...)
}

// Greeting is what an SSH server says first (RFC 4253 §4.2).
const Greeting = "SSH-2.0-lab\r\n"

// greet says Greeting at port 22 of the service's host, on both layers.
func (w *World) greet() error {
	tailnet, yggdrasil := w.ServiceAddresses()
	for _, a := range []netip.Addr{tailnet, yggdrasil} {
		l, err := w.Home.Listen("tcp", netip.AddrPortFrom(a, 22).String())
		if err != nil {
			return err
		}
		w.onClose(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.SetDeadline(time.Now().Add(headerLimit))
				io.WriteString(c, Greeting)
				c.Close()
			}
		}()
	}
	return nil
}

// serviceHandler answers with where the request came from: as JSON
// {"from", "path"}, or as a page to who asks for HTML at /. /bytes/N is N bytes.
func serviceHandler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(rw http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		rw.Header().Set("Cache-Control", "no-store")
		if r.URL.Path == "/" && strings.Contains(r.Header.Get("Accept"), "text/html") {
			rw.Header().Set("Content-Type", "text/html; charset=utf-8")
			page.Execute(rw, struct{ Name, From string }{name, from})
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		json.NewEncoder(rw).Encode(struct {
			From string `json:"from"`
			Path string `json:"path"`
		}{from, r.URL.Path})
	})
	mux.HandleFunc("GET /bytes/{n}", func(rw http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 || n > maxBytes {
			http.Error(rw, fmt.Sprintf("write /bytes/N with N from 0 to %d", maxBytes), http.StatusBadRequest)
			return
		}
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.CopyN(rw, zeros{}, n)
	})
	return mux
}

// zeros reads as zero bytes without end. TLS hides that they are all alike, and
// no layer compresses.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
