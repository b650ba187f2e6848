package overlay

import (
	"bytes"
	"image/png"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/veilor/veilor-os/internal/theme"
)

func TestRenderLook(t *testing.T) {
	tree, err := Render(fstest.MapFS{
		theme.Path:                              {Data: []byte("colours: {accent: \"#74bfae\"}\n")},
		"usr/share/plymouth/m.png.svg.tmpl":     {Data: []byte(`<svg viewBox="0 0 4 4"><rect width="4" height="4" fill="{{ hex "accent" }}"/></svg>`)},
		"usr/share/color-schemes/V.colors.tmpl": {Data: []byte("[Colors:View]\nForegroundNormal={{ rgb \"accent\" }}\n")},
		"etc/xdg/kdeglobals.tmpl":               {Data: []byte("[KDE]\n{{ include \"usr/share/color-schemes/V.colors\" }}")},
	}, testSite(t))
	if err != nil {
		t.Fatal(err)
	}
	drawn, ok := tree.Find("usr/share/plymouth/m.png")
	if !ok || drawn.Group != Branding {
		t.Fatalf("no picture in the branding: %v %v", ok, drawn.Group)
	}
	img, err := png.Decode(bytes.NewReader(drawn.Data))
	if err != nil {
		t.Fatal(err)
	}
	if r, g, b, _ := img.At(2, 2).RGBA(); r>>8 != 0x74 || g>>8 != 0xbf || b>>8 != 0xae {
		t.Errorf("the picture is %x %x %x", r>>8, g>>8, b>>8)
	}
	if e, _ := tree.Find("etc/xdg/kdeglobals"); string(e.Data) != "[KDE]\n[Colors:View]\nForegroundNormal=116,191,174\n" || e.Group != Site {
		t.Errorf("%v: %q", e.Group, e.Data)
	}
	for text, want := range map[string]string{
		`{{ hex "mauve" }}`:            `no colour "mauve"`,
		`{{ include "etc/absent" }}`:   "etc/absent.tmpl",
		`{{ include "etc/xdg/self" }}`: `function "include" not defined`,
	} {
		_, err := Render(fstest.MapFS{
			theme.Path:          {Data: []byte("colours: {accent: \"#74bfae\"}\n")},
			"etc/xdg/self.tmpl": {Data: []byte(text)},
		}, testSite(t))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", text, err, want)
		}
	}
	if _, err := Render(fstest.MapFS{"etc/a.tmpl": {Data: []byte(`{{ hex "accent" }}`)}}, testSite(t)); err == nil || !strings.Contains(err.Error(), "has no "+theme.Path) {
		t.Errorf("without a theme: %v", err)
	}
	if _, err := Render(fstest.MapFS{"usr/a.png.svg": {Data: []byte("<svg")}}, testSite(t)); err == nil || !strings.Contains(err.Error(), "drawing usr/a.png.svg") {
		t.Errorf("a broken drawing: %v", err)
	}
}
