package quiet

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "veilor", "quiet")
	if s, err := Read(path); s != nil || err != nil {
		t.Fatalf("without a file: %+v, %v", s, err)
	}
	now := time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)
	until := now.Add(2 * time.Hour)
	want := State{Since: now, Until: &until, Units: []string{"tailscaled.service"}}
	if err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Over(now) || !got.Over(until) || (&State{}).Over(until) {
		t.Error("it ends at the wrong time")
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamaged: a file that says nothing sensible still asks for quiet.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "quiet")
	for text, bad := range map[string]bool{"": false, "nonsense": true, "{}": false} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Read(path); s == nil || (err != nil) != bad || s.Over(time.Now()) {
			t.Errorf("%q: %+v, %v", text, s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"since":"2026-11-22T10:42:00Z","until":"2026-11-22T12:42:00Z","units":["tailscaled.service"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parse(data); (s == nil) == (err == nil) {
			t.Errorf("%v, %v", s, err)
		}
	})
}
