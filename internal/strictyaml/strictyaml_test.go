package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

type doc struct {
	Name string   `yaml:"name"`
	Size int      `yaml:"size"`
	List []string `yaml:"list"`
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"name: a\ncolour: b\n", `f.yaml:2: unknown field "colour"; remove it, or look there`},
		{"name: a\nsize: b\n", "f.yaml:2: want a whole number, got text"},
		{"name: a\nname: b\n", "f.yaml:2: "},
		{"name: !x a\n", "f.yaml:1: a tag"},
		{"name: &x a\n", "f.yaml:1: an anchor"},
		{"name: [\n", "f.yaml:"},
		{"name: a\n---\nname: b\n", "more than one document"},
	} {
		var d doc
		_, err := Decode("f.yaml", []byte(c.text), &d, "look there")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want …%s…", c.text, err, c.want)
		}
		if p := (Problem{}); err != nil && !errors.As(err, &p) {
			t.Errorf("%q: %T is no Problem", c.text, err)
		}
	}
}

// TestDecodeBounds: what would take the library minutes and gigabytes is refused
// before it is parsed, and the worst that is not refused fits into a small machine.
func TestDecodeBounds(t *testing.T) {
	const deep = "brackets or dashes within each other"
	fill := func(s string) string { return strings.Repeat(s, MaxSize/len(s)) }
	var keys strings.Builder
	for i := 0; keys.Len() < MaxSize-20; i++ {
		fmt.Fprintf(&keys, "k%d: v\n", i)
	}
	for name, c := range map[string]struct{ text, want string }{
		"brackets":       {fill("["), "f:1: more than 64 " + deep},
		"braces":         {fill("{a: "), deep},
		"over lines":     {fill("[\n"), "f:65: more than 64 " + deep},
		"dashes":         {fill("- "), deep},
		"question marks": {fill("? "), deep},
		"too large":      {fill("# x\n") + "a: b\n#\n", "65543 bytes; such a file has at most 65536"},
		"in range":       {"a: " + strings.Repeat("[", 64) + strings.Repeat("]", 64), ""},
		"many entries":   {"a:\n" + strings.Repeat("- b\n", MaxSize/4-1), ""},
		"many keys":      {keys.String(), ""},
	} {
		var v any
		_, err := Decode("f", []byte(c.text), &v, "see the manual")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v\nwant …%s…", name, err, c.want)
		}
	}
}

func TestLine(t *testing.T) {
	var d doc
	got, err := Decode("f.yaml", []byte("name: a\nlist:\n  - x\n  - y\n"), &d, "")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"name": 1, "list[1]": 4, "list[7]": 3, "nothing": 0} {
		if l := got.Line(path); l != want {
			t.Errorf("%s: line %d, want %d", path, l, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: a\nsize: 1\nlist: [x, y]\n"))
	f.Add([]byte("a: !0 0\nlist: *x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d doc
		got, err := Decode("f.yaml", data, &d, "")
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + 1
		var p Problem
		switch {
		case err == nil:
			if l := got.Line("list[0]"); l < 0 || l > lines {
				t.Errorf("list[0] is in line %d of %d", l, lines)
			}
		case !errors.As(err, &p) || p.File != "f.yaml" || p.Line < 0 || p.Line > lines:
			t.Errorf("no problem of one of %d lines: %v", lines, err)
		}
	})
}
