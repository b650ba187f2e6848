package theme

import (
	"bytes"
	"fmt"
	"image"
	"image/png"

	"github.com/fyne-io/oksvg"
	"github.com/srwiley/rasterx"
)

// maxPixels bounds a picture: a boot screen's parts are small, and a mistyped
// size must not take all memory.
const maxPixels = 2048 * 2048

// PNG draws an SVG of the overlay at the size of its viewBox, on nothing. It is
// for our own drawings: the library can take for ever over a hostile one. Paths, basic shapes,
// strokes and gradients are drawn; text, filters and references to other files
// are an error, so that no picture lacks a part unnoticed.
//
// The same SVG gives the same bytes with the same Go release and architecture.
func PNG(name string, svg []byte) (data []byte, err error) {
	// The library panics on some malformed input; for the person who drew it
	// that is a drawing that cannot be read.
	defer func() {
		if r := recover(); r != nil {
			data, err = nil, fmt.Errorf("drawing %s: not readable as SVG: %v", name, r)
		}
	}()
	icon, err := oksvg.ReadIconStream(bytes.NewReader(svg), oksvg.StrictErrorMode)
	if err != nil {
		return nil, fmt.Errorf("drawing %s: %w", name, err)
	}
	box := icon.ViewBox
	w, h := int(box.W), int(box.H)
	if float64(w) != box.W || float64(h) != box.H || w < 1 || h < 1 || w > maxPixels || h > maxPixels/w {
		return nil, fmt.Errorf("drawing %s: its viewBox is %g by %g; write whole pixels, at most %d of them", name, box.W, box.H, maxPixels)
	}
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	icon.SetTarget(0, 0, box.W, box.H)
	icon.Draw(rasterx.NewDasher(w, h, rasterx.NewScannerGV(w, h, img, img.Bounds())), 1)
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, img); err != nil {
		return nil, fmt.Errorf("drawing %s: %w", name, err)
	}
	return b.Bytes(), nil
}
