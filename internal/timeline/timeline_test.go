package timeline

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/forward"
)

var t0 = time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)

func TestKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "timeline")
	var logs bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logs, nil))
	r := Open(path, log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Keep(ctx); close(done) }()
	for i := range Most + 7 {
		r.Add(forward.News{At: t0.Add(time.Duration(i) * time.Second), What: forward.Switched, Service: "x.veilor"})
	}
	cancel() // the last write is when it stops
	<-done
	again := Open(path, log)
	if diff := cmp.Diff(r.Events(), again.Events()); diff != "" {
		t.Errorf("(-kept +read):\n%s", diff)
	}
	if es := again.Events(); len(es) != Most || !es[0].At.Equal(t0.Add(7*time.Second)) {
		t.Errorf("%d events, the first at %v", len(es), es[0].At)
	}
	if logs.Len() > 0 {
		t.Errorf("logged: %s", logs.String())
	}
}

func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "timeline")
	if err := os.WriteFile(path, []byte("{\"what\":\"switch\"}\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	r := Open(path, slog.New(slog.NewTextHandler(&logs, nil)))
	if len(r.Events()) != 0 || !bytes.Contains(logs.Bytes(), []byte("the timeline starts anew")) {
		t.Errorf("%v, %s", r.Events(), logs.String())
	}
	r.Add(forward.News{At: t0})
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	if n := len(Open(path, slog.New(slog.DiscardHandler)).Events()); n != 1 {
		t.Errorf("%d events after the repair", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"at":"2026-11-22T10:42:00Z","what":"layer","service":"x.veilor","layer":"tailnet","from":"up","to":"suspect"}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if es, err := parse(data); err == nil && len(es) > Most {
			t.Errorf("%d events", len(es))
		}
	})
}
