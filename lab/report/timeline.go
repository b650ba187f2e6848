package report

import (
	"cmp"
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
)

// size is one drawing of the timeline, in CSS pixels. The page carries two and
// shows the one that fits: text that is scaled down cannot be read.
type size struct {
	class                    string
	width, height            float64
	left, right, top, bottom float64 // margins of the plot
	dot                      float64 // half a mark's width
}

var (
	wide   = size{"wide", 1080, 400, 52, 8, 62, 56, 2.6}
	narrow = size{"narrow", 358, 320, 38, 4, 44, 52, 1.9}

	// Boots are lower: there is little to see until the end.
	wideBoot   = size{"wide", 1080, 240, 52, 8, 62, 56, 2.6}
	narrowBoot = size{"narrow", 358, 220, 38, 4, 44, 52, 1.9}
)

const (
	// charWidth is the width of a character at 12 px, on the safe side.
	charWidth = 6.6
	// lineHeight is of the text in bands, in px.
	lineHeight = 14.0
	// failStrip is the height above the plot where failures stand, in px.
	failStrip = 18.0
	// ribbonHeight is of the strip below the plot that says the layer in use.
	ribbonHeight = 14.0
)

// timeline is the drawing's state.
type timeline struct {
	size
	b        strings.Builder
	from, to time.Time
	lo, hi   float64 // latency in ms
}

// drawTimeline draws requests over time: one mark per request, its height the
// latency on a logarithmic scale, its colour and shape the layer; bands where the
// ISP acts; lines for single moments.
func drawTimeline(s size, samples []browse.Sample, bands []Band, marks ...Mark) template.HTML {
	t := &timeline{size: s}
	t.scale(samples, bands)
	fmt.Fprintf(&t.b, `<svg class="timeline %s" viewBox="0 0 %g %g" role="img" aria-label="Requests over time: height is latency, shape and colour are the layer, grey bands are the ISP's acts">`, s.class, s.width, s.height)
	t.bands(bands)
	t.moments(marks)
	t.axes()
	t.marks(samples)
	t.ribbon(samples)
	t.b.WriteString("</svg>")
	return template.HTML(t.b.String())
}

// scale finds what the axes must hold.
func (t *timeline) scale(samples []browse.Sample, bands []Band) {
	t.lo, t.hi = math.Inf(1), math.Inf(-1)
	for i, s := range samples {
		if b := s.Began(); i == 0 || b.Before(t.from) {
			t.from = b
		}
		if b := s.Began(); i == 0 || b.After(t.to) {
			t.to = b
		}
		if s.OK {
			t.lo, t.hi = min(t.lo, s.Millis), max(t.hi, s.Millis)
		}
	}
	for _, b := range bands {
		if t.from.IsZero() || b.From.Before(t.from) {
			t.from = b.From
		}
		if b.To.After(t.to) {
			t.to = b.To
		}
	}
	if !t.to.After(t.from) {
		t.to = t.from.Add(time.Second)
	}
	// At least from 10 to 100 ms, so that a good day is not drawn as a storm.
	t.lo, t.hi = min(t.lo, 10), max(t.hi, 100)
	t.lo, t.hi = max(t.lo*0.8, 0.5), t.hi*1.25
}

func (t *timeline) x(at time.Time) float64 {
	f := at.Sub(t.from).Seconds() / t.to.Sub(t.from).Seconds()
	return t.left + min(max(f, 0), 1)*(t.width-t.left-t.right)
}

func (t *timeline) y(ms float64) float64 {
	f := (math.Log(ms) - math.Log(t.lo)) / (math.Log(t.hi) - math.Log(t.lo))
	return t.height - t.bottom - min(max(f, 0), 1)*(t.height-t.bottom-t.top)
}

func (t *timeline) bands(bands []Band) {
	bottom := t.height - t.bottom
	for i, b := range bands {
		x0, x1 := t.x(b.From), t.x(b.To)
		class := "band"
		switch {
		case b.Lifted:
			class += " lifted"
		case i%2 == 1:
			class += " odd" // neighbours must be told apart
		}
		fmt.Fprintf(&t.b, `<g><title>%s</title><rect class="%s" x="%.1f" y="0" width="%.1f" height="%.1f"/>`,
			html.EscapeString(b.Text), class, x0, max(x1-x0, 1), bottom)
		fmt.Fprintf(&t.b, `<path class="edge" d="M%.1f 0V%.1f"/>`, x0, bottom)
		end := x1
		if i+1 < len(bands) { // the next may begin while this one lasts, and lies on it
			end = min(x1, t.x(bands[i+1].From))
		}
		lines := wrap(b.Text, int((end-x0-26)/charWidth), int((t.top-failStrip-4)/lineHeight))
		fmt.Fprintf(&t.b, `<text class="number" x="%.1f" y="14">%d</text>`, x0+5, i+1)
		for j, line := range lines {
			fmt.Fprintf(&t.b, `<text x="%.1f" y="%.1f">%s</text>`, x0+18, 14+lineHeight*float64(j), html.EscapeString(line))
		}
		t.b.WriteString("</g>")
	}
}

