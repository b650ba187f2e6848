package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
)

var events = []forward.News{
	{At: at1042.Add(-2 * time.Hour), What: forward.Switched, Service: "x.veilor", Layer: mesh.Tailnet, To: "tailnet"},
	{At: at1042.Add(-time.Hour), What: forward.CanaryTold, Service: "x.veilor", Layer: mesh.Yggdrasil},
	{At: at1042.Add(-30 * time.Minute), What: forward.CanaryTold, Service: "x.veilor", Layer: mesh.Yggdrasil, Why: "no answer"},
	{At: at1042.Add(-time.Minute), What: forward.LinkChanged},
	{At: at1042, What: forward.LayerChanged, Service: "x.veilor", Layer: mesh.Tailnet, From: "up", To: "suspect", Why: "no answer"},
	{At: at1042, What: forward.Switched, Service: "x.veilor", From: "tailnet", To: "yggdrasil"},
	{At: at1042.Add(2 * time.Second), What: forward.LayerChanged, Service: "x.veilor", Layer: mesh.Tailnet, From: "suspect", To: "down", Why: "no answer", Reset: 3},
	{At: at1042.Add(time.Hour), What: forward.QuietChanged, Service: "x.veilor", To: "on", Reset: 1},
	{At: at1042.Add(time.Hour), What: forward.Switched, Service: "x.veilor", From: "yggdrasil"},
}

func TestViews(t *testing.T) {
	before := time.Local
	time.Local = time.UTC
	defer func() { time.Local = before }()

	tailnet := health(mesh.Tailnet, mesh.Down, at1042, 0, "no answer")
	ygg := health(mesh.Yggdrasil, mesh.Up, at1042, 44*time.Millisecond, "")
	e := Explain(forward.Explanation{
		Status: forward.Status{Name: "x.veilor", Active: mesh.Yggdrasil, Since: at1042, Layers: []mesh.Health{tailnet, ygg}, Conns: 1,
			Canary: forward.Canary{Layer: mesh.Yggdrasil, At: at1042.Add(-30 * time.Minute), Failures: 1, Err: "no answer"}},
		Service: forward.Service{Name: "x.veilor", Listen: netip.MustParseAddr("127.83.0.1"), Ports: []uint16{80, 443}, TLS: []uint16{443},
			Routes: []forward.Route{{Layer: mesh.Tailnet, Interface: "tailscale0", Addr: netip.MustParseAddr("100.64.0.1")}, {Layer: mesh.Yggdrasil, Interface: "ygg0", Addr: netip.MustParseAddr("200::1")}}},
		Plan: []mesh.Step{{Layer: mesh.Yggdrasil}, {Layer: mesh.Tailnet, After: mesh.Stagger}},
	}, events, now)
	e.Access = &Access{Tier: "guest", Allow: true, Rule: "guest[0]", Why: "guest -> x.veilor:443"}
	works := TrialsOf("x.veilor", []forward.Check{
		{Layer: mesh.Tailnet, Err: errors.New("no answer")},
		{Layer: mesh.Yggdrasil, Connect: 44 * time.Millisecond, Handshake: 61200 * time.Microsecond},
	})
	dead := TrialsOf("x.veilor", []forward.Check{{Layer: mesh.Tailnet, Err: errors.New("no interface tailscale0")}, {Layer: mesh.Yggdrasil, Connect: time.Millisecond, Err: errors.New("tls: bad certificate")}})
	if !works.Works() || dead.Works() {
		t.Error("Works is wrong")
	}
	for name, view := range map[string]struct {
		data any
		text func(io.Writer) error
	}{
		"explain":      {e, e.Text},
		"test":         {works, works.Text},
		"test-nothing": {dead, dead.Text},
		"log":          {Log{events}, func(w io.Writer) error { return Log{events}.Text(w, now) }},
		"log-empty":    {Log{[]forward.News{}}, func(w io.Writer) error { return Log{}.Text(w, now) }},
	} {
		var text, js bytes.Buffer
		if err := view.text(&text); err != nil {
			t.Fatal(err)
		}
		enc := json.NewEncoder(&js)
		enc.SetIndent("", "  ")
		if err := enc.Encode(view.data); err != nil {
			t.Fatal(err)
		}
		for ext, got := range map[string][]byte{".txt": text.Bytes(), ".json": js.Bytes()} {
			path := filepath.Join("testdata", "view-"+name+ext)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got; run with -update if it is right):\n%s", path, diff)
			}
		}
	}
}
