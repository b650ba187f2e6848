// Package theme is how veilor looks: one file names its colours, and whatever is
// shown between the passphrase and the desktop is made of it.
//
// The file is overlay/usr/share/veilor/theme.yaml. Templates of the overlay take
// its colours by name (see [Theme.Funcs]), pictures are drawn from SVG (see
// [PNG]), and [Illegible] finds text that cannot be read on what is behind it.
package theme

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/veilor/veilor-os/internal/strictyaml"
)

// Path is where the overlay, and the image, has the file of colours.
const Path = "usr/share/veilor/theme.yaml"

// maxSize bounds the file: a hundred colours with a comment each fit.
const maxSize = 16 << 10

// Colour is an opaque sRGB colour.
type Colour struct{ R, G, B uint8 }

// ParseColour reads the form #rrggbb. There is no short form and no alpha: what
// is behind a translucent colour decides whether text on it can be read.
func ParseColour(s string) (Colour, error) {
	bad := fmt.Errorf("%q is no colour; write # and six hex digits, like \"#1b252c\"", s)
	if len(s) != 7 || s[0] != '#' {
		return Colour{}, bad
	}
	n, err := strconv.ParseUint(s[1:], 16, 24)
	if err != nil {
		return Colour{}, bad
	}
	return Colour{uint8(n >> 16), uint8(n >> 8), uint8(n)}, nil
}

// String is the form #rrggbb, as SVG wants it.
func (c Colour) String() string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

// RGB is the form 27,37,44, as KDE's files want it.
func (c Colour) RGB() string { return fmt.Sprintf("%d,%d,%d", c.R, c.G, c.B) }

// Unit is the form "0.106, 0.145, 0.173", as Plymouth's scripts want it. Three
// decimals tell 256 steps apart.
func (c Colour) Unit() string {
	return fmt.Sprintf("%.3f, %.3f, %.3f", float64(c.R)/255, float64(c.G)/255, float64(c.B)/255)
}

// luminance is the relative luminance of WCAG 2.2, from 0 (black) to 1 (white).
func (c Colour) luminance() float64 {
	linear := func(v uint8) float64 {
		f := float64(v) / 255
		if f <= 0.04045 {
			return f / 12.92
		}
		return math.Pow((f+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

// Contrast is the contrast ratio of WCAG 2.2 (section "contrast ratio"), from 1
// (the same) to 21 (black and white). The order does not matter.
func Contrast(a, b Colour) float64 {
	x, y := a.luminance(), b.luminance()
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// Theme is the file of colours.
type Theme struct{ colours map[string]Colour }

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// Parse reads the file of colours. name is used in errors.
func Parse(name string, data []byte) (*Theme, error) {
	if len(data) > maxSize {
		return nil, strictyaml.Problem{File: name, Text: fmt.Sprintf("%d bytes; a theme has at most %d", len(data), maxSize)}
	}
	var file struct {
		Colours map[string]string `yaml:"colours"`
	}
	doc, err := strictyaml.Decode(name, data, &file, "put it below colours:")
	if err != nil {
		return nil, err
	}
	t := &Theme{colours: map[string]Colour{}}
	for _, key := range slices.Sorted(maps.Keys(file.Colours)) {
		if !nameForm.MatchString(key) {
			return nil, doc.Problem("colours", "%q is no name of a colour; use lower case, digits and single hyphens", key)
		}
		c, err := ParseColour(file.Colours[key])
		if err != nil {
			return nil, doc.Problem("colours."+key, "%v", err)
		}
		t.colours[key] = c
	}
	if len(t.colours) == 0 {
		return nil, doc.Problem("colours", "no colours; write name: \"#rrggbb\" below colours:")
	}
	return t, nil
}

// Colour returns the colour called name.
func (t *Theme) Colour(name string) (Colour, error) {
	if t == nil {
		return Colour{}, fmt.Errorf("the overlay has no %s, so there is no colour %q", Path, name)
	}
	c, ok := t.colours[name]
	if !ok {
		return Colour{}, fmt.Errorf("%s has no colour %q; it has %s", Path, name, strings.Join(t.Names(), ", "))
	}
	return c, nil
}

// Names are the names of the colours, sorted.
func (t *Theme) Names() []string { return slices.Sorted(maps.Keys(t.colours)) }

// Funcs are what a template of the overlay has of the theme. A nil theme has no
// colours: a template that asks for one fails.
//
//	hex NAME     #1b252c
//	rgb NAME     27,37,44
//	unit NAME    0.106, 0.145, 0.173
func (t *Theme) Funcs() template.FuncMap {
	form := func(as func(Colour) string) func(string) (string, error) {
		return func(name string) (string, error) {
			c, err := t.Colour(name)
			if err != nil {
				return "", err
			}
			return as(c), nil
		}
	}
	return template.FuncMap{"hex": form(Colour.String), "rgb": form(Colour.RGB), "unit": form(Colour.Unit)}
}
