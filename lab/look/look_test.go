package look

import (
	"bytes"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/theme"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/site"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// TestPictures takes every picture and looks at pixels that say whether it shows
// what it must: real programs, in the theme's colours.
func TestPictures(t *testing.T) {
	gate.Root(t, "what it looks like")
	dir := gate.Cache(t, "what it looks like")
	lab, err := site.Make(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// A link inside of this module: the go command runs a test anew only if a file
	// changed that it read there.
	src := os.DirFS(filepath.Join("testdata", "overlay"))
	tree, err := overlay.Render(src, lab.Site)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := tree.Find(theme.Path)
	look, err := theme.Parse(theme.Path, data.Data)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.ArtifactDir(), "look.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	pictures, err := Take(t.Context(), &cache.Cache{Dir: dir}, tree, t.TempDir(), log)
	if err != nil {
		words, _ := os.ReadFile(log.Name())
		t.Fatalf("%v\n%s", err, words[max(0, len(words)-4000):])
	}
	paths, err := Save(t.ArtifactDir(), pictures)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(paths)

	// Colours that must be in a picture, and whether they are.
	want := map[string][]string{
		"boot-start":  {"night", "accent", "accent-deep"},
		"boot-prompt": {"night", "accent", "ground", "text"},
		"boot-typed":  {"ground", "text"},
		"boot-retry":  {"night", "warning"},
		"wallpaper":   {"night", "fold-5", "accent"},
		"terminal":    {"night", "text", "green", "yellow", "black-intense"},
		"desktop":     {"surface", "ground", "text"},
	}
	for _, p := range pictures {
		img, err := png.Decode(bytes.NewReader(p.PNG))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[theme.Colour]int{}
		for y := range Height {
			for x := range Width {
				r, g, b, _ := img.At(x, y).RGBA()
				seen[theme.Colour{R: uint8(r >> 8), G: uint8(g >> 8), B: uint8(b >> 8)}]++
			}
		}
		for _, name := range want[p.Name] {
			c, err := look.Colour(name)
			if err != nil {
				t.Fatal(err)
			}
			if seen[c] == 0 {
				t.Errorf("%s has no pixel of %s (%s)", p.Name, name, c)
			}
		}
		delete(want, p.Name)
	}
	for name := range want {
		t.Errorf("no picture %s", name)
	}
}
