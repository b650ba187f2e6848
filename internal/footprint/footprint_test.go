package footprint

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const example = `00400000-00c76000 r-xp 00000000 fe:00 10846947                           /usr/bin/the program
Size:               8664 kB
Rss:                7312 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00c76000-01642000 r--p 00876000 fe:00 10846947                           /usr/bin/the program
Anonymous:             0 kB
01642000-01650000 r--p 01242000 fe:00 10846947                           /usr/bin/the program
Anonymous:             4 kB
01650000-016ba000 rw-p 01250000 fe:00 10846947                           /usr/bin/the program
Anonymous:             0 kB
016ba000-03701000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 7                          /usr/lib/other
Anonymous:             0 kB
7f0000002000-7f0000003000 r--s 00000000 fe:00 10846947                   /usr/bin/the program
Anonymous:             0 kB
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`

func TestUnchanged(t *testing.T) {
	got := unchanged([]byte(example), "/usr/bin/the program")
	want := []mapping{{0x400000, 0xc76000}, {0xc76000, 0x1642000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLetGo: the program goes on, with less of its file mapped.
func TestLetGo(t *testing.T) {
	before := fromFile(t)
	if err := LetGo(); err != nil {
		t.Fatal(err)
	}
	if after := fromFile(t); after >= before {
		t.Errorf("%d kB of files are mapped, before it were %d kB", after, before)
	}
}

// fromFile is how many kB of files this process has mapped.
func fromFile(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Skip("NOT TESTED: this kernel does not tell memory of files apart")
	return 0
}

func TestKeepEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var told bytes.Buffer
	Keep(ctx, slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if told.Len() > 0 {
		t.Errorf("at the end it tells %s", &told)
	}
}

// TestCollections: each collection is told, and none after the end.
func TestCollections(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := collections(ctx)
	for range 3 {
		runtime.GC()
		<-told
	}
	cancel()
	for range 2 { // what was under way
		runtime.GC()
		select {
		case <-told:
		default:
		}
	}
	runtime.GC()
	select {
	case <-told:
		t.Error("a collection is told after the end")
	default:
	}
}

// FuzzUnchanged: no mapping is invented, and none that may be written to.
func FuzzUnchanged(f *testing.F) {
	f.Add([]byte(example), "/usr/bin/the program")
	f.Fuzz(func(t *testing.T, text []byte, file string) {
		for _, m := range unchanged(text, file) {
			if m.start >= m.end {
				t.Errorf("%x-%x", m.start, m.end)
			}
		}
	})
}
