package act_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/lab/act"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// lines hands what a console prints to the test.
type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func options(t *testing.T, out io.Writer) act.Options {
	t.Helper()
	gate.Root(t, "the acts")
	gate.Long(t, "the acts")
	cache := gate.Cache(t, "the acts")
	if err := debian.Check(t.Context(), cache); err != nil {
		t.Fatal(err)
	}
	o := act.Options{Source: "../..", Out: t.TempDir(), Cache: cache, Short: true, Console: console.New(out, console.Options{})}
	t.Cleanup(o.Console.Close)
	return o
}

// TestActs plays the demo with every mistake that a person can make, and holds
// each act as a test of its own. The acts after the last take minutes, and `make
// demo-short` plays them.
func TestActs(t *testing.T) {
	o := options(t, lines{t})
	o.Mistakes, o.Last = true, "killed"
	err := act.Run(t.Context(), o)
	checks, readErr := report.Read(filepath.Join(o.Out, "report.json"))
	if readErr != nil {
		t.Fatal(errors.Join(err, readErr))
	}
	for _, c := range checks {
		t.Run(c.ID, func(t *testing.T) {
			switch c.Status {
			case report.Fail:
				if c.Limit != nil { // how fast is for a run with time; see act.Options.Short
					t.Logf("beyond its limit: %s: %s %s", c.Title, report.Number(*c.Value), c.Unit)
					return
				}
				t.Error(c.Title, c.Note)
			case report.Skip:
				t.Skip(c.Note)
			}
		})
	}
	if err != nil {
		keepLogs(t, o.Out)
		t.Fatal(err)
	}
	if page, err := os.ReadFile(filepath.Join(o.Out, "report.html")); err != nil || len(page) < 10_000 {
		t.Errorf("the report has %d bytes: %v", len(page), err)
	}
}

// keepLogs shows the ends of the logs of a failed run, whose directory goes.
func keepLogs(t *testing.T, out string) {
	const end = 4 << 10
	logs, _ := filepath.Glob(filepath.Join(out, "logs", "*.log"))
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		t.Logf("=== %s\n%s", filepath.Base(f), b[max(0, len(b)-end):])
	}
}

// TestCancelled ends a run early: it must say so, and leave no mount behind.
func TestCancelled(t *testing.T) {
	o := options(t, io.Discard)
	before := mounts(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := act.Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to hear that it was cancelled", err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
