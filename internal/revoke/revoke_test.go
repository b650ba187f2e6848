package revoke

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/tier"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func ann() tier.Machine {
	return tier.Machine{Name: "ann", Tier: "guest", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.9")}}
}

func queue(dir string, steps ...Step) *Queue {
	return &Queue{Dir: dir, Steps: steps, Now: func() time.Time { return now }, Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

// A step that fails is tried again, the others are not, and it does not hold
// them up.
func TestOnce(t *testing.T) {
	down, edge, control := true, 0, 0
	q := queue(t.TempDir(),
		Step{"control", func(context.Context, tier.Machine) error {
			control++
			if down {
				return errors.New("no route to host")
			}
			return nil
		}},
		Step{"edge", func(_ context.Context, m tier.Machine) error {
			edge++
			if diff := cmp.Diff("ann", m.Name); diff != "" || !m.Revoked {
				t.Errorf("%+v", m)
			}
			return nil
		}},
	)
	if _, err := q.Put("ann-1", ann()); err != nil {
		t.Fatal(err)
	}
	os, err := q.Once(t.Context())
	if err != nil || os[0].Failed["control"] != "no route to host" || os[0].Confirmed["edge"].IsZero() {
		t.Fatalf("%+v, %v", os, err)
	}
	down = false
	if os, err = q.Once(t.Context()); err != nil || !os[0].Done(q.Steps) {
		t.Fatalf("%+v, %v", os, err)
	}
	if edge != 1 || control != 2 {
		t.Errorf("the edge was asked %d times, the control server %d", edge, control)
	}
	if left, err := q.Pending(); err != nil || len(left) != 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

func TestRunUntilDone(t *testing.T) {
	tries := 0
	q := queue(t.TempDir(), Step{"control", func(context.Context, tier.Machine) error {
		if tries++; tries < 5 {
			return errors.New("down")
		}
		return nil
	}})
	var waits []time.Duration
	q.Wait = func(ctx context.Context, d time.Duration) error { waits = append(waits, d); return nil }
	if _, err := q.Put("ann-1", ann()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	q.Run(ctx, make(chan struct{}), func(os []Order, err error) {
		if err != nil {
			t.Error(err)
		}
		if os[0].Done(q.Steps) {
			cancel()
		}
	})
	if diff := cmp.Diff([]time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}, waits); diff != "" {
		t.Error(diff)
	}
}

// Nobody is forgotten by kill -9 at any moment: a child puts an order and is
// killed within a step, and the next process does what is left.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("VEILOR_TEST_QUEUE"); dir != "" {
		q := queue(dir, Step{"edge", func(context.Context, tier.Machine) error { return nil }},
			Step{"control", func(context.Context, tier.Machine) error {
				os.WriteFile(filepath.Join(dir, "there"), nil, 0o600)
				select {}
			}})
		if _, err := q.Put("ann-1", ann()); err != nil {
			t.Fatal(err)
		}
		q.Once(t.Context())
		return
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	child.Env = append(os.Environ(), "VEILOR_TEST_QUEUE="+dir)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for {
		if _, err := os.Stat(filepath.Join(dir, "there")); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the child does nothing")
		}
	}
	child.Process.Kill()
	child.Wait()

	var did []string
	step := func(name string) Step {
		return Step{name, func(context.Context, tier.Machine) error { did = append(did, name); return nil }}
	}
	q := queue(dir, step("edge"), step("control"))
	os, err := q.Once(t.Context())
	if err != nil || len(os) != 1 || !os[0].Done(q.Steps) || os[0].Machine.Name != "ann" {
		t.Fatalf("%+v, %v", os, err)
	}
	if diff := cmp.Diff([]string{"control"}, did); diff != "" {
		t.Errorf("what was confirmed before the kill is done again, or not done: %s", diff)
	}
}

func TestBadOrders(t *testing.T) {
	q := queue(t.TempDir())
	for id, m := range map[string]tier.Machine{"../up": ann(), "": ann(), "nothing-known": {Name: "bob"}} {
		if _, err := q.Put(id, m); err == nil {
			t.Errorf("%q was taken", id)
		}
	}
	if _, err := q.Put("ann-1", ann()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(q.Dir, "bob-1.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	orders, err := q.Pending()
	if err == nil || !strings.Contains(err.Error(), "order bob-1") || len(orders) != 1 {
		t.Errorf("%+v, %v: want ann's order, and an error that names bob's", orders, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"id": "ann-1", "at": "2026-11-23T12:00:00Z", "confirmed": {}, "name": "ann", "tailnet": ["100.64.0.9"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parse("ann-1", data)
		if err == nil && (o.ID != "ann-1" || !o.Machine.Revoked || o.Confirmed == nil) {
			t.Errorf("%+v", o)
		}
	})
}
