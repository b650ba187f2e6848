package theme

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/cpu"
)

// printPictures makes the test binary print what it draws instead of testing.
const printPictures = "VEILOR_TEST_PRINT_PICTURES"

func svg(box, inside string) string {
	return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="` + box + `">` + inside + `</svg>`
}

// awkward is made of sizes that end nowhere in binary, and of edges that lie
// exactly between two roundings.
var awkward = svg("0 0 300 300", `
	<rect x="0.1" y="0.3" width="299.7" height="299.3" rx="33.3" ry="7.7" fill="#102030" stroke="#405060" stroke-width="2.3"/>
	<rect x="10" y="10" width="0.5" height="280.015625" fill="#ffffff"/>
	<circle cx="5" cy="5" r="4.5" fill="#abcdef"/>
	<circle cx="150.333" cy="149.667" r="101.1" fill="#708090" stroke="#a0b0c0" stroke-width="0.7"/>
	<path d="M20 20 L80.1 112.7 140 20.9 H33.3 V7 Z M7 200 C 33.3 -100, 266.7 400, 293 100.1" fill="#d0e0f0" stroke="#112233" stroke-width="3.7" stroke-linejoin="round"/>
	<path d="M0 0 L300 299.9" fill="none" stroke="#445566" stroke-width="0.1"/>
	<path d="M-50 250 C 0.7 299.99, 299.3 200.01, 4000 251" fill="none" stroke="#778899" stroke-width="5.5" stroke-linejoin="round"/>`)

// pictures are all of the overlay's, and awkward, as they are drawn here.
func pictures() (map[string][]byte, error) {
	text, err := os.ReadFile(overlay + "/" + Path)
	if err != nil {
		return nil, err
	}
	look, err := Parse(Path, text)
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	if all["awkward"], err = PNG("awkward", []byte(awkward)); err != nil {
		return nil, err
	}
	return all, fs.WalkDir(os.DirFS(overlay), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(strings.TrimSuffix(p, ".tmpl"), ".png.svg") {
			return err
		}
		data, err := expand(look, p)
		if err != nil {
			return err
		}
		all[p], err = PNG(p, data)
		return err
	})
}

func TestMain(m *testing.M) {
	if os.Getenv(printPictures) == "" {
		os.Exit(m.Run())
	}
	all, err := pictures()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(all)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// GOAMD64=v3 lets the compiler fuse multiplications and additions, as it always
// does for arm64; the digest of the image may not depend on it.
func TestSamePicturesHoweverCompiled(t *testing.T) {
	if runtime.GOARCH != "amd64" || !cpu.X86.HasFMA || !cpu.X86.HasAVX2 || !cpu.X86.HasBMI2 {
		t.Skip("NOT TESTED: this processor runs no program compiled for GOAMD64=v3")
	}
	dir := t.TempDir()
	drawn := map[string]map[string][]byte{}
	for _, level := range []string{"v1", "v3"} {
		program := filepath.Join(dir, level)
		build := exec.Command("go", "test", "-c", "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOAMD64="+level)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building for %s: %v\n%s", level, err, out)
		}
		run := exec.Command(program)
		run.Env = append(os.Environ(), printPictures+"=1")
		run.Stderr = os.Stderr
		out, err := run.Output()
		if err != nil {
			t.Fatalf("drawing with %s: %v", level, err)
		}
		var all map[string][]byte
		if err := json.Unmarshal(out, &all); err != nil {
			t.Fatal(err)
		}
		drawn[level] = all
	}
	if len(drawn["v1"]) < 2 {
		t.Errorf("%d pictures; does the overlay have none?", len(drawn["v1"]))
	}
	for p, data := range drawn["v1"] {
		if !bytes.Equal(data, drawn["v3"][p]) {
			t.Errorf("%s: another picture with GOAMD64=v3", p)
		}
	}
}

// The same on every processor that this test runs on. It changes with what is drawn
// only: these are the pixels, without the compression of some Go release.
func TestPixelsOfTheAwkward(t *testing.T) {
	img, err := paint([]byte(awkward))
	if err != nil {
		t.Fatal(err)
	}
	const want = "92c829551adf7c3065d0059a7b1fbe39b5b41d50c92b8c5b83a4452beb3933a9"
	if sum := sha256.Sum256(img.Pix); hex.EncodeToString(sum[:]) != want {
		t.Errorf("the pixels have %x, want %s", sum, want)
	}
}

// shades are the alphas of a row of pixels.
func shades(img *image.RGBA, y int) []uint8 {
	var all []uint8
	for x := range img.Rect.Dx() {
		all = append(all, img.RGBAAt(x, y).A)
	}
	return all
}

func TestShades(t *testing.T) {
	for inside, want := range map[string][]uint8{
		// Row 1 of 6 by 3 pixels.
		`<rect x="1" y="0" width="2.5" height="3" fill="#ffffff"/>`:                                                                    {0, 255, 255, 128, 0, 0},
		`<rect x="-3" y="1.75" width="99" height="99" fill="#ffffff"/>`:                                                                {64, 64, 64, 64, 64, 64},
		`<rect x="1" width="4" height="3" fill="none"/>`:                                                                               {0, 0, 0, 0, 0, 0},
		`<path d="M0 0 L6 0 L6 3 Z" fill="#ffffff"/>`:                                                                                  {0, 0, 64, 191, 255, 255},
		`<path d="M0 0H4V3H0Z M1 0H2V3H1Z" fill="#ffffff"/>`:                                                                           {255, 255, 255, 255, 0, 0},
		`<path d="M0 0H4V3H0Z M1 0V3H2V0Z" fill="#ffffff"/>`:                                                                           {255, 0, 255, 255, 0, 0},
		`<path d="M1 1.5 L3 1.5" fill="none" stroke="#ffffff"/>`:                                                                       {0, 255, 255, 0, 0, 0},
		`<path d="M3,1.5 1,1.5" fill="none" stroke="#ffffff" stroke-width="0.5"/>`:                                                     {0, 128, 128, 0, 0, 0},
		`<path d="M2 1.5 H4 H2" fill="none" stroke="#ffffff" stroke-linejoin="round"/>`:                                                {0, 0, 255, 255, 100, 0},
		`<path d="M0 -9 C 0 -3, 0 3, 0 9" fill="none" stroke="#ffffff" stroke-width="3" stroke-linejoin="round"/>`:                     {255, 128, 0, 0, 0, 0},
		`<rect x="1" y="-9" width="4" height="22" fill="none" stroke="#ffffff" stroke-linejoin="round"/>`:                              {128, 128, 0, 0, 128, 128},
		`<rect width="6" height="3" fill="#ffffff"/><rect width="1" height="3" fill="#000000" stroke="none"/>`:                         {255, 255, 255, 255, 255, 255},
		`<rect x="0" y="0" width="6" height="3" ry="1.5" fill="#ffffff"/>`:                                                             {248, 255, 255, 255, 255, 248},
		`<!-- a comment --><circle cx="3" cy="1.5" r="2" fill="#ffffff"/>`:                                                             {0, 250, 255, 255, 250, 0},
		`<circle cx="4000" cy="1.5" r="3998" fill="#ffffff"/>`:                                                                         {0, 0, 254, 255, 255, 255},
		`<path d="M-4096 -4096 L4096 4096" fill="none" stroke="#ffffff" stroke-width="4096"/>`:                                         {255, 255, 255, 255, 255, 255},
		`<path d="M4096 -4096 L-4096 4096 M4096 4096 L-4096 4096 4096 -4096 Z" fill="none" stroke="#ffffff" stroke-linejoin="round"/>`: {0, 0, 0, 0, 0, 0},
	} {
		img, err := paint([]byte(svg("0 0 6 3", inside)))
		if err != nil {
			t.Errorf("%s: %v", inside, err)
			continue
		}
		if d := cmp.Diff(want, shades(img, 1)); d != "" {
			t.Errorf("%s (-want +got):\n%s", inside, d)
		}
	}
}

func TestPNGRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "drawing x:",
		"<svg":                      "drawing x:",
		"<html/>":                   "html: not one svg",
		svg("0 0 1 1", "") + "<a/>": "a: not one svg",
		svg("0 0 9 9", `<svg viewBox="0 0 1 1"/>`):                    "svg: not one svg",
		svg("0 0 0 0", ""):                                            "viewBox",
		svg("0 -9 9 9", ""):                                           `write the viewBox as "0 0 WIDTH HEIGHT"`,
		svg("0 0 1.5 1", ""):                                          "whole pixels",
		svg("0 0 99999 99999", ""):                                    "at most",
		`<svg viewBox="0 0 9 9" width="18" height="9"/>`:              "write the same",
		svg("0 0 9 9", "<text>a</text>"):                              "line 1: text: cannot be drawn; there are rect, circle and path",
		svg("0 0 9 9", "\n<g>\n</g>"):                                 "line 2: g: cannot be drawn",
		svg("0 0 9 9", `<rect fill="none"><title/></rect>`):           "title: it is inside another",
		svg("0 0 9 9", `<rect width="9" height="9"/>`):                `"" is no colour`,
		svg("0 0 9 9", `<rect width="9" height="9" fill="url(#g)"/>`): "is no colour",
		svg("0 0 9 9", `<rect width="9" height="9" fill="none" transform="scale(2)" opacity="1"/>`): "opacity, transform cannot be drawn; leave it out",
		svg("0 0 9 9", `<rect width="9" height="9" fill="none" xlink:href="x"/>`):                   "xlink:href cannot be drawn",
		svg("0 0 9 9", `<rect width="9" height="9" fill="none" stroke-width="9"/>`):                 "stroke-width cannot be drawn",
		svg("0 0 9 9", `<rect width="9px" height="9" fill="none"/>`):                                `width: "9px" is no number`,
		svg("0 0 9 9", `<rect width="5000" height="9" fill="none"/>`):                               "too large; at most 4096",
		svg("0 0 9 9", `<rect width="-1" height="9" fill="none"/>`):                                 "none below 0",
		svg("0 0 9 9", `<rect width="9" height="9" rx="5" fill="none"/>`):                           "at most half",
		svg("0 0 9 9", `<circle r="-1" fill="none"/>`):                                              "below 0",
		svg("0 0 9 9", `<rect width="9" height="9" fill="none" stroke="#ffffff"/>`):                 `write stroke-linejoin="round"`,
		svg("0 0 9 9", `<path d="M0 0H9V9" fill="none" stroke="#ffffff"/>`):                         `write stroke-linejoin="round"`,
		svg("0 0 9 9", `<path d="M0 0H9" fill="none" stroke="#ffffff" stroke-linejoin="bevel"/>`):   `write stroke-linejoin="round"`,
		svg("0 0 9 9", `<path d="M0 0H9" fill="none" stroke="#ffffff" stroke-width="-1"/>`):         "below 0",
		svg("0 0 9 9", `<path d="M0 0 l9 9" fill="none"/>`):                                         `"l9" is no number`,
		svg("0 0 9 9", `<path d="M0 0 A1 1 0 0 0 9 9" fill="none"/>`):                               "arcs as curves",
		svg("0 0 9 9", `<path d="M0 NaN" fill="none"/>`):                                            `"NaN" is no number`,
		svg("0 0 9 9", `<path d="M0" fill="none"/>`):                                                "M takes 2 numbers",
		svg("0 0 9 9", `<path d="9 9" fill="none"/>`):                                               "write M where it begins",
		svg("0 0 9 9", `<path d="M0 0ZL9 9" fill="none"/>`):                                         "after each Z",
		svg("0 0 9 9", `<path d="M0 0Z 9 9" fill="none"/>`):                                         "after each Z",
	} {
		if _, err := PNG("x", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want …%s…", text, err, want)
		}
	}
}

func FuzzPNG(f *testing.F) {
	f.Add(`<circle cx="4" cy="4" r="3.3" fill="#123456"/>`)
	f.Add(`<rect x="1" y="2" width="9" height="8" rx="3" fill="none" stroke="#123456" stroke-width="2"/>`)
	f.Add(`<path d="M1 2 L3 4 H5 V6 C 7 8, 9 10, 11 12 Z" fill="#123456" stroke="#654321" stroke-linejoin="round"/>`)
	f.Fuzz(func(t *testing.T, inside string) {
		data, err := PNG("x", []byte(svg("0 0 16 16", inside)))
		if err != nil {
			return
		}
		if _, err := png.Decode(bytes.NewReader(data)); err != nil {
			t.Error(err)
		}
		if again, err := PNG("x", []byte(svg("0 0 16 16", inside))); err != nil || !bytes.Equal(data, again) {
			t.Errorf("the same drawing twice is not the same picture: %v", err)
		}
	})
}
