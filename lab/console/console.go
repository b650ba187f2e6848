// Package console prints a run as it goes, act by act, in aligned lines:
//
//	veilor demo: one laptop, one town, one censor.       2 cores, no KVM: about 11 minutes
//	  1 image        44.lab.1: 6 layers, 31 MB over the base, same digest twice      4.1 s
//	  2 signature    accepted signed; refused unsigned, stranger's key               1.9 s
//
// On a terminal the running act has a live line that says what it does, how far
// it is and how long it has taken; elsewhere the same comes as plain lines, seldom.
// Words carry all meaning, colour only helps, and NO_COLOR turns it off.
package console

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

const (
	// maxWidth keeps the times near the text on a wide screen.
	maxWidth = 100
	// minWidth is a narrow phone's terminal; below it lines may break as they like.
	minWidth = 50
	// nameWidth holds the longest act's name, "signature", and air.
	nameWidth = 12
	// indent is where texts begin: a blank, the number, a blank, the name.
	indent = 1 + 2 + 1 + nameWidth + 1
	// timeWidth holds "12 min 59 s".
	timeWidth = 12
	// redrawEvery is fast enough for a clock of tenths, and cheap.
	redrawEvery = 100 * time.Millisecond
	// plainEvery is how often progress is told without a terminal.
	plainEvery = 15 * time.Second
)

// Options of a console; the zero value is plain lines of maxWidth.
type Options struct {
	// Live says that lines may be redrawn.
	Live bool
	// Color says that ANSI colours may be used.
	Color bool
	// Width is asked before each line; nil is maxWidth.
	Width func() int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Console prints one run. Its methods may be called from several goroutines.
type Console struct {
	o   Options
	mu  sync.Mutex
	out io.Writer
	n   int
	// The running act; nil between acts.
	act *Act
	// Whether the cursor stands at the end of a live line.
	drawn bool
	stop  chan struct{}
}

// New returns a console that writes to out.
func New(out io.Writer, o Options) *Console {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Width == nil {
		o.Width = func() int { return maxWidth }
	}
	c := &Console{o: o, out: out, stop: make(chan struct{})}
	if o.Live {
		go c.tick()
	}
	return c
}

// For returns a console for a file, which may be a terminal.
func For(f *os.File) *Console {
	var o Options
	fd := int(f.Fd())
	if term.IsTerminal(fd) && os.Getenv("TERM") != "dumb" {
		o.Live = true
		o.Color = os.Getenv("NO_COLOR") == "" // https://no-color.org
		o.Width = func() int {
			w, _, err := term.GetSize(fd)
			if err != nil {
				return maxWidth
			}
			return w
		}
	}
	return New(f, o)
}

// tick keeps the live line's clock going.
func (c *Console) tick() {
	t := time.NewTicker(redrawEvery)
	defer t.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-t.C:
			c.mu.Lock()
			c.draw()
			c.mu.Unlock()
		}
	}
}

// Close takes the live line away and ends the console. Nothing may be printed
// after it.
func (c *Console) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.act = nil
	c.wipe()
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
}

// Header prints the first line: what this is, and at the right where it runs.
func (c *Console) Header(left, right string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	width := c.width()
	if used := length(left) + 2 + length(right); used > width {
		c.print(left + "\n" + right)
		return
	}
	c.print(left + strings.Repeat(" ", width-length(left)-length(right)) + right)
}

// Note prints a line that belongs to no act.
func (c *Console) Note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.print("  " + fmt.Sprintf(format, args...))
	c.draw()
}

// Act is one numbered step.
type Act struct {
	c     *Console
	n     int
	name  string
	began time.Time
	// What the live line says.
	step     string
	progress string
	told     time.Time // of the last plain line
	lines    int       // printed so far
}

// Begin starts the next act. Acts follow each other.
func (c *Console) Begin(name string) *Act {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	a := &Act{c: c, n: c.n, name: name, began: c.o.Now(), told: c.o.Now()}
	c.act = a
	c.draw()
	return a
}

// Step says what the act does now: "booting".
func (a *Act) Step(format string, args ...any) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	a.step, a.progress = fmt.Sprintf(format, args...), ""
	if !a.c.o.Live {
		a.tell()
	}
	a.c.draw()
}

// Progress says how far the step is, in units like "MB"; total 0 is unknown.
func (a *Act) Progress(done, total float64, unit string) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	if total > 0 {
		a.progress = fmt.Sprintf("%3.0f %% of %s %s", 100*min(done/total, 1), number(total), unit)
	} else {
		a.progress = number(done) + " " + unit
	}
	if !a.c.o.Live && a.c.o.Now().Sub(a.told) >= plainEvery {
		a.tell()
	}
}

// tell prints the present state as a plain line.
func (a *Act) tell() {
	a.told = a.c.o.Now()
	text := a.name + ": " + a.step
	if a.progress != "" {
		text += ", " + strings.TrimSpace(a.progress)
	}
	a.c.print("      " + text + ", " + Elapsed(a.told.Sub(a.began)))
}

