package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// redraw is how often a transfer is drawn anew: often enough to look alive.
const redraw = 100 * time.Millisecond

// progress writes what is being done to stderr: on a terminal the line of the
// present step, elsewhere only finished lines.
type progress struct {
	w    io.Writer
	live bool
	now  func() time.Time
	last time.Time
}

func newProgress() *progress {
	// A dumb terminal cannot take a line back.
	live := term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb"
	return &progress{w: os.Stderr, live: live, now: time.Now}
}

// step begins a step; what it returns ends it with a detail. A step that failed
// is not ended: the error follows it.
func (p *progress) step(name string) func(detail string) {
	begin := p.now()
	if p.live {
		fmt.Fprintf(p.w, "  %-10s …\r", name)
	}
	return func(detail string) {
		if p.live {
			fmt.Fprint(p.w, "\x1b[K")
		}
		fmt.Fprintf(p.w, "  %-10s %-42s %6.1f s\n", name, detail, p.now().Sub(begin).Seconds())
	}
}

// bytes draws a transfer.
func (p *progress) bytes(done, total int64) {
	now := p.now()
	if !p.live || now.Sub(p.last) < redraw {
		return
	}
	p.last = now
	fmt.Fprintf(p.w, "  %.1f / %.1f MB\x1b[K\r", float64(done)/1e6, float64(total)/1e6)
}
