package theme

import (
	"cmp"
	"image"
	"math/big"
	"slices"
)

const (
	// A pixel has so many units: more than any drawing needs, and few enough that
	// no product of coordinates up to maxSide overflows.
	unit = 1 << 10
	// A pixel is measured along so many lines; a level edge has as many shades.
	linesPerPixel = 1 << 6
	lineShift     = 10 - 6
	lineStep      = 1 << lineShift
	// steps are the straight pieces of a curve: a quarter of a circle of 500
	// pixels is off by less than a tenth of one.
	steps = 64
	// A quarter of a circle is drawn as the curve whose handles are so long; the
	// radius is off by a quarter of a thousandth.
	handle, handleOf = 5523, 10000
)

// point is in units.
type point struct{ x, y int64 }

// outline is a line of straight pieces; curves are such of many.
type outline struct {
	points []point
	closed bool
}

// curve appends the cubic Bézier curve from the last point to d.
func (o *outline) curve(b, c, d point) {
	a := o.points[len(o.points)-1]
	for t := int64(1); t <= steps; t++ {
		s := int64(steps) - t
		at := func(a, b, c, d int64) int64 {
			return (a*s*s*s + 3*b*s*s*t + 3*c*s*t*t + d*t*t*t) / (steps * steps * steps)
		}
		o.points = append(o.points, point{at(a.x, b.x, c.x, d.x), at(a.y, b.y, c.y, d.y)})
	}
}

// roundRect is a rectangle whose corners are quarters of an ellipse.
func roundRect(x, y, w, h, rx, ry int64) outline {
	if rx == 0 || ry == 0 {
		rx, ry = 0, 0
	}
	kx, ky := rx-rx*handle/handleOf, ry-ry*handle/handleOf
	o := outline{points: []point{{x + rx, y}}, closed: true}
	for _, c := range [4][4]point{ // an edge, and the corner after it
		{{x + w - rx, y}, {x + w - kx, y}, {x + w, y + ky}, {x + w, y + ry}},
		{{x + w, y + h - ry}, {x + w, y + h - ky}, {x + w - kx, y + h}, {x + w - rx, y + h}},
		{{x + rx, y + h}, {x + kx, y + h}, {x, y + h - ky}, {x, y + h - ry}},
		{{x, y + ry}, {x, y + ky}, {x + kx, y}, {x + rx, y}},
	} {
		o.points = append(o.points, c[0])
		if rx > 0 {
			o.curve(c[1], c[2], c[3])
		}
	}
	return o
}

// stroked are the outlines of lines of a width: a box along every piece, and a
// disc where two pieces meet. All go the same way round, so that [cover] takes
// them together where they overlap.
func stroked(shape []outline, width int64) []outline {
	var all []outline
	for _, o := range shape {
		points := slices.Compact(slices.Clone(o.points))
		n := len(points)
		for i, a := range points {
			if o.closed || i > 0 && i < n-1 {
				all = append(all, roundRect(a.x-width/2, a.y-width/2, width, width, width/2, width/2))
			}
			if i == n-1 && !o.closed {
				continue
			}
			b := points[(i+1)%n]
			dx, dy := b.x-a.x, b.y-a.y
			// The length in 64ths of a unit, for short pieces are to be as wide.
			long := new(big.Int).Sqrt(big.NewInt((dx*dx + dy*dy) << 12)).Int64()
			if long == 0 {
				continue
			}
			nx, ny := dy*width*32/long, -dx*width*32/long
			all = append(all, outline{points: []point{{a.x + nx, a.y + ny}, {b.x + nx, b.y + ny}, {b.x - nx, b.y - ny}, {a.x - nx, a.y - ny}}, closed: true})
		}
	}
	return all
}

// edge is a piece of an outline that goes down by turn: 1, or -1 if it goes up.
type edge struct {
	top, bottom point
	turn        int64
}

// crossing is where an edge crosses a line of a pixel.
type crossing struct{ x, turn int64 }

// cover is how much of every pixel the outlines enclose, by the nonzero rule.
// It counts in integers, which are the same everywhere.
func cover(w, h int, shape []outline) *image.Alpha {
	var edges []edge
	for _, o := range shape {
		for i, a := range o.points {
			b := o.points[(i+1)%len(o.points)]
			switch {
			case a.y < b.y:
				edges = append(edges, edge{a, b, 1})
			case a.y > b.y:
				edges = append(edges, edge{b, a, -1})
			}
		}
	}
	mask := image.NewAlpha(image.Rect(0, 0, w, h))
	sums := make([]int64, w)            // what is covered of a row of pixels
	var lines [linesPerPixel][]crossing // and what crosses its lines
	for row := range int64(h) {
		for i := range lines {
			lines[i] = lines[i][:0]
		}
		for _, e := range edges {
			// The lines whose middle is not above the top, and above the bottom.
			first := (e.top.y + lineStep/2 - 1) >> lineShift
			last := (e.bottom.y + lineStep/2 - 1) >> lineShift
			for l := max(first, row*linesPerPixel); l < min(last, (row+1)*linesPerPixel); l++ {
				x := e.top.x + (e.bottom.x-e.top.x)*(l*lineStep+lineStep/2-e.top.y)/(e.bottom.y-e.top.y)
				lines[l%linesPerPixel] = append(lines[l%linesPerPixel], crossing{x, e.turn})
			}
		}
		clear(sums)
		for _, line := range lines {
			slices.SortFunc(line, func(a, b crossing) int { return cmp.Compare(a.x, b.x) })
			turns := int64(0)
			for i, c := range line {
				if turns != 0 {
					addSpan(sums, line[i-1].x, c.x)
				}
				turns += c.turn
			}
		}
		for x, sum := range sums {
			const full = unit * linesPerPixel
			mask.Pix[int(row)*mask.Stride+x] = uint8((sum*255 + full/2) / full)
		}
	}
	return mask
}

// addSpan adds what [from, to) covers of each pixel.
func addSpan(sums []int64, from, to int64) {
	from, to = max(from, 0), min(to, int64(len(sums))*unit)
	for from < to {
		x := from / unit
		end := min(to, (x+1)*unit)
		sums[x] += end - from
		from = end
	}
}
