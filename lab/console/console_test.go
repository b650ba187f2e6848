package console

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock advances only when told.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }
func (c *clock) pass(d time.Duration) {
	c.t = c.t.Add(d)
}

func demo(c *Console, k *clock) {
	c.Header("veilor demo: one laptop, one town, one censor.", "2 cores, no KVM: about 11 minutes")
	a := c.Begin("image")
	a.Step("rendering the overlay")
	k.pass(4100 * time.Millisecond)
	a.Done("44.lab.1: 6 layers, 31 MB over the base, same digest twice")
	a = c.Begin("install")
	a.Step("copying the tree")
	k.pass(14 * time.Second)
	a.Progress(10, 300, "MB") // too early for a plain line
	k.pass(2 * time.Second)
	a.Progress(120, 300, "MB")
	k.pass(125 * time.Second)
	a.Done("LUKS2 and ostree onto a 1.5 GB disk, by the same program that Anaconda's ostreecontainer runs underneath")
	a = c.Begin("blocked")
	a.Line("UDP + control server dropped: next answer after 0.27 s, over yggdrasil")
	a.Line("edge dropped too:             next answer after 0.31 s, through the public peer")
	a.Done("")
	a = c.Begin("boot")
	k.pass(120 * time.Second)
	a.Fail(errors.New("waiting for the passphrase prompt: nothing for 120 s; see out/logs/serial.log"))
	c.Begin("hardware").Skip("no laptop here")
	c.Note("report: out/report.html")
}

func TestPlain(t *testing.T) {
	k := &clock{time.Unix(0, 0)}
	var out bytes.Buffer
	c := New(&out, Options{Now: k.now})
	demo(c, k)
	c.Close()
	const want = `
veilor demo: one laptop, one town, one censor.                     2 cores, no KVM: about 11 minutes
      image: rendering the overlay, 0.0 s
  1 image        44.lab.1: 6 layers, 31 MB over the base, same digest twice                    4.1 s
      install: copying the tree, 0.0 s
      install: copying the tree, 40 % of 300 MB, 16.0 s
  2 install      LUKS2 and ostree onto a 1.5 GB disk, by the same program that            2 min 21 s
                 Anaconda's ostreecontainer runs underneath
  3 blocked      UDP + control server dropped: next answer after 0.27 s, over yggdrasil
                 edge dropped too:             next answer after 0.31 s, through the public peer
  4 boot         FAILED: waiting for the passphrase prompt: nothing for 120 s; see        2 min 00 s
                 out/logs/serial.log
  5 hardware     SKIPPED: no laptop here                                                       0.0 s
  report: out/report.html
`
	if d := cmp.Diff(want[1:], out.String()); d != "" {
		t.Error("(-want +got)\n", d)
	}
}

// screen is what a terminal shows in the end.
func screen(text string) string {
	var shown []string
	for line := range strings.SplitSeq(text, "\n") {
		parts := strings.Split(line, "\r\x1b[K")
		shown = append(shown, parts[len(parts)-1])
	}
	return strings.Join(shown, "\n")
}

func TestLiveLineLeavesNothing(t *testing.T) {
	k := &clock{time.Unix(0, 0)}
	var out bytes.Buffer
	c := New(&out, Options{Now: k.now, Live: true, Width: func() int { return 80 }})
	demo(c, k)
	c.Begin("never ended").Step("working")
	c.Close()
	c.mu.Lock() // the ticker may still draw
	defer c.mu.Unlock()
	got := screen(out.String())
	for _, bad := range []string{"rendering", "copying", "never ended", "\x1b"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q is left on the screen:\n%s", bad, got)
		}
	}
	if !strings.Contains(out.String(), "copying the tree   40 % of 300 MB") {
		// The ticker draws progress; without it the step's own draw must have shown the step.
		if !strings.Contains(out.String(), "copying the tree") {
			t.Error("no live line")
		}
	}
	for line := range strings.SplitSeq(got, "\n") {
		if length(line) > 80 {
			t.Errorf("longer than the terminal: %q", line)
		}
	}
}

func TestColorOnlyHelps(t *testing.T) {
	plain, painted := new(bytes.Buffer), new(bytes.Buffer)
	for out, color := range map[*bytes.Buffer]bool{plain: false, painted: true} {
		k := &clock{time.Unix(0, 0)}
		c := New(out, Options{Now: k.now, Color: color})
		demo(c, k)
		c.Close()
	}
	if plain.String() == painted.String() || strings.Contains(plain.String(), "\x1b") {
		t.Error("no colour at all, or colour without being asked")
	}
	for _, code := range []string{bold, dim, red, off} {
		s := strings.ReplaceAll(painted.String(), code, "")
		painted.Reset()
		painted.WriteString(s)
	}
	if d := cmp.Diff(plain.String(), painted.String()); d != "" {
		t.Error(d)
	}
}

func TestElapsed(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0.0 s", 1940 * time.Millisecond: "1.9 s", 79 * time.Second: "79.0 s",
		100 * time.Second: "1 min 40 s", 10*time.Minute + 5*time.Second: "10 min 05 s"} {
		if got := Elapsed(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
