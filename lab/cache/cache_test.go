package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock moves a minute each time it is read.
func clock() func() time.Time {
	at := time.Unix(1_700_000_000, 0)
	return func() time.Time { at = at.Add(time.Minute); return at }
}

func write(dir, content string) error {
	return os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o644)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestSecondGetReuses(t *testing.T) {
	var heard []string
	c := &Cache{Dir: t.TempDir(), Now: clock(), Notify: func(e Event) { heard = append(heard, e.What.String()) }}
	built := 0
	get := func() string {
		dir, err := c.Get(t.Context(), "a", NewInputs("1").String("x"), func(_ context.Context, dir string) error {
			built++
			return write(dir, "x")
		})
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if first, second := get(), get(); first != second || built != 1 {
		t.Errorf("got %s then %s after %d builds, want one build", first, second, built)
	}
	if diff := cmp.Diff([]string{"building", "built", "reused"}, heard); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	cancelled, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		fail error
		want error
	}{
		"failed":    {t.Context(), boom, boom},
		"cancelled": {cancelled, nil, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Cache{Dir: t.TempDir()}
			_, err := c.Get(tc.ctx, "a", NewInputs("1"), func(_ context.Context, dir string) error {
				cancel()
				return errors.Join(write(dir, "half"), tc.fail)
			})
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if left := names(t, c.Dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestKilledBuildIsSweptByTheNext(t *testing.T) {
	c := &Cache{Dir: t.TempDir()}
	for _, d := range []string{".building-a-123", ".building-ab-123"} {
		if err := os.Mkdir(filepath.Join(c.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Get(t.Context(), "a", NewInputs("1"), func(_ context.Context, dir string) error { return write(dir, "") }); err != nil {
		t.Fatal(err)
	}
	for _, n := range names(t, c.Dir) {
		if n == ".building-a-123" {
			t.Error("what the killed build left is still there")
		}
	}
	if _, err := os.Stat(filepath.Join(c.Dir, ".building-ab-123")); err != nil {
		t.Error("another artefact's build was swept")
	}
}

func TestPruneKeepsTheLastUsed(t *testing.T) {
	c := &Cache{Dir: t.TempDir(), Now: clock()}
	get := func(input string) string {
		dir, err := c.Get(t.Context(), "a", NewInputs("1").String(input), func(_ context.Context, dir string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Base(dir)
	}
	one, _ := get("1"), get("2")
	get("1") // used again: 2 is now the older one
	three := get("3")
	got := map[string]bool{}
	for _, n := range names(t, c.Dir) {
		got[n] = true
	}
	if diff := cmp.Diff(map[string]bool{one: true, three: true}, got); diff != "" {
		t.Errorf("artefacts left (-want +got):\n%s", diff)
	}
}

func TestWaitingForAnotherBuildEndsWithTheContext(t *testing.T) {
	c := &Cache{Dir: t.TempDir()}
	unlock, err := c.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = c.Get(ctx, "a", NewInputs("1"), func(context.Context, string) error { t.Error("built in spite of the lock"); return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want deadline exceeded", err)
	}
}

func TestInputsTellEverythingApart(t *testing.T) {
	dir := t.TempDir()
	file, tree := filepath.Join(dir, "file"), filepath.Join(dir, "tree")
	if err := errors.Join(os.WriteFile(file, []byte("c"), 0o644), os.MkdirAll(filepath.Join(tree, "sub"), 0o755), os.Symlink("one", filepath.Join(tree, "link"))); err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	add := func(what string, in *Inputs) {
		t.Helper()
		sum, err := in.Sum()
		if err != nil {
			t.Fatal(err)
		}
		if other, clash := sums[sum]; clash {
			t.Errorf("%s and %s have the same sum", what, other)
		}
		sums[sum] = what
	}
	add("nothing", NewInputs("1"))
	add("ab,c", NewInputs("1").String("ab", "c"))
	add("a,bc", NewInputs("1").String("a", "bc"))
	add("bytes", NewInputs("1").Bytes([]byte("ab")).String("c"))
	add("version", NewInputs("2"))
	add("file", NewInputs("1").File(file))
	add("tree", NewInputs("1").Tree(tree))
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	add("file that may be executed", NewInputs("1").File(file))
	if err := errors.Join(os.Remove(filepath.Join(tree, "link")), os.Symlink("two", filepath.Join(tree, "link"))); err != nil {
		t.Fatal(err)
	}
	add("tree with another target", NewInputs("1").Tree(tree))
	if _, err := NewInputs("1").File(filepath.Join(dir, "none")).Sum(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing input: %v", err)
	}
}
