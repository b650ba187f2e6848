package theme

import (
	"bytes"
	"image/png"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
)

// overlay is the tree that the image's look comes from.
const overlay = "../../overlay"

func ours(t testing.TB) *Theme {
	t.Helper()
	data, err := os.ReadFile(overlay + "/" + Path)
	if err != nil {
		t.Fatal(err)
	}
	theme, err := Parse(Path, data)
	if err != nil {
		t.Fatal(err)
	}
	return theme
}

// render expands a template of the overlay with the theme alone: none of the
// look's may need the site.
func render(t testing.TB, p string) []byte {
	t.Helper()
	data, err := expand(ours(t), p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func expand(look *Theme, p string) ([]byte, error) {
	text, err := os.ReadFile(overlay + "/" + p)
	if err != nil {
		return nil, err
	}
	tmpl, err := template.New(p).Funcs(look.Funcs()).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = tmpl.Execute(&b, nil)
	return b.Bytes(), err
}

const (
	schemeFile   = "usr/share/color-schemes/Veilor.colors.tmpl"
	terminalFile = "usr/share/konsole/Veilor.colorscheme.tmpl"
	plymouthDir  = "usr/share/plymouth/themes/veilor"
)

func TestEveryTextCanBeRead(t *testing.T) {
	scheme, err := SchemePairs(schemeFile, render(t, schemeFile))
	if err != nil {
		t.Fatal(err)
	}
	// Eight sets, eight texts, two backgrounds; two title bars.
	if len(scheme) != 8*8*2+2 {
		t.Errorf("%d pairs in the scheme; is a set of KColorScheme missing?", len(scheme))
	}
	terminal, err := TerminalPairs(terminalFile, render(t, terminalFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(Illegible(scheme), Illegible(terminal)...) {
		t.Error(p)
	}
	// The boot screen and the login screen: text on night, dots in the entry.
	theme := ours(t)
	colour := func(name string) Colour {
		c, err := theme.Colour(name)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, name := range []string{"text", "soft", "warning"} {
		if bad := Illegible([]Pair{{"boot/" + name, colour(name), colour("night")}, {"entry/" + name, colour(name), colour("ground")}}); bad != nil {
			t.Error(bad)
		}
	}
}

func TestIllegible(t *testing.T) {
	white, black, grey := Colour{255, 255, 255}, Colour{}, Colour{0x77, 0x77, 0x77}
	if got := Contrast(white, black); got < 20.99 || got > 21.01 {
		t.Errorf("white on black: %v", got)
	}
	if Contrast(grey, white) != Contrast(white, grey) {
		t.Error("the order matters")
	}
	// #777 on white is WCAG's own example of too little: 4.48.
	bad := Illegible([]Pair{{"a", grey, white}, {"b", black, white}, {"c", white, white}})
	if len(bad) != 2 || bad[0].Where != "c" || bad[1].Where != "a" {
		t.Error(bad)
	}
	if got, want := bad[1].String(), "a: #777777 on #ffffff has 4.48:1, want 4.5:1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A theme that lacks one picture shows nothing where it should be.
func TestBootScreenIsComplete(t *testing.T) {
	script := string(render(t, plymouthDir+"/veilor.script.tmpl"))
	used := map[string]bool{}
	for _, m := range regexp.MustCompile(`Image\("([^"]+)"\)`).FindAllStringSubmatch(script, -1) {
		used[m[1]] = true
	}
	have := map[string]bool{}
	entries, err := os.ReadDir(overlay + "/" + plymouthDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".png.svg.tmpl")
		if !ok {
			continue
		}
		have[name+".png"] = true
		data, err := PNG(e.Name(), render(t, path.Join(plymouthDir, e.Name())))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := png.Decode(bytes.NewReader(data)); err != nil {
			t.Errorf("%s: %v", e.Name(), err)
		}
	}
	if d := cmp.Diff(used, have); d != "" {
		t.Errorf("pictures used and pictures there (-used +there):\n%s", d)
	}
	conf, err := os.ReadFile(overlay + "/etc/plymouth/plymouthd.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(conf), "\nTheme="+path.Base(plymouthDir)+"\n") {
		t.Error("plymouthd.conf names another theme")
	}
	about, err := os.ReadFile(overlay + "/" + plymouthDir + "/veilor.plymouth")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ModuleName=script", "ImageDir=/" + plymouthDir, "ScriptFile=/" + plymouthDir + "/veilor.script"} {
		if !strings.Contains(string(about), want+"\n") {
			t.Errorf("veilor.plymouth lacks %s", want)
		}
	}
}

// os-release takes its colour as a terminal's escape, which no template writes.
func TestRecipeHasTheAccent(t *testing.T) {
	recipe, err := os.ReadFile("../../bluebuild/recipes/recipe.yml")
	if err != nil {
		t.Fatal(err)
	}
	accent, err := ours(t).Colour("accent")
	if err != nil {
		t.Fatal(err)
	}
	if want := "ANSI_COLOR: 38;2;" + strings.ReplaceAll(accent.RGB(), ",", ";") + "\n"; !strings.Contains(string(recipe), want) {
		t.Errorf("the recipe lacks %s", want)
	}
}

// A colour that is written out would not follow the theme.
func TestNoColourOutsideTheTheme(t *testing.T) {
	literal := regexp.MustCompile(`#[0-9a-fA-F]{6}\b|=\d{1,3},\d{1,3},\d{1,3}$`)
	err := fs.WalkDir(os.DirFS(overlay), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || p == Path {
			return err
		}
		for _, dir := range []string{"usr/share/color-schemes/", "usr/share/konsole/", "usr/share/plasma/", "usr/share/plymouth/", "usr/share/wallpapers/", "etc/xdg/"} {
			if !strings.HasPrefix(p, dir) {
				continue
			}
			data, err := os.ReadFile(overlay + "/" + p)
			if err != nil {
				return err
			}
			for n, line := range strings.Split(string(data), "\n") {
				if m := literal.FindString(line); m != "" {
					t.Errorf("%s:%d: %s; take it from %s", p, n+1, m, Path)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"colours: {}":                               "no colours",
		"colours: {a: red}":                         `"red" is no colour; write # and six hex digits`,
		"colours: {a: \"#12345g\"}":                 "is no colour",
		"colours: {a: \"#+12345\"}":                 "is no colour",
		"colours: {A: \"#123456\"}":                 `"A" is no name of a colour`,
		"colours:\n  a: \"#123456\"\nfont: x\n":     "theme.yaml:3: unknown field",
		"colours: {a: \"#123456\", a: \"#123456\"}": "",
		"colours: " + strings.Repeat(" ", maxSize):  "a theme has at most",
	} {
		_, err := Parse("theme.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, want …%s…", text, err, want)
		}
	}
	var none *Theme
	if _, err := none.Colour("text"); err == nil || !strings.Contains(err.Error(), Path) {
		t.Error(err)
	}
	if _, err := ours(t).Colour("mauve"); err == nil || !strings.Contains(err.Error(), `no colour "mauve"; it has `) {
		t.Error(err)
	}
}

func FuzzParseColour(f *testing.F) {
	f.Add("#1b252c")
	f.Add("27,37,44")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseColour(s); err == nil {
			if again, err := ParseColour(c.String()); err != nil || again != c || !strings.EqualFold(c.String(), s) {
				t.Errorf("%q is read as %s, and that as %s, %v", s, c, again, err)
			}
		}
		if c, err := rgb(s); err == nil {
			if again, err := rgb(c.RGB()); err != nil || again != c {
				t.Errorf("%q is read as %s, and that as %s, %v", s, c.RGB(), again.RGB(), err)
			}
		}
	})
}

func FuzzFiles(f *testing.F) {
	data, err := os.ReadFile(overlay + "/" + Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("[Colors:View]\nForegroundNormal=1,2,3\nBackgroundNormal=1,2,3\nBackgroundAlternate=1,2,3\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if theme, err := Parse("theme.yaml", data); err == nil && len(theme.Names()) == 0 {
			t.Error("a theme without colours")
		}
		if pairs, err := SchemePairs("x.colors", data); err == nil && len(pairs) == 0 {
			t.Error("a scheme without pairs")
		}
		TerminalPairs("x.colorscheme", data)
	})
}
