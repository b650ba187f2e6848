package debian

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckNamesEverythingAtOnce(t *testing.T) {
	yes := func(context.Context) bool { return true }
	no := func(context.Context) bool { return false }
	err := check(t.Context(), []need{
		{what: "zlib's headers", pkg: "zlib1g-dev", missing: yes},
		{what: "git", pkg: "git", missing: yes},
		{what: "gcc", pkg: "gcc", missing: no},
		{what: "cargo", hint: "install Rust", missing: yes},
	})
	var missing *MissingError
	if !errors.As(err, &missing) {
		t.Fatalf("error %v, want a MissingError", err)
	}
	want := "this machine lacks zlib's headers, git, cargo: apt-get install -y --no-install-recommends git zlib1g-dev; install Rust"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if err := check(t.Context(), []need{{missing: no}}); err != nil {
		t.Errorf("nothing missing, yet %v", err)
	}
}

func TestEveryNeedSaysWhatToDo(t *testing.T) {
	for _, n := range needs {
		if n.what == "" || (n.pkg == "") == (n.hint == "") {
			t.Errorf("need %q: package %q, hint %q: want exactly one of them", n.what, n.pkg, n.hint)
		}
	}
}

func TestRustMinor(t *testing.T) {
	for line, want := range map[string]int{
		"cargo 1.95.0 (f2d3ce0bd 2026-03-21)\n": 95, "cargo 1.63.0": 63, "cargo 1.x": 0, "cargo 2.0.0": 0, "": 0,
	} {
		if got := rustMinor(line); got != want {
			t.Errorf("rustMinor(%q) = %d, want %d", line, got, want)
		}
	}
}

func TestSpaceIsJudgedForACacheToBe(t *testing.T) {
	// An existing parent is found; whether it has room depends on the machine,
	// but it must not be an error of looking.
	err := checkSpace(filepath.Join(t.TempDir(), "not", "yet"))
	var path *os.PathError
	if errors.As(err, &path) {
		t.Errorf("looking for space: %v", err)
	}
}
