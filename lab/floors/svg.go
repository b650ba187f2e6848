package floors

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// Sizes of the picture, in CSS pixels.
const (
	labelWidth  = 372
	cellWidth   = 62
	cellHeight  = 28
	layerGap    = 14
	headHeight  = 52
	footRow     = 18
	cellInset   = 1.5
	floorHeight = 30 // the line above the rows of a floor
)

// slow is from when on a person notices the wait, in seconds.
const slow = 2

// style is inside the picture, so that it stands alone; every rule begins with
// its class, so that a page that it is put into keeps its own.
const style = `<style>
.floors { --ink:#22252b; --soft:#5e646e; --line:#dedbd5; --good:#1d7a4f; --slow:#8a5a00; --bad:#b3231b; --tint:.14; font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; font-variant-numeric:tabular-nums }
@media (prefers-color-scheme: dark) { .floors { --ink:#e6e4df; --soft:#9aa0aa; --line:#33373e; --good:#63d297; --slow:#f0c070; --bad:#ff8b80; --tint:.2 } }
.floors text { fill:var(--ink); font-size:12px } .floors .soft { fill:var(--soft); font-size:11px } .floors .mid { text-anchor:middle }
.floors .layer { font-weight:650; font-size:13px } .floors .floor { font-weight:650 } .floors .rule { stroke:var(--line); fill:none }
.floors rect { stroke:none; fill-opacity:var(--tint) } .floors rect.good { fill:var(--good) } .floors rect.slow { fill:var(--slow) }
.floors rect.na { fill:none } .floors text.na { fill:var(--soft) } .floors rect.red { fill:none; stroke:var(--line) } .floors rect.flaky { fill:var(--bad); stroke:var(--bad) } .floors text.red { fill:var(--bad) } .floors text.flaky { fill:var(--bad); font-weight:650 }
</style>`

// groups are the rows' headings, by the floor that they belong to.
var groups = []struct{ floor, text string }{
	{open, "Nothing blocked, promised"},
	{"i", "Floor i, promised: the control server's names are taken away"},
	{"ii", "Floor ii, promised: Tailscale is blocked"},
	{"", "Not promised, published as it is"},
}

// SVG draws the record: a row for each condition, a square for each cell.
func (r *Record) SVG(w io.Writer) error {
	var b strings.Builder
	width := float64(labelWidth) + float64(len(layers)*len(modes)*cellWidth) + float64((len(layers)-1)*layerGap)
	left := func(layer, mode int) float64 {
		return labelWidth + float64(layer)*(float64(len(modes)*cellWidth)+layerGap) + float64(mode*cellWidth)
	}
	for i, l := range layers {
		text := l
		if l == Product {
			text = "veilor (chooses a layer)"
		}
		fmt.Fprintf(&b, `<text class="layer" x="%.1f" y="16">%s</text>`, left(i, 0)+cellInset, text)
		for j, m := range modes {
			fmt.Fprintf(&b, `<text class="soft mid" x="%.1f" y="38">%s</text>`, left(i, j)+cellWidth/2, m)
		}
	}
	y := float64(headHeight)
	for _, g := range groups {
		headed := false
		for i := range r.Rows {
			row := &r.Rows[i]
			if row.Floor != g.floor {
				continue
			}
			if !headed {
				headed = true
				fmt.Fprintf(&b, `<path class="rule" d="M0 %.1fH%.1f"/><text class="floor" x="0" y="%.1f">%s</text>`+"\n", y, width, y+20, g.text)
				y += floorHeight
			}
			fmt.Fprintf(&b, `<text x="0" y="%.1f">%s</text>`, y+cellHeight/2+4, html.EscapeString(row.Title))
			for i, l := range layers {
				for j, m := range modes {
					if c := row.cell(l, m); c != nil {
						c.draw(&b, left(i, j), y)
					}
				}
			}
			b.WriteString("\n")
			y += cellHeight
		}
	}
	y += 24
	lines := []string{
		fmt.Sprintf("Seconds from the block until a request that began after it is answered, the worst of %s. — no answer within %.0f s (%.0f s after a start).",
			times(r.Rounds), answerLimit.Seconds(), freshLimit.Seconds()),
		fmt.Sprintf("Measured %s on %s.", r.Date.Format("2006-01-02"), r.Commit),
	}
	lines = append(lines, r.Gaps()...)
	if text := r.others(); text != "" {
		lines = append(lines, text)
	}
	for _, text := range lines {
		fmt.Fprintf(&b, `<text class="soft" x="0" y="%.1f">%s</text>`, y, html.EscapeString(text))
		y += footRow
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" class="floors" viewBox="0 0 %.0f %.0f" width="%.0f" role="img"><title>What a laptop still reaches, by condition of the network and layer</title>%s%s</svg>`+"\n",
		width, y, width, style, b.String())
	return err
}

// others says how it went for who was not measured.
func (r *Record) others() string {
	var text string
	worst, missed := 0.0, 0
	for _, row := range r.Rows {
		switch {
		case row.Admin == nil:
		case row.Admin.Result == Green:
			worst = max(worst, row.Admin.Seconds)
		default:
			missed++
		}
	}
	switch {
	case missed > 0:
		text = fmt.Sprintf("In %d of the promised conditions an administrator did not reach the server's ssh port each time. ", missed)
	case worst > 0:
		text = fmt.Sprintf("In every promised condition an administrator reached the server's ssh port, within %.1f s. ", worst)
	}
	if n := r.Neighbours; n != nil {
		text += fmt.Sprintf("Of %d neighbours' %d kept connections, %d ended.", n.Laptops, n.Connections, n.Ended)
	}
	return text
}

func times(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("%d rounds", n)
}

func (c *Cell) draw(b *strings.Builder, x, y float64) {
	class, text, title := "red", "—", c.Reason
	switch c.Result {
	case Green:
		class, text = "good", fmt.Sprintf("%.1f", c.Seconds)
		if c.Seconds > slow {
			class = "slow"
		}
		title = fmt.Sprintf("%.2f s", c.Seconds)
	case NA:
		class, text = "na", "n/a"
	case Flaky:
		class, text = "flaky", "flaky"
	}
	fmt.Fprintf(b, `<g><title>%s</title><rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3"/><text class="%s mid" x="%.1f" y="%.1f">%s</text></g>`,
		html.EscapeString(title), class, x+cellInset, y+cellInset, cellWidth-2*cellInset, cellHeight-2*cellInset, class, x+cellWidth/2, y+cellHeight/2+4, text)
}
