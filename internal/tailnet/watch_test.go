package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"tailscale.com/ipn"
)

// TestWatch: a state or a relay that goes is told, the beginning and the rest of
// the chatter is not, and the end of tailscaled ends the watch.
func TestWatch(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := New(socket).Watch(t.Context(), nil); !errors.Is(err, ErrStopped) {
		t.Errorf("no tailscaled: %v, want ErrStopped", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for line := range lines {
			fmt.Fprintln(w, line)
			w.(http.Flusher).Flush()
		}
	})}
	go s.Serve(l)
	defer s.Close()
	told, done := make(chan struct{}, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- New(socket).Watch(ctx, func() { told <- struct{}{} }) }()
	for _, c := range []struct {
		line string
		tell bool
	}{
		{`{"Version":"1.102.5"}`, false},
		{`{"State":6,"Health":{"Warnings":{"old":{"ImpactsConnectivity":true}}}}`, false},
		{`{"State":6}`, false},
		{`{"Health":{"Warnings":{"update-available":{"Severity":"low"},"old":{"ImpactsConnectivity":true}}}}`, false},
		{`{"Health":{"Warnings":{"no-derp-connection":{"ImpactsConnectivity":true}}}}`, true},
		{`{"State":2}`, true},
		{`{"Engine":{"NumLive":1}}`, false},
		{`{"State":6,"Health":{}}`, true},
	} {
		lines <- c.line
		if c.tell {
			<-told
		}
	}
	close(lines)
	if err := <-done; err == nil {
		t.Error("the bus ended without an error")
	}
	if n := len(told); n != 0 {
		t.Errorf("%d changes too many", n)
	}
}

// FuzzWatch reads whatever comes over the bus.
func FuzzWatch(f *testing.F) {
	f.Add(`{"State":6,"Health":{"Warnings":{"a":{"ImpactsConnectivity":true}}}}`)
	f.Fuzz(func(t *testing.T, line string) {
		var n ipn.Notify
		if json.Unmarshal([]byte(line), &n) != nil {
			return
		}
		c := condition{}.after(n)
		if !c.equal(c.after(n)) {
			t.Errorf("%q twice is a change", line)
		}
	})
}
