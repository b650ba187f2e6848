package theme

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// MinContrast is what WCAG 2.2 asks of normal text (success criterion 1.4.3,
// level AA).
const MinContrast = 4.5

// Pair is a text colour and what is behind it.
type Pair struct {
	// Where names both as the file does: "Colors:View/ForegroundLink on BackgroundNormal".
	Where            string
	Text, Background Colour
}

// Illegible returns the pairs whose contrast is below [MinContrast], worst first.
func Illegible(pairs []Pair) []Pair {
	var bad []Pair
	for _, p := range pairs {
		if Contrast(p.Text, p.Background) < MinContrast {
			bad = append(bad, p)
		}
	}
	slices.SortStableFunc(bad, func(a, b Pair) int {
		return int(1000 * (Contrast(a.Text, a.Background) - Contrast(b.Text, b.Background)))
	})
	return bad
}

func (p Pair) String() string {
	return fmt.Sprintf("%s: %s on %s has %.2f:1, want %.1f:1", p.Where, p.Text, p.Background, Contrast(p.Text, p.Background), MinContrast)
}

// SchemePairs are the pairs of a KDE colour scheme: in every group [Colors:…]
// each Foreground on BackgroundNormal and on BackgroundAlternate, and the title
// bar's of [WM]. The file's form is KConfig's INI; a colour is r,g,b.
func SchemePairs(name string, data []byte) ([]Pair, error) {
	groups, err := ini(name, data)
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	add := func(group, text, background string) error {
		values := groups[group]
		f, err := rgb(values[text])
		if err != nil {
			return fmt.Errorf("reading %s: [%s] %s: %w", name, group, text, err)
		}
		b, err := rgb(values[background])
		if err != nil {
			return fmt.Errorf("reading %s: [%s] %s: %w", name, group, background, err)
		}
		pairs = append(pairs, Pair{group + "/" + text + " on " + background, f, b})
		return nil
	}
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		switch {
		case group == "WM":
			for _, prefix := range []string{"active", "inactive"} {
				if err := add(group, prefix+"Foreground", prefix+"Background"); err != nil {
					return nil, err
				}
			}
		case strings.HasPrefix(group, "Colors:"):
			for _, key := range slices.Sorted(maps.Keys(groups[group])) {
				if !strings.HasPrefix(key, "Foreground") {
					continue
				}
				for _, b := range []string{"BackgroundNormal", "BackgroundAlternate"} {
					if err := add(group, key, b); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("reading %s: no group [Colors:…]; a KDE colour scheme has some", name)
	}
	return pairs, nil
}

// TerminalPairs are the pairs of a Konsole colour scheme: the foreground and the
// colours 1 to 7, plain and intense, on the background. Colour 0 is black, which
// programs use as a background; its intense form is the grey of comments.
func TerminalPairs(name string, data []byte) ([]Pair, error) {
	groups, err := ini(name, data)
	if err != nil {
		return nil, err
	}
	background, err := rgb(groups["Background"]["Color"])
	if err != nil {
		return nil, fmt.Errorf("reading %s: [Background] Color: %w", name, err)
	}
	texts := []string{"Foreground", "ForegroundIntense", "Color0Intense"}
	for n := 1; n < 8; n++ {
		texts = append(texts, fmt.Sprintf("Color%d", n), fmt.Sprintf("Color%dIntense", n))
	}
	var pairs []Pair
	for _, t := range texts {
		c, err := rgb(groups[t]["Color"])
		if err != nil {
			return nil, fmt.Errorf("reading %s: [%s] Color: %w", name, t, err)
		}
		pairs = append(pairs, Pair{t + " on Background", c, background})
	}
	return pairs, nil
}

// rgb reads KDE's form of a colour.
func rgb(s string) (Colour, error) {
	parts := strings.Split(s, ",")
	if len(parts) != 3 {
		return Colour{}, fmt.Errorf("%q is no colour; write r,g,b", s)
	}
	var v [3]uint8
	for i, p := range parts {
		n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 8)
		if err != nil {
			return Colour{}, fmt.Errorf("%q is no colour; write r,g,b, each from 0 to 255", s)
		}
		v[i] = uint8(n)
	}
	return Colour{v[0], v[1], v[2]}, nil
}

// ini reads KConfig's form: groups in brackets, key=value, # before a comment.
// A nested group [A][B] is called "A][B".
func ini(name string, data []byte) (map[string]map[string]string, error) {
	groups := map[string]map[string]string{}
	group := ""
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[':
			if line[len(line)-1] != ']' {
				return nil, fmt.Errorf("reading %s:%d: a group without ]: %.60q", name, i+1, line)
			}
			group = line[1 : len(line)-1]
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fmt.Errorf("reading %s:%d: neither [group] nor key=value: %.60q", name, i+1, line)
			}
			if groups[group] == nil {
				groups[group] = map[string]string{}
			}
			groups[group][strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return groups, nil
}