// moments are lines with a word, below the words of the bands.
func (t *timeline) moments(marks []Mark) {
	for _, m := range marks {
		x, y := t.x(m.At), t.top-failStrip-3
		fmt.Fprintf(&t.b, `<path class="edge" d="M%.1f %.1fV%.1f"/>`, x, y-lineHeight+3, t.height-t.bottom)
		at, anchor := x+5, "start"
		if at+charWidth*float64(len(m.Text)) > t.width-t.right {
			at, anchor = x-5, "end"
		}
		fmt.Fprintf(&t.b, `<text class="moment" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, at, y, anchor, html.EscapeString(m.Text))
	}
}

// wrap breaks text into at most rows lines of at most width characters, or
// returns nil if it does not fit: half a sentence says nothing.
func wrap(text string, width, rows int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case len(word) > width:
			return nil
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	if len(lines) > rows {
		return nil
	}
	return lines
}

func (t *timeline) axes() {
	right, bottom := t.width-t.right, t.height-t.bottom
	for _, ms := range []float64{1, 3, 10, 30, 100, 300, 1000, 3000, 10000} {
		if ms < t.lo || ms > t.hi {
			continue
		}
		label := fmt.Sprintf("%g ms", ms)
		if ms >= 1000 {
			label = fmt.Sprintf("%g s", ms/1000)
		}
		fmt.Fprintf(&t.b, `<path class="grid" d="M%g %.1fH%g"/><text class="tick" x="%g" y="%.1f" text-anchor="end">%s</text>`,
			t.left, t.y(ms), right, t.left-5, t.y(ms)+4, label)
	}
	fmt.Fprintf(&t.b, `<text class="tick" x="%g" y="%.1f" text-anchor="end">%s</text>`, t.left-5, t.top-failStrip/2+2, "none")
	length := t.to.Sub(t.from).Seconds()
	most := (right - t.left) / 64 // ticks that fit
	step := 1.0
	for _, s := range []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600} {
		if step = s; length/s <= most {
			break
		}
	}
	y := bottom + ribbonHeight + 20
	for s := 0.0; s <= length; s += step {
		x := t.x(t.from.Add(time.Duration(s * float64(time.Second))))
		anchor := "middle"
		if x > right-12 {
			anchor = "end"
		}
		label := fmt.Sprintf("%g s", s)
		if step >= 60 {
			label = fmt.Sprintf("%g min", s/60)
		}
		fmt.Fprintf(&t.b, `<path class="notch" d="M%.1f %.1fv4"/><text class="tick" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, bottom+ribbonHeight+3, x, y, anchor, label)
	}
}

// marks draws each layer's requests as one path: a thousand elements would be
// slow to open.
func (t *timeline) marks(samples []browse.Sample) {
	paths := map[string]*strings.Builder{}
	for _, s := range samples {
		class := "lost"
		x, y, r := t.x(s.Began()), t.top-failStrip/2-2, t.dot
		d := fmt.Sprintf("M%.1f %.1fl%[3]g %[3]gm0-%[3]gl-%[3]g %[3]g", x-r, y-r, 2*r)
		if s.OK {
			class, y = s.Layer, t.y(s.Millis)
			switch s.Layer {
			case browse.Tailnet: // a disc
				d = fmt.Sprintf("M%.1f %.1fa%[3]g %[3]g 0 1 0 %[4]g 0a%[3]g %[3]g 0 1 0-%[4]g 0", x-r, y, r, 2*r)
			case browse.Yggdrasil: // a diamond
				r *= 1.45
				d = fmt.Sprintf("M%.1f %.1fl%[3]g %[3]g-%[3]g %[3]g-%[3]g-%[3]gz", x, y-r, r)
			default: // a square
				class = browse.Other
				d = fmt.Sprintf("M%.1f %.1fh%[3]gv%[3]gh-%[3]gz", x-r, y-r, 2*r)
			}
		}
		if paths[class] == nil {
			paths[class] = &strings.Builder{}
		}
		paths[class].WriteString(d)
	}
	for _, class := range []string{browse.Tailnet, browse.Yggdrasil, browse.Other, "lost"} {
		if p := paths[class]; p != nil {
			fmt.Fprintf(&t.b, `<path class="mark %s" d="%s"/>`, class, p)
		}
	}
}

// ribbon says in words and colour which layer carried the answers when.
func (t *timeline) ribbon(samples []browse.Sample) {
	good := slices.DeleteFunc(slices.Clone(samples), func(s browse.Sample) bool { return !s.OK })
	slices.SortFunc(good, func(a, b browse.Sample) int { return cmp.Compare(a.Start, b.Start) })
	y := t.height - t.bottom + 3
	for i := 0; i < len(good); {
		j := i
		for j+1 < len(good) && good[j+1].Layer == good[i].Layer {
			j++
		}
		x0, x1 := t.x(good[i].Began()), t.x(good[j].Done())
		if j+1 < len(good) {
			x1 = min(x1, t.x(good[j+1].Began()))
		}
		fmt.Fprintf(&t.b, `<rect class="run %s" x="%.1f" y="%.1f" width="%.1f" height="%g" rx="2"/>`, good[i].Layer, x0, y, max(x1-x0, 1), ribbonHeight)
		if x1-x0 > charWidth*float64(len(good[i].Layer))+6 {
			fmt.Fprintf(&t.b, `<text class="run" x="%.1f" y="%.1f">%s</text>`, x0+5, y+ribbonHeight-3.5, good[i].Layer)
		}
		i = j + 1
	}
}
