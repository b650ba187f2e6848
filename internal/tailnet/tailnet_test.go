package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/joinkey"
)

// daemon is a tailscaled as far as its socket shows one.
type daemon struct {
	mu      sync.Mutex
	backend string
	health  []string
	prefs   *ipn.Prefs
	calls   []string
	// onStart is what happens when a key is handed over.
	onStart func(d *daemon, key string)
}

func (d *daemon) set(backend string, health ...string) {
	d.backend, d.health = backend, health
}

func (d *daemon) status() map[string]any {
	st := map[string]any{"BackendState": d.backend, "HaveNodeKey": d.backend != "NoState", "Health": d.health}
	if d.backend == "Running" {
		st["TailscaleIPs"] = []string{"100.64.0.3", "fd7a:115c:a1e0::3"}
		st["Self"] = map[string]any{"HostName": "laptop-7f", "Tags": []string{"tag:guest"}}
		st["Peer"] = map[string]any{
			"nodekey:" + strings.Repeat("01", 32): map[string]any{"TailscaleIPs": []string{"100.64.0.1"}, "CurAddr": "10.88.3.10:41641", "Relay": "lab", "Active": true},
			"nodekey:" + strings.Repeat("02", 32): map[string]any{"TailscaleIPs": []string{"100.64.0.2"}, "Relay": "lab", "Active": true},
			"nodekey:" + strings.Repeat("03", 32): map[string]any{"TailscaleIPs": []string{"100.64.0.4"}, "Relay": "lab"},
		}
	}
	return st
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/localapi/v0/")
	d.mu.Lock()
	if name != "status" {
		d.calls = append(d.calls, name)
	}
	switch name {
	case "status":
		json.NewEncoder(w).Encode(d.status())
	case "start":
		var opts ipn.Options
		if err := json.NewDecoder(r.Body).Decode(&opts); err != nil {
			http.Error(w, err.Error(), 400)
			break
		}
		d.prefs = opts.UpdatePrefs
		d.onStart(d, opts.AuthKey)
		w.WriteHeader(http.StatusNoContent)
	case "login-interactive":
		w.WriteHeader(http.StatusNoContent)
	case "logout":
		d.set("NeedsLogin")
		w.WriteHeader(http.StatusNoContent)
	case "watch-ipn-bus":
		fmt.Fprintln(w, `{"Version":"1.102.5"}`)
		w.(http.Flusher).Flush()
		d.mu.Unlock()
		<-r.Context().Done()
		return
	default:
		http.NotFound(w, r)
	}
	d.mu.Unlock()
}

func run(t *testing.T, d *daemon) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: d}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return New(socket)
}

func key(t *testing.T) joinkey.Key {
	t.Helper()
	k, err := joinkey.Parse("hskey-auth-3f9cAB-_0123-" + strings.Repeat("Zy-_", 16))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestJoin(t *testing.T) {
	d := &daemon{backend: "NeedsLogin", health: []string{"You are logged out."}}
	d.onStart = func(d *daemon, k string) {
		if k != key(t).Secret() {
			t.Errorf("tailscaled got another key")
		}
		d.set("Running")
	}
	st, err := run(t, d).Join(t.Context(), "https://hs.example.org", key(t), "laptop-7f")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"laptop-7f", "100.64.0.3", "tag:guest"}, []string{st.Hostname, st.Address.String(), strings.Join(st.Tags, " ")}); diff != "" {
		t.Error(diff)
	}
	for addr, want := range map[string]string{"100.64.0.1": "direct", "100.64.0.2": "relay", "100.64.0.4": "", "100.64.0.9": ""} {
		if got := st.Path(netip.MustParseAddr(addr)); got != want {
			t.Errorf("path to %s = %q, want %q", addr, got, want)
		}
	}
	if p := d.prefs; p.ControlURL != "https://hs.example.org" || p.CorpDNS || p.RouteAll || !p.WantRunning || p.Hostname != "laptop-7f" {
		t.Errorf("prefs = %v", p.Pretty())
	}
}

func TestJoinFails(t *testing.T) {
	const said = "You are logged out. The last login error was: "
	for _, tt := range []struct {
		says, want string
		is         error
	}{
		{said + "authkey already used", "this key was used before", ErrUsed},
		{said + "register request: http 500: authkey expired", "this key has expired", ErrExpired},
		{said + "invalid pre auth key", "does not know this key", ErrUnknown},
		{said + "fetch control key: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time …", "not valid at the time", ErrClock},
		{said + "fetch control key: Get \"https://hs\": failed to resolve \"hs\": no DNS fallback candidates remain", "name is not found", nil},
		{said + "fetch control key: read: connection reset by peer", "are cut", nil},
		{"", "did not let us in within the time allowed", context.DeadlineExceeded},
	} {
		d := &daemon{backend: "NeedsLogin", onStart: func(d *daemon, _ string) { d.set("NeedsLogin", tt.says) }}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := run(t, d).Join(ctx, "https://hs.example.org", key(t), "laptop-7f")
		cancel()
		if err == nil || !strings.Contains(err.Error(), tt.want) || advice.Todo(err) == "" {
			t.Errorf("%q: got %v (todo %q), want %q", tt.says, err, advice.Todo(err), tt.want)
		}
		if tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%q: %v is not %v", tt.says, err, tt.is)
		}
		if d.mu.Lock(); d.calls[len(d.calls)-1] != "logout" {
			t.Errorf("%q: not undone: %v", tt.says, d.calls)
		}
		d.mu.Unlock()
	}
}

// TestJoinHidesKey: whatever tailscaled says, the key is not repeated.
func TestJoinHidesKey(t *testing.T) {
	d := &daemon{backend: "NeedsLogin", onStart: func(d *daemon, k string) {
		d.set("NeedsLogin", "The last login error was: bad key "+k)
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := run(t, d).Join(ctx, "https://hs.example.org", key(t), "laptop-7f")
	if err == nil || !strings.Contains(err.Error(), "bad key hskey-auth-3f9c…") || strings.Contains(err.Error(), key(t).Secret()) {
		t.Errorf("error = %v", err)
	}
}

func TestJoinTwice(t *testing.T) {
	d := &daemon{backend: "Running"}
	_, err := run(t, d).Join(t.Context(), "https://hs.example.org", key(t), "laptop-7f")
	if !errors.Is(err, ErrJoined) || !strings.Contains(err.Error(), "as laptop-7f (100.64.0.3)") {
		t.Errorf("error = %v", err)
	}
	if len(d.calls) != 0 {
		t.Errorf("a joined laptop was touched: %v", d.calls)
	}
}

func TestLeave(t *testing.T) {
	d := &daemon{backend: "Running"}
	was, err := run(t, d).Leave(t.Context())
	if err != nil || d.backend != "NeedsLogin" || !was.Joined || was.Hostname != "laptop-7f" {
		t.Errorf("%+v, %v, %s", was, err, d.backend)
	}
	if _, err := New(filepath.Join(t.TempDir(), "none")).State(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("without tailscaled: %v", err)
	}
}

func FuzzState(f *testing.F) {
	d := &daemon{backend: "Running", health: []string{"The last login error was: x"}}
	b, err := json.Marshal(d.status())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"Self":null,"Peer":{"nodekey:00":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var st ipnstate.Status
		if json.Unmarshal(data, &st) != nil {
			return
		}
		if s := state(&st); s.Address.IsValid() && !s.Address.Is4() {
			t.Fatalf("address %v", s.Address)
		}
	})
}
