package matrix

import (
	"fmt"
	"html"
	"io"
	"slices"
	"strings"
)

// Shape is how much room a picture has.
type Shape int

const (
	// Wide has the layers beside each other: a page or a desk.
	Wide Shape = iota
	// Narrow has them one above the other: a phone.
	Narrow
)

// geometry of a picture, in CSS pixels.
type geometry struct {
	label, column, row, gap float64
	beside                  bool
}

var geometries = map[Shape]geometry{
	Wide:   {label: 84, column: 94, row: 42, gap: 34, beside: true},
	Narrow: {label: 58, column: 66, row: 42, gap: 22},
}

const (
	headHeight    = 46 // the layer's name and those of the columns
	captionHeight = 34 // a condition's text
	captionLine   = 18 // another one's above it
	legendRow     = 22
	inset         = 2 // between two squares
)

// style is inside the picture, so that it stands alone; every rule begins with
// its class, so that a page that it is put into keeps its own.
const style = `<style>
.reach { --ink:#22252b; --soft:#5e646e; --line:#dedbd5; --shutfill:#f6ecd9; --shut:#8a5a00; --bad:#b3231b; --tailnet:#2463c8; --yggdrasil:#b8560b; --tint:.13; font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; font-variant-numeric:tabular-nums }
@media (prefers-color-scheme: dark) { .reach { --ink:#e6e4df; --soft:#9aa0aa; --line:#33373e; --shutfill:#3a2f1a; --shut:#f0c070; --bad:#ff8b80; --tailnet:#7fadff; --yggdrasil:#f2a45c; --tint:.2 } }
.reach text { fill:var(--ink); font-size:12px } .reach .soft { fill:var(--soft); font-size:11px } .reach .head { fill:var(--soft); font-size:11.5px }
.reach .layer, .reach .what { font-weight:650 } .reach .layer.tailnet { fill:var(--tailnet) } .reach .layer.yggdrasil { fill:var(--yggdrasil) }
.reach .caption { font-weight:650; font-size:13px } .reach .mid { text-anchor:middle } .reach .rule { stroke:var(--line); fill:none }
.reach rect { stroke:var(--line); fill:none } .reach rect.open { stroke:none; fill-opacity:var(--tint) }
.reach rect.open.tailnet { fill:var(--tailnet) } .reach rect.open.yggdrasil { fill:var(--yggdrasil) } .reach rect.open.any { fill:var(--soft) }
.reach rect.shut { fill:var(--shutfill); stroke:var(--shut); stroke-dasharray:4 3 } .reach .what.shut { fill:var(--shut) }
.reach rect.leak { fill:var(--bad); fill-opacity:.16; stroke:var(--bad); stroke-width:2 } .reach .what.leak { fill:var(--bad) }
.reach rect.open.partly { stroke:var(--shut); stroke-dasharray:4 3 }
.reach.narrow text { font-size:11px } .reach.narrow .soft, .reach.narrow .head { font-size:10px } .reach.narrow .caption { font-size:12px }
.reach rect.silent { stroke-dasharray:1 4; stroke:var(--soft) } .reach .what.silent { fill:var(--soft); font-weight:400 }
</style>`

// drawing collects a picture.
type drawing struct {
	strings.Builder
	geometry
	*view
}

// SVG draws who reaches what. The picture needs no other file and no script, and
// says everything by words and shapes as well as by colour.
func (r *Record) SVG(w io.Writer, shape Shape) error {
	d := drawing{geometry: geometries[shape], view: r.view()}
	class := "reach"
	width, height := 0.0, 0.0
	if d.beside {
		width = d.end(d.layers)
		height = d.table(0, width, d.layers)
	} else {
		class += " narrow"
		for _, l := range d.layers {
			width = max(width, d.end([]string{l}))
		}
		for _, l := range d.layers {
			height = d.table(height, width, []string{l}) + d.gap/2
		}
	}
	height = d.legend(height+10, width)
	var all strings.Builder
	fmt.Fprintf(&all, `<svg xmlns="http://www.w3.org/2000/svg" class="%s" viewBox="0 0 %.0f %.0f" width="%.0f" role="img">`, class, width, height, width)
	fmt.Fprintf(&all, "<title>Who reaches what, as measured: %s.</title>%s\n%s</svg>\n", html.EscapeString(r.Summary()), style, d.String())
	_, err := io.WriteString(w, all.String())
	return err
}

// table draws some layers from y downwards, and says where it ends.
func (d *drawing) table(y, width float64, layers []string) float64 {
	for i, l := range layers {
		x := d.left(layers, i)
		fmt.Fprintf(d, `<text class="layer %s" x="%.1f" y="%.1f">%s</text>`, layerClass(l), x+inset, y+15, html.EscapeString(l))
		for j, c := range d.columnsOf(l) {
			fmt.Fprintf(d, `<text class="head mid" x="%.1f" y="%.1f">%s</text>`, x+(float64(j)+.5)*d.column, y+35, html.EscapeString(d.columns[c]))
		}
	}
	y += headHeight
	for _, b := range d.blocks {
		fmt.Fprintf(d, `<path class="rule" d="M0 %.1fH%.1f"/>`, y, width)
		for i, text := range b.texts {
			if i > 0 {
				y += captionLine
			}
			fmt.Fprintf(d, `<text class="caption" x="0" y="%.1f">%s</text>`, y+22, html.EscapeString(text))
		}
		y += captionHeight
		for _, w := range b.rows {
			if !d.tried(w, layers) {
				continue
			}
			fmt.Fprintf(d, `<text x="0" y="%.1f">%s</text>`, y+d.row/2+4, html.EscapeString(w.source))
			for i, l := range layers {
				d.line(d.left(layers, i), y, l, w.squares[d.index(l)])
			}
			d.WriteString("\n")
			y += d.row
		}
		y += 8
	}
	return y
}

