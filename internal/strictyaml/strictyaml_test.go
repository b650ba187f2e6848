package strictyaml

import (
	"errors"
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
		if got, err := Decode("f.yaml", data, &d, ""); err == nil {
			got.Line("list[0]")
		}
	})
}
