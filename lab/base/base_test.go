package base

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/pelletier/go-toml/v2"
)

// sum is an object's checksum for a test.
func sum(c string) string { return strings.Repeat(c, 64) }

func TestContentMeta(t *testing.T) {
	listing := strings.Join([]string{
		"d00755 0 0      0 " + sum("0") + " " + sum("1") + " /",
		"-00644 0 0     12 " + sum("a") + " /usr/lib/modules/6/vmlinuz",
		"-00644 0 0     12 " + sum("b") + " /usr/lib/systemd/a b",
		"l00777 0 0      0 " + sum("c") + " /usr/bin/x -> y",
		"-00644 0 0      0 " + sum("d") + " /usr/etc/fstab",
		"-00644 0 0      0 " + sum("a") + " /usr/share/copy-of-vmlinuz",
		"",
	}, "\n")
	b, err := contentMeta(listing)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Mapping map[string]string `json:"mapping"`
		Layers  map[string]string `json:"layers"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{sum("a"): "kernel", sum("b"): "system", sum("c"): "programs", sum("d"): "rest"}
	if diff := cmp.Diff(want, got.Mapping); diff != "" {
		t.Errorf("mapping (-want +got):\n%s", diff)
	}
	for _, layer := range want {
		if got.Layers[layer] != layer {
			t.Errorf("layer %s has no entry", layer)
		}
	}
	for _, bad := range []string{"", "-00644 0 0 12 short /usr/x"} {
		if _, err := contentMeta(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

// TestTraps holds the files against what secureblue ships at these paths: our
// recipe undoes exactly this.
func TestTraps(t *testing.T) {
	read := func(name string) string {
		t.Helper()
		b, err := files.ReadFile("files/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	override := "[Service]\nExecStart=\nExecStart=/usr/bin/kwin_wayland_wrapper\n"
	if diff := cmp.Diff(override, read("etc/systemd/user/plasma-kwin_wayland.service.d/override.conf")); diff != "" {
		t.Errorf("Xwayland override (-want +got):\n%s", diff)
	}
	var kargs struct{ Kargs []string }
	if err := toml.Unmarshal([]byte(read("usr/lib/bootc/kargs.d/10-secureblue.toml")), &kargs); err != nil {
		t.Fatal(err)
	}
	if got := len(kargs.Kargs) + strings.Count(read("usr/lib/bootc/kargs.d/10-secureblue.toml"), "\n#   "); got != 34 {
		t.Errorf("%d kernel arguments, kept and left out, want secureblue's 34", got)
	}
	var policy struct {
		Default []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(read("etc/containers/policy.json")), &policy); err != nil {
		t.Fatal(err)
	}
	if len(policy.Default) != 1 || policy.Default[0].Type != "reject" {
		t.Errorf("policy's default is %v, want reject", policy.Default)
	}
	if script := read("usr/libexec/secureblue/verify-provenance.sh"); !strings.Contains(script, "ghcr.io/secureblue/*") || !executable("usr/libexec/secureblue/verify-provenance.sh") {
		t.Error("the check of provenance is not secureblue's, or not executable")
	}
}

func TestTwinIsALayerAfterTheCommit(t *testing.T) {
	dir := t.TempDir()
	img, err := random.Image(64, 2)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Labels: map[string]string{"ostree.final-diffid": "sha256:1"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	if err := addTwin(dir); err != nil {
		t.Fatal(err)
	}
	after, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := v1.NewHash(after.Digest)
	if err != nil {
		t.Fatal(err)
	}
	img, err = l.Image(digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.Labels["ostree.final-diffid"] == "" {
		t.Error("the labels are gone")
	}
	for _, h := range config.History {
		if !h.Created.Equal(epoch()) {
			t.Errorf("history %v has the clock in it", h)
		}
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v, want 3", len(layers), err)
	}
	added, err := layers[2].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := os.Stat(filepath.Join(dir, "blobs/sha256", added.Hex))
	if err != nil {
		t.Fatal(err)
	}
	if blob.Mode() != 0o644 {
		t.Errorf("the layer's blob is %v; want it readable by all", blob.Mode())
	}
	rc, err := layers[2].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var names []string
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if len(names) == 0 || names[len(names)-1] != TwinPath {
		t.Errorf("the layer has %v, want %s last", names, TwinPath)
	}
	// One image, and no blob of the one before.
	if blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256")); err != nil || len(blobs) != 6 {
		t.Errorf("%d blobs, %v: want 3 layers, the manifest and a configuration, and the old configuration", len(blobs), err)
	}
}

func FuzzContentMeta(f *testing.F) {
	f.Add("-00644 0 0 12 " + sum("a") + " /usr/x\n")
	f.Fuzz(func(t *testing.T, listing string) {
		data, err := contentMeta(listing)
		if err != nil {
			return
		}
		var meta struct{ Layers, Mapping map[string]string }
		if err := json.Unmarshal(data, &meta); err != nil || len(meta.Mapping) == 0 {
			t.Fatalf("%s: %v", data, err)
		}
		for sum, layer := range meta.Mapping {
			if meta.Layers[layer] == "" {
				t.Errorf("%q lies in %q, which is no layer", sum, layer)
			}
		}
	})
}