// line draws a row of one layer. One that is silent throughout is one square.
func (d *drawing) line(x, y float64, layer string, squares []*square) {
	columns := d.columnsOf(layer)
	silent := 0
	for _, q := range squares {
		if q != nil && !q.silent {
			silent = -len(squares)
		} else if q != nil {
			silent++
		}
	}
	if silent > 1 {
		width := d.column * float64(len(columns))
		fmt.Fprintf(d, `<rect class="silent" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3"/><text class="soft mid" x="%.1f" y="%.1f">silent: taken away by the ISP</text>`,
			x+inset, y+inset, width-2*inset, d.row-2*inset, x+width/2, y+d.row/2+4)
		return
	}
	for j, c := range columns {
		d.square(x+float64(j)*d.column, y, layer, squares[c])
	}
}

// columnsOf are the columns in which anything was tried on a layer.
func (d *drawing) columnsOf(layer string) []int {
	var all []int
	for c := range d.columns {
		if slices.ContainsFunc(d.blocks, func(b block) bool {
			return slices.ContainsFunc(b.rows, func(w row) bool { return w.squares[d.index(layer)][c] != nil })
		}) {
			all = append(all, c)
		}
	}
	return all
}

// left is where the i-th of the layers begins.
func (d *drawing) left(layers []string, i int) float64 {
	x := d.label
	for _, l := range layers[:i] {
		x += d.column*float64(len(d.columnsOf(l))) + d.gap
	}
	return x
}

// end is where the last of the layers ends.
func (d *drawing) end(layers []string) float64 {
	last := len(layers) - 1
	return d.left(layers, last) + d.column*float64(len(d.columnsOf(layers[last])))
}

func (d *drawing) index(layer string) int { return slices.Index(d.view.layers, layer) }

// tried says whether a row has anything on these layers.
func (d *drawing) tried(w row, layers []string) bool {
	for _, l := range layers {
		for _, q := range w.squares[d.index(l)] {
			if q != nil {
				return true
			}
		}
	}
	return false
}

// square draws one, with all that it says as its title.
func (d *drawing) square(x, y float64, layer string, q *square) {
	mid := x + d.column/2
	if q == nil {
		fmt.Fprintf(d, `<text class="soft mid" x="%.1f" y="%.1f">·</text>`, mid, y+d.row/2+4)
		return
	}
	what, count := q.words()
	class := ""
	switch {
	case len(q.leaked) > 0:
		class, what = "leak", "✕ "+few(q.leaked)
	case q.silent:
		class = "silent"
	case len(q.shut) > 0 && len(q.open) == 0:
		class = "shut"
	case len(q.open) > 0:
		class = "open " + layerClass(layer)
		if len(q.shut) > 0 {
			class += " partly"
		}
	}
	title := fmt.Sprintf("open: %s; refused: %d", list(q.open), q.refused)
	if len(q.shut) > 0 {
		title += "; should be open and is not: " + list(q.shut)
	}
	if len(q.leaked) > 0 {
		title += "; should be closed and is open: " + list(q.leaked)
	}
	fmt.Fprintf(d, `<g><title>%s</title><rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3"/>`,
		html.EscapeString(title), class, x+inset, y+inset, d.column-2*inset, d.row-2*inset)
	mark := strings.Fields(class + " closed")[0]
	switch {
	case what == "":
		fmt.Fprintf(d, `<text class="soft mid" x="%.1f" y="%.1f">%s</text>`, mid, y+d.row/2+4, html.EscapeString(count))
	case count == "":
		fmt.Fprintf(d, `<text class="what mid %s" x="%.1f" y="%.1f">%s</text>`, mark, mid, y+d.row/2+4, html.EscapeString(what))
	default:
		fmt.Fprintf(d, `<text class="what mid %s" x="%.1f" y="%.1f">%s</text><text class="soft mid" x="%.1f" y="%.1f">%s</text>`,
			mark, mid, y+d.row/2-2, html.EscapeString(what), mid, y+d.row/2+13, html.EscapeString(count))
	}
	d.WriteString("</g>")
}

// layerClass is a layer's colour; others than the two have none.
func layerClass(layer string) string {
	if layer == "tailnet" || layer == "yggdrasil" {
		return layer
	}
	return "any"
}

func list(all []string) string {
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, ", ")
}

// legend explains the squares, and says where it ends.
func (d *drawing) legend(y, width float64) float64 {
	x := 0.0
	for _, e := range []struct{ class, text string }{
		{"open any", "what opens; below, how much else was tried and came through"},
		{"", "nothing opens"},
		{"shut", "allowed, but not open on this layer"},
		{"leak", "✕ came through, and must not"},
	} {
		const swatch, letter = 22, 5.9
		w := swatch + letter*float64(len([]rune(e.text))) + 14
		if x > 0 && x+w > width {
			x, y = 0, y+legendRow
		}
		fmt.Fprintf(d, `<rect class="%s" x="%.1f" y="%.1f" width="14" height="12" rx="2"/><text class="soft" x="%.1f" y="%.1f">%s</text>`,
			e.class, x+1, y+2, x+swatch, y+12, html.EscapeString(e.text))
		x += w
	}
	y += legendRow + 12
	for _, line := range wrap(fmt.Sprintf("%s. %s, commit %s.", d.Summary(), d.Date.UTC().Format("2006-01-02"), d.Commit), int(width/5.9)) {
		fmt.Fprintf(d, `<text class="soft" x="0" y="%.1f">%s</text>`, y, html.EscapeString(line))
		y += 15
	}
	return y
}

// wrap breaks text into lines of at most width letters, where it has spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}