// Line prints a result of the act while it goes on. Columns within texts line
// up if the caller pads them.
func (a *Act) Line(format string, args ...any) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	a.print(fmt.Sprintf(format, args...), "")
	a.c.draw()
}

// Done ends the act with what came of it; without text if lines have said all.
func (a *Act) Done(format string, args ...any) {
	a.end("", fmt.Sprintf(format, args...))
}

// Fail ends the act with an error.
func (a *Act) Fail(err error) { a.end("FAILED", err.Error()) }

// Skip ends the act that was not made.
func (a *Act) Skip(why string) { a.end("SKIPPED", why) }

func (a *Act) end(word, text string) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	a.c.act = nil
	if word != "" {
		text = word + ": " + text
	} else if text == "" && a.lines > 0 {
		a.c.wipe()
		return
	}
	a.print(text, Elapsed(a.c.o.Now().Sub(a.began)))
}

// print writes text in the act's column, broken into lines that fit, with the
// number and name before the first of all and time at the first one's right.
func (a *Act) print(text, time string) {
	c := a.c
	room := max(c.width()-indent, 20)
	if time != "" {
		room -= timeWidth
	}
	var out strings.Builder
	for i, line := range breakLines(text, room) {
		if i > 0 {
			out.WriteByte('\n')
		}
		head := strings.Repeat(" ", indent)
		if a.lines == 0 {
			head = fmt.Sprintf(" %2d %-*s ", a.n, nameWidth, a.name)
		}
		a.lines++
		fail := strings.HasPrefix(line, "FAILED:")
		shown := line
		if fail {
			shown = c.paint(bold+red, line)
		}
		out.WriteString(head + shown)
		if i == 0 && time != "" {
			pad := room - length(line) + timeWidth - length(time)
			out.WriteString(strings.Repeat(" ", max(pad, 1)) + c.paint(dim, time))
		}
	}
	c.print(out.String())
}

// print writes whole lines in place of the live one.
func (c *Console) print(text string) {
	c.wipe()
	for line := range strings.Lines(text + "\n") {
		io.WriteString(c.out, strings.TrimRight(line, " \n")+"\n")
	}
}

// draw writes the live line of the running act.
func (c *Console) draw() {
	if !c.o.Live || c.act == nil {
		return
	}
	a := c.act
	head := strings.Repeat(" ", indent)
	if a.lines == 0 {
		head = fmt.Sprintf(" %2d %-*s ", a.n, nameWidth, a.name)
	}
	text := a.step
	if a.progress != "" {
		text += "  " + a.progress
	}
	width := c.width()
	time := Elapsed(c.o.Now().Sub(a.began))
	room := width - indent - timeWidth
	text = cut(text, max(room, 0))
	pad := max(room-length(text)+timeWidth-length(time), 1)
	c.wipe()
	io.WriteString(c.out, head+c.paint(dim, text)+strings.Repeat(" ", pad)+c.paint(dim, time))
	c.drawn = true
}

// wipe takes the live line away.
func (c *Console) wipe() {
	if c.drawn {
		io.WriteString(c.out, "\r\x1b[K")
		c.drawn = false
	}
}

// width is what lines may take: on a terminal one less than it has, since some
// break the line when the last column is written.
func (c *Console) width() int {
	w := c.o.Width()
	if c.o.Live {
		w--
	}
	return min(max(w, minWidth), maxWidth)
}

// ANSI SGR parameters (ECMA-48 §8.3.117).
const (
	bold = "\x1b[1m"
	dim  = "\x1b[2m"
	red  = "\x1b[31m"
	off  = "\x1b[0m"
)

func (c *Console) paint(with, text string) string {
	if !c.o.Color || text == "" {
		return text
	}
	return with + text + off
}

// Elapsed writes d in tenths of a second, or minutes and seconds.
func Elapsed(d time.Duration) string {
	if d < 99950*time.Millisecond {
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	}
	d = d.Round(time.Second)
	return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
}

func number(v float64) string {
	if v >= 10 || v == float64(int64(v)) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

func length(s string) int { return utf8.RuneCountInString(s) }

func cut(s string, room int) string {
	r := []rune(s)
	if len(r) <= room {
		return s
	}
	if room < 3 {
		return ""
	}
	return string(r[:room-3]) + "..."
}

// breakLines breaks text at blanks into lines of at most room characters, and at
// its own line ends. Runs of blanks inside a line stay: they are columns. A word
// that is longer than room has a line of its own.
func breakLines(text string, room int) []string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		for length(line) > room {
			r := []rune(line)
			at := strings.LastIndexByte(string(r[:room+1]), ' ')
			if at <= 0 {
				if at = strings.IndexByte(line, ' '); at <= 0 {
					break
				}
			}
			lines = append(lines, strings.TrimRight(line[:at], " "))
			line = strings.TrimLeft(line[at:], " ")
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}
