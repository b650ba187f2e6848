package theme

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxSide bounds a picture, in pixels: a boot screen's parts are small, and a
// mistyped size must not take all memory. No drawing has a coordinate beyond it
// either, so that no product of two of them overflows.
const maxSide = 4096

// PNG draws an SVG of the overlay at the size of its viewBox, on nothing. It knows
// what our own drawings are made of: rect, circle, and path with M, L, H, V, C and
// Z; fill and stroke in one colour, with round joins. Anything else is an error, so
// that no picture lacks a part unnoticed.
//
// It calculates in integers: the same SVG gives the same pixels on every processor,
// however this is compiled, and with the same Go release, whose compression is
// used, the same bytes. The libraries there are calculate in floating point, and
// round otherwise where the compiler fuses a multiplication and an addition (arm64,
// GOAMD64=v3).
func PNG(name string, svg []byte) ([]byte, error) {
	img, err := paint(svg)
	if err != nil {
		return nil, fmt.Errorf("drawing %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, img); err != nil {
		return nil, fmt.Errorf("drawing %s: %w", name, err)
	}
	return b.Bytes(), nil
}

func paint(svg []byte) (*image.RGBA, error) {
	var img *image.RGBA
	d := xml.NewDecoder(bytes.NewReader(svg))
	for depth := 0; ; {
		token, err := d.Token()
		if err == io.EOF && img != nil {
			return img, nil
		}
		if err != nil {
			return nil, fmt.Errorf("not readable as SVG: %w", err)
		}
		switch token := token.(type) {
		case xml.EndElement:
			depth--
		case xml.StartElement:
			e := element{name: token.Name.Local, attr: map[string]string{}}
			for _, a := range token.Attr {
				e.attr[strings.TrimPrefix(a.Name.Space+":"+a.Name.Local, ":")] = a.Value
			}
			switch {
			case (depth == 0) != (e.name == "svg") || depth == 0 && img != nil:
				err = errors.New("not one svg with everything in it")
			case depth == 0:
				img, err = e.canvas()
			case depth > 1:
				err = errors.New("it is inside another; write all shapes directly into svg, each with its own attributes")
			default:
				err = e.paint(img)
			}
			if err != nil {
				line, _ := d.InputPos()
				return nil, fmt.Errorf("line %d: %s: %w", line, e.name, err)
			}
			depth++
		}
	}
}

// element is one of the SVG, and those of its attributes that nobody took yet.
type element struct {
	name string
	attr map[string]string
}

func (e element) take(name string) string {
	v := e.attr[name]
	delete(e.attr, name)
	return v
}

// rest is an error if anything was not taken.
func (e element) rest() error {
	if len(e.attr) == 0 {
		return nil
	}
	return fmt.Errorf("%s cannot be drawn; leave it out, or write what it does into the coordinates and colours", strings.Join(slices.Sorted(maps.Keys(e.attr)), ", "))
}

var numberForm = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

// length reads a number of pixels as one of units, the nearest.
func length(s string) (int64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !numberForm.MatchString(s) {
		return 0, fmt.Errorf("%q is no number; write plain ones without a unit, and spaces between them", s)
	}
	if math.Abs(f) > maxSide {
		return 0, fmt.Errorf("%s is too large; at most %d", s, maxSide)
	}
	// Exact, as unit is a power of two, and no sum that it could be fused with.
	return int64(math.Round(f * unit)), nil
}

// lengths takes attributes that are numbers; what is not there is absent.
func (e element) lengths(absent string, names ...string) ([]int64, error) {
	var all []int64
	for _, name := range names {
		s := e.take(name)
		if s == "" {
			s = absent
		}
		n, err := length(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, n)
	}
	return all, nil
}

func (e element) canvas() (*image.RGBA, error) {
	e.take("xmlns")
	box := strings.Fields(e.take("viewBox"))
	if len(box) != 4 || box[0] != "0" || box[1] != "0" {
		return nil, errors.New(`write the viewBox as "0 0 WIDTH HEIGHT"`)
	}
	w, errW := strconv.Atoi(box[2])
	h, errH := strconv.Atoi(box[3])
	if errors.Join(errW, errH) != nil || w < 1 || h < 1 || w > maxSide || h > maxSide {
		return nil, fmt.Errorf("its viewBox is %s by %s; write whole pixels, at most %d each way", box[2], box[3], maxSide)
	}
	if sw, sh := e.take("width"), e.take("height"); sw != "" && sw != box[2] || sh != "" && sh != box[3] {
		return nil, errors.New("its width and height are not the viewBox's; nothing is scaled, write the same")
	}
	return image.NewRGBA(image.Rect(0, 0, w, h)), e.rest()
}

// paint draws the element: what is inside, and on it the stroke.
func (e element) paint(img *image.RGBA) error {
	var shape []outline
	var err error
	smooth := false // has no corners, so any join looks the same
	switch e.name {
	case "rect":
		shape, smooth, err = e.rect()
	case "circle":
		shape, err = e.circle()
		smooth = true
	case "path":
		shape, err = parsePath(e.take("d"))
	default:
		err = errors.New("cannot be drawn; there are rect, circle and path (make text one of these)")
	}
	if err != nil {
		return err
	}
	fill, stroke := e.take("fill"), e.take("stroke")
	if stroke == "" {
		stroke = "none"
	}
	var line []outline
	if stroke != "none" {
		width, err := e.lengths("1", "stroke-width")
		if err != nil {
			return err
		}
		if width[0] < 0 {
			return errors.New("stroke-width: below 0; write how wide the line is")
		}
		cornered := slices.ContainsFunc(shape, func(o outline) bool { return o.closed || len(o.points) > 2 })
		if join := e.take("stroke-linejoin"); join != "round" && (join != "" || cornered && !smooth) {
			return errors.New("only round joins can be drawn; write stroke-linejoin=\"round\"")
		}
		line = stroked(shape, width[0])
	}
	if err := errors.Join(e.rest(), lay(img, fill, shape)); err != nil {
		return err
	}
	return lay(img, stroke, line)
}

func (e element) circle() ([]outline, error) {
	v, err := e.lengths("0", "cx", "cy", "r")
	if err != nil {
		return nil, err
	}
	x, y, r := v[0], v[1], v[2]
	if r < 0 {
		return nil, errors.New("r: below 0; write the radius")
	}
	return []outline{roundRect(x-r, y-r, 2*r, 2*r, r, r)}, nil
}

func (e element) rect() (shape []outline, smooth bool, err error) {
	v, err := e.lengths("0", "x", "y", "width", "height")
	if err != nil {
		return nil, false, err
	}
	// One radius that is not there is as the other.
	rx, ry := e.attr["rx"], e.attr["ry"]
	r, err := e.lengths("0", "rx", "ry")
	switch {
	case err != nil:
		return nil, false, err
	case rx == "":
		r[0] = r[1]
	case ry == "":
		r[1] = r[0]
	}
	if min(v[2], v[3], r[0], r[1]) < 0 || 2*r[0] > v[2] || 2*r[1] > v[3] {
		return nil, false, errors.New("its sizes do not fit; write none below 0, and rx and ry of at most half of it")
	}
	return []outline{roundRect(v[0], v[1], v[2], v[3], r[0], r[1])}, r[0] > 0 && r[1] > 0, nil
}

// lay puts the colour on what the outlines enclose.
func lay(img *image.RGBA, colour string, shape []outline) error {
	if colour == "none" {
		return nil
	}
	c, err := ParseColour(colour)
	if err != nil {
		return fmt.Errorf("fill or stroke: %w; or none", err)
	}
	src := image.NewUniform(color.RGBA{c.R, c.G, c.B, 0xff})
	draw.DrawMask(img, img.Rect, src, image.Point{}, cover(img.Rect.Dx(), img.Rect.Dy(), shape), image.Point{}, draw.Over)
	return nil
}

// arity is how many numbers the commands of a path take.
var arity = map[string]int{"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}

// parsePath reads the d of a path.
func parsePath(d string) ([]outline, error) {
	for c := range arity {
		d = strings.ReplaceAll(d, c, " "+c+" ")
	}
	words := strings.Fields(strings.ReplaceAll(d, ",", " "))
	var shape []outline
	command := ""
	for len(words) > 0 {
		if _, ok := arity[words[0]]; ok {
			command, words = words[0], words[1:]
		}
		if command != "M" && (len(shape) == 0 || shape[len(shape)-1].closed) {
			return nil, errors.New("d: write M where it begins, and after each Z; nothing else can begin a line")
		}
		n := arity[command]
		if len(words) < n {
			return nil, fmt.Errorf("d: %s takes %d numbers", command, n)
		}
		var v []int64
		for _, w := range words[:n] {
			number, err := length(w)
			if err != nil {
				return nil, fmt.Errorf("d: %w; the commands are M, L, H, V, C and Z, in capitals: absolute coordinates, and arcs as curves", err)
			}
			v = append(v, number)
		}
		words = words[n:]
		if command == "M" {
			shape = append(shape, outline{points: []point{{v[0], v[1]}}})
			command = "L" // what further numbers after M mean
			continue
		}
		o := &shape[len(shape)-1]
		pen := o.points[len(o.points)-1]
		switch command {
		case "L":
			o.points = append(o.points, point{v[0], v[1]})
		case "H":
			o.points = append(o.points, point{v[0], pen.y})
		case "V":
			o.points = append(o.points, point{pen.x, v[0]})
		case "C":
			o.curve(point{v[0], v[1]}, point{v[2], v[3]}, point{v[4], v[5]})
		case "Z":
			o.closed = true
		}
	}
	return shape, nil
}
