package image

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/veilor/veilor-os/internal/image/imagetest"
	"github.com/veilor/veilor-os/internal/overlay"
)

// build makes the image of o.
func build(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestList(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	res := build(t, o)
	l, err := List(t.Context(), o.Out.String(), "", o.Cache)
	if err != nil {
		t.Fatal(err)
	}
	if l.Digest != res.Digest || l.Version != o.Version || l.Base != res.BaseDigest || l.Arch != "amd64" {
		t.Errorf("%+v", l)
	}
	var names []string
	for _, layer := range l.Layers {
		names = append(names, layer.Name)
	}
	if d := cmp.Diff([]string{"base", "base", "trust", "programs/veilor", "config", "site"}, names); d != "" {
		t.Error(d)
	}
	find := func(p string) (File, bool) {
		i := slices.IndexFunc(l.Files, func(f File) bool { return f.Path == p })
		if i < 0 {
			return File{}, false
		}
		return l.Files[i], true
	}
	for p, want := range map[string]File{
		"/usr/bin/veilor": {Mode: "-rwxr-xr-x", Size: 7, SHA256: sha([]byte("program")), Layer: 3},
		"/usr/sbin":       {Mode: "lrwxrwxrwx", Link: "bin", Layer: 1},
		"/etc/containers": {Mode: "drwx--x--x", Layer: 5},
		"/usr/bin/bash":   {Mode: "-rw-r--r--", Size: 4, SHA256: sha([]byte("bash")), Layer: 0},
	} {
		want.Path = p
		got, _ := find(p)
		// In which half of the base a file lies is imagetest's affair.
		if got.Layer < 2 && want.Layer < 2 {
			got.Layer = want.Layer
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	for _, p := range []string{"/etc/systemd/user/plasma-kwin_wayland.service.d/override.conf", "/sysroot/ostree/repo"} {
		if f, ok := find(p); ok {
			t.Errorf("%+v is listed", f)
		}
	}
}

func TestLsMode(t *testing.T) {
	for mode, want := range map[int64]string{0o755: "-rwxr-xr-x", 0o4755: "-rwsr-xr-x", 0o2644: "-rw-r-Sr--", 0o1777: "-rwxrwxrwt", 0o1000: "---------T"} {
		if got := lsMode('0', mode); got != want {
			t.Errorf("%o: %s, want %s", mode, got, want)
		}
	}
}

func TestCompare(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	writeBase(t, o, imagetest.Base())
	first := build(t, o)
	before := o.Out.String()

	o.Out.Path = filepath.Join(dir, "second")
	files := o.Overlay.(fstest.MapFS)
	files["usr/share/wallpapers/veilor/w.svg"] = &fstest.MapFile{Data: []byte("picture")}
	files["usr/libexec/secureblue/verify-provenance.sh"] = &fstest.MapFile{Data: []byte("#!/bin/sh\nexit\n"), Mode: 0o755}
	delete(files, "etc/systemd/system/bash")
	second := build(t, o)

	// Once from directories, once from a registry: the same answer.
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/veilor/veilor-os"
	for tag, from := range map[string]string{"1": before, "2": o.Out.String()} {
		d, err := ParseDir(from)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Push(t.Context(), d, repo+":"+tag, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, pair := range [][2]string{{before, o.Out.String()}, {repo + ":1", repo + ":2"}} {
		d, err := Compare(t.Context(), pair[0], pair[1], "amd64", o.Cache)
		if err != nil {
			t.Fatal(err)
		}
		if d.A != first.Digest || d.B != second.Digest {
			t.Errorf("digests %s and %s", d.A, d.B)
		}
		var layers []string
		var added int64
		for _, l := range d.Layers {
			layers = append(layers, l.Kind+" "+l.Name)
			if l.Kind == Added {
				added += l.Size
			}
		}
		if d := cmp.Diff([]string{"removed config", "added config", "added branding/wallpapers"}, layers); d != "" {
			t.Error(d)
		}
		img, err := Open(t.Context(), pair[1], "amd64")
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := img.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		if want := added + int64(len(raw)) + m.Config.Size; d.Download != want {
			t.Errorf("a client fetches %d, want %d", d.Download, want)
		}
		want := []Change{
			{Path: "/etc/systemd/system/bash", Kind: Removed},
			{Path: "/usr/libexec/secureblue/verify-provenance.sh", Kind: Changed, What: []string{"content"}, Before: 10, After: 15},
			{Path: "/usr/share/wallpapers", Kind: Added},
			{Path: "/usr/share/wallpapers/veilor", Kind: Added},
			{Path: "/usr/share/wallpapers/veilor/w.svg", Kind: Added, After: 7},
		}
		if d := cmp.Diff(want, d.Files); d != "" {
			t.Error(d)
		}
	}
	same, err := Compare(t.Context(), before, before, "", o.Cache)
	if err != nil || same.Download != 0 || len(same.Layers)+len(same.Files) > 0 {
		t.Errorf("an image and itself: %+v, %v", same, err)
	}
}

func TestBillOfMaterials(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base().With(rpms(t, tailscale)))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self) // a Go program with modules in it
	if err != nil {
		t.Fatal(err)
	}
	o.Programs = func(context.Context) (overlay.Tree, error) {
		return overlay.Tree{{Path: "usr/bin/veilor", Exec: true, Data: program, Group: overlay.Programs}}, nil
	}
	res := build(t, o)
	write := func() string {
		img, err := o.Out.Open("")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := BillOfMaterials(t.Context(), img, o.Out.String(), o.Cache, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	text := write()
	if again := write(); again != text {
		t.Error("twice the same image, two documents")
	}
	doc, err := spdxjson.Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if doc.SPDXVersion != "SPDX-2.3" || !strings.Contains(doc.DocumentNamespace, strings.TrimPrefix(res.Digest, "sha256:")) || doc.CreationInfo.Created != "2026-11-01T02:03:04Z" {
		t.Errorf("%s %s %s", doc.SPDXVersion, doc.DocumentNamespace, doc.CreationInfo.Created)
	}
	got := map[string]string{}
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		got[p.PackageName] = p.PackageVersion
		ids[string(p.PackageSPDXIdentifier)] = true
	}
	for name, want := range map[string]string{"veilor-os": o.Version, "base": res.BaseDigest, "tailscale": "1.98.2-1.fc44"} {
		if got[name] != want {
			t.Errorf("package %s: %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"stdlib", "github.com/veilor/veilor-os"} {
		if got[name] == "" {
			t.Errorf("the program's module %s is not listed", name)
		}
	}
	for _, f := range doc.Files {
		ids[string(f.FileSPDXIdentifier)] = true
		if len(f.Checksums) != 2 {
			t.Errorf("%s has %d checksums", f.FileName, len(f.Checksums))
		}
	}
	i := slices.IndexFunc(doc.Files, func(f *v2_3.File) bool { return f.FileName == "./usr/bin/veilor" })
	if i < 0 || doc.Files[i].Checksums[1].Value != sha(program) {
		t.Error("/usr/bin/veilor is not listed, or with another hash")
	}
	// Every relation is between things that are in the document.
	for _, r := range doc.Relationships {
		for _, e := range []string{string(r.RefA.ElementRefID), string(r.RefB.ElementRefID)} {
			if e != "DOCUMENT" && !ids[e] {
				t.Errorf("%s is related and not there", e)
			}
		}
	}
	img, err := o.Base.Open("")
	if err != nil {
		t.Fatal(err)
	}
	if err := BillOfMaterials(t.Context(), img, "base", o.Cache, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "no layer of it was made by veilor-forge") {
		t.Errorf("of a base: %v", err)
	}
}

// A test's own binary has no list of modules.
func TestProgramModules(t *testing.T) {
	d := &document{packages: map[common.ElementID]*v2_3.Package{}, files: map[common.ElementID]*v2_3.File{}, related: map[v2_3.Relationship]bool{}}
	d.program(&v2_3.File{FileSPDXIdentifier: "File-x"}, &buildinfo.BuildInfo{
		GoVersion: "go1.26.8", Main: debug.Module{Path: "example.org/x", Version: "(devel)"},
		Deps: []*debug.Module{{Path: "example.org/a", Version: "v1.0.0", Sum: "h1:a"}, {Path: "example.org/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/c", Version: "v2.0.0"}}},
	})
	var got []string
	for _, r := range d.finish().Relationships {
		got = append(got, string(r.RefA.ElementRefID)+" "+r.Relationship+" "+d.packages[r.RefB.ElementRefID].PackageExternalReferences[0].Locator)
	}
	want := []string{"File-x DEPENDS_ON pkg:golang/example.org/a@v1.0.0", "File-x DEPENDS_ON pkg:golang/example.org/c@v2.0.0", "File-x DEPENDS_ON pkg:golang/stdlib@1.26.8", "File-x GENERATED_FROM pkg:golang/example.org/x@devel"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
