package image

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/veilor/veilor-os/internal/image/imagetest"
)

// Of a base for several machines the right one is taken.
func TestBuildArchitectures(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	digests := map[string]v1.Hash{}
	for _, arch := range []string{"amd64", "arm64"} {
		at := filepath.Join(dir, arch)
		if err := imagetest.Base().Write(at, arch); err != nil {
			t.Fatal(err)
		}
		img, err := Dir{Path: at}.Open(arch)
		if err != nil {
			t.Fatal(err)
		}
		if digests[arch], err = img.Digest(); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	l, err := layout.Write(o.Base.Path, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	for arch, digest := range digests {
		o.Arch, o.Out.Path = arch, filepath.Join(dir, "out-"+arch)
		res := build(t, o)
		if res.BaseDigest != digest.String() {
			t.Errorf("%s: base %s, want %s", arch, res.BaseDigest, digest)
		}
		img, err := o.Out.Open(arch)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := img.ConfigFile(); err != nil || c.Architecture != arch {
			t.Errorf("%s: the image is for %v, %v", arch, c, err)
		}
	}
}

// An image of ours is a base too: what was undone in it stays undone, and nothing
// is put in twice.
func TestBuildOnOwn(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	first := build(t, o)
	o.Base, o.Out.Path = o.Out, o.Out.Path+"-2"
	second := build(t, o)
	if second.BaseDigest != first.Digest {
		t.Errorf("base %s, want %s", second.BaseDigest, first.Digest)
	}
	for _, l := range second.Layers {
		if l.Name == trustPart {
			t.Error("the authority is put in twice")
		}
	}
	if len(second.Modules) == 0 || second.Modules[0].How != Satisfied || !strings.Contains(second.Modules[0].What, "undo") {
		t.Errorf("modules %v", second.Modules)
	}
	d, err := Compare(t.Context(), o.Base.String(), o.Out.String(), "", o.Cache)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Files) > 0 {
		t.Errorf("the second differs in %v", d.Files)
	}

	// What only calls itself one of ours is not believed.
	bad := options(t, t.TempDir())
	writeBase(t, bad, imagetest.Base().With(imagetest.Files{"usr/lib/os-release": "ID=fedora\nIMAGE_ID=veilor-os\n"}))
	if _, err := Build(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "the base calls itself an image of ours; build that one again") {
		t.Errorf("got %v", err)
	}
}

// Zstd layers are what they say, and the base's stay as they were.
func TestBuildZstd(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	o.Compression = Zstd
	build(t, o)
	img, err := o.Out.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		sum, _, err := v1.SHA256(rc)
		if err != nil || sum != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: its content is %s, %v, want %s", i, sum, err, config.RootFS.DiffIDs[i])
		}
		rc.Close()
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		want := types.OCILayer
		if i >= 2 {
			want = types.OCILayerZStd
		}
		if l.MediaType != want {
			t.Errorf("layer %d: %s, want %s", i, l.MediaType, want)
		}
	}
}

// PAX records stand only where a name needs them, and the parts have an order.
func TestParts(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	long := "usr/share/fonts/" + strings.Repeat("long/", 30) + strings.Repeat("n", 120)
	files := o.Overlay.(fstest.MapFS)
	files[long] = &fstest.MapFile{Data: []byte("font")}
	files["usr/share/fonts/ä.ttf"] = &fstest.MapFile{Data: []byte("font")}
	files["usr/share/plymouth/p"] = &fstest.MapFile{Data: []byte("p")}
	res := build(t, o)
	var names []string
	for _, l := range res.Layers {
		names = append(names, l.Name)
	}
	if want := []string{"trust", "programs/veilor", "config", "branding/fonts", "branding/plymouth", "site"}; !slices.Equal(names, want) {
		t.Errorf("layers %v, want %v", names, want)
	}
	img, err := o.Out.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers[2:] {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(rc)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			need := len(h.Name) > 100 && strings.Contains(h.Name, "/long/") || strings.Contains(h.Name, "ä")
			if h.Format == tar.FormatPAX && !need {
				t.Errorf("%s has PAX records", h.Name)
			}
			if len(h.PAXRecords) > 0 && h.PAXRecords["path"] == "" {
				t.Errorf("%s: records %v", h.Name, h.PAXRecords)
			}
		}
		rc.Close()
	}
}

// What a build took of the base is in the cache with its checksum: a file that was
// changed there does not get into an image.
func TestBuildTamperedContent(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	first := build(t, o)
	files, err := filepath.Glob(filepath.Join(o.Cache, "content-*", "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for i, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if data = append(data, "# more"...); i%2 == 0 {
			data = data[:10]
		}
		if err := os.WriteFile(f, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if second := build(t, o); second.Digest != first.Digest {
		t.Errorf("digest %s, want %s", second.Digest, first.Digest)
	}
}
