package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/veilor/veilor-os/internal/image/imagetest"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
)

const siteText = `
zone: veilor
os: {name: veilor-os, release: 44, home: "https://github.com/veilor/veilor-os"}
image:
  ref: ghcr.io/veilor/veilor-os
  base: ghcr.io/secureblue/kinoite-main-hardened
  signatures: [{name: ci, keys: [a.pub]}]
control: {url: "https://hs.example.org"}
authority: authority.pem
tiers: [{name: guest, tag: "tag:guest", reach: ["x.veilor:443"]}, {name: infra, tag: "tag:infra", reach: []}]
hosts: [{name: nullstone, tier: infra, tailnet: 100.64.0.1, yggdrasil: "abababababababababababababababababababababababababababababababab"}]
services: [{name: x.veilor, host: nullstone, ports: [443], loopback: 127.83.0.1}]
yggdrasil:
  edges: [{name: edge-1, url: "wss://edge.example.org/", address: "192.0.2.1:443", key: "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"}]
  public: []
`

func makeSite() (*site.Site, error) {
	s, err := site.Parse("site.yaml", []byte(siteText))
	if err != nil {
		return nil, err
	}
	s.Image.Signatures[0].Keys[0].Data = []byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
	s.Authority.Data = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	return s, nil
}

func testOverlay() fstest.MapFS {
	return fstest.MapFS{
		overlay.UndoFile: {Data: imagetest.Undo},
		"usr/libexec/secureblue/verify-provenance.sh":               {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"usr/lib/systemd/system/veilor-mesh.service":                {Data: []byte("[Service]\n[Install]\nWantedBy=multi-user.target\nAlias=mesh.service\n")},
		"usr/lib/systemd/system/veilor-ygg.service":                 {Data: []byte("[Service]\n[Install]\nWantedBy=multi-user.target \\\n  basic.target\n")},
		"etc/xdg/kdeglobals":                                        {Data: []byte("[KDE]\n")},
		"usr/share/kde-settings/kde-profile/default/xdg/kdeglobals": {Data: []byte("/etc/xdg/kdeglobals"), Mode: 0o777 | os.ModeSymlink},
		"usr/share/veilor/zone.tmpl":                                {Data: []byte("{{ .Zone }}\n")},
		"etc/systemd/system/bash":                                   {Data: []byte("/usr/bin/bash"), Mode: 0o777 | os.ModeSymlink},
	}
}

// options are a build that works; the base is at dir/base.
func options(t *testing.T, dir string) Options {
	t.Helper()
	o, err := makeOptions(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func makeOptions(dir string) (Options, error) {
	s, err := makeSite()
	if err != nil {
		return Options{}, err
	}
	r, err := recipe.Parse("recipe.yml", imagetest.Recipe)
	if err != nil {
		return Options{}, err
	}
	table, err := ParseReplacements("stand-ins.yaml", []byte(imagetest.StandIns))
	if err != nil {
		return Options{}, err
	}
	return Options{
		Site: s, Recipe: r, Overlay: testOverlay(), StandIns: table,
		Base: Dir{Path: filepath.Join(dir, "base")}, Out: Dir{Path: filepath.Join(dir, "out")},
		Version: "44.test.1", Arch: "amd64", Cache: filepath.Join(dir, "cache"),
		Programs: func(context.Context) (overlay.Tree, error) {
			return overlay.Tree{{Path: "usr/bin/veilor", Exec: true, Data: []byte("program"), Group: overlay.Programs}}, nil
		},
	}, nil
}

func writeBase(t *testing.T, o Options, f imagetest.Files) {
	t.Helper()
	if err := os.RemoveAll(o.Base.Path); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(o.Base.Path, "amd64"); err != nil {
		t.Fatal(err)
	}
}

// contents lists the derived layers: "mode path" with the text or target.
func contents(t *testing.T, img v1.Image, from int) map[string]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range layers[from:] {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(rc)
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !h.ModTime.Equal(imagetest.Date) || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Format == tar.FormatPAX {
				t.Errorf("%s: date %v, owner %d:%d %q, format %v", h.Name, h.ModTime, h.Uid, h.Gid, h.Uname, h.Format)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			text := string(data)
			if h.Typeflag == tar.TypeSymlink {
				text = "-> " + h.Linkname
			}
			got[h.Name] = h.FileInfo().Mode().Perm().String() + " " + text
		}
		rc.Close()
	}
	return got
}

func TestBuild(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	res, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	img, err := o.Out.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("the written image: %v", err)
	}
	got := contents(t, img, 2)
	for p, want := range map[string]string{
		"usr/bin/veilor":        "-rwxr-xr-x program",
		"usr/share/veilor/zone": "-rw-r--r-- veilor\n",
		"etc/containers/":       "-rwx--x--x ", // as the base has it
		"usr/":                  "-rwxr-xr-x ",
		"usr/libexec/secureblue/verify-provenance.sh":                       "-rwxr-xr-x #!/bin/sh\n",
		"etc/systemd/system/multi-user.target.wants/veilor-mesh.service":    "-rwxrwxrwx -> /usr/lib/systemd/system/veilor-mesh.service",
		"etc/systemd/system/mesh.service":                                   "-rwxrwxrwx -> /usr/lib/systemd/system/veilor-mesh.service",
		"etc/systemd/system/multi-user.target.wants/veilor-ygg.service":     "-rwxrwxrwx -> /usr/lib/systemd/system/veilor-ygg.service",
		"etc/systemd/system/basic.target.wants/veilor-ygg.service":          "-rwxrwxrwx -> /usr/lib/systemd/system/veilor-ygg.service",
		"etc/systemd/system/multi-user.target.wants/.wh.tailscaled.service": "-rw-r--r-- ",
		"etc/systemd/system/rpm-ostreed-automatic.timer":                    "-rwxrwxrwx -> /dev/null",
		"etc/systemd/system/upgrade-on-boot.service":                        "-rwxrwxrwx -> /dev/null",
		"etc/systemd/user/plasma-kwin_wayland.service.d/.wh.override.conf":  "-rw-r--r-- ",
		"usr/lib/bootc/kargs.d/bluebuild-kargs.toml":                        "-rw-r--r-- kargs = [\"nvidia-drm.modeset=1\", \"nvidia-drm.fbdev=1\", \"rd.luks.options=tries=4\"]\nmatch-architectures = [\"x86_64\", \"aarch64\"]\n",
		"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem":                  "-rw-r--r-- # somebody's authorities\n# veilor: the site's authority\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"usr/lib/os-release": "-rw-r--r-- " + `NAME="veilor-os"
ID=fedora
VERSION_ID=44
VERSION="44.test.1"
PRETTY_NAME="veilor-os 44"
BUG_REPORT_URL="https://github.com/veilor/veilor-os/issues"
DEFAULT_HOSTNAME="veilor"
HOME_URL="https://github.com/veilor/veilor-os"
IMAGE_ID="veilor-os"
IMAGE_VERSION="44.test.1"
OSTREE_VERSION="44.test.1"
`,
	} {
		if got[p] != want {
			t.Errorf("%s:\ngot  %q\nwant %q", p, got[p], want)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	labels := config.Config.Labels
	if got, want := labels["ostree.final-diffid"], config.RootFS.DiffIDs[1].String(); got != want {
		t.Errorf("ostree.final-diffid %s, the base's last layer is %s", got, want)
	}
	for k, want := range map[string]string{
		"containers.bootc": "1", "ostree.bootable": "true", "ostree.commit": "c0ffee", "version": "44.test.1",
		"org.opencontainers.image.version": "44.test.1", "org.opencontainers.image.title": "veilor-os",
		"org.opencontainers.image.created": "2026-11-01T02:03:04Z", "org.opencontainers.image.base.digest": res.BaseDigest,
	} {
		if labels[k] != want {
			t.Errorf("label %s: %q, want %q", k, labels[k], want)
		}
	}
	if len(config.History) != len(config.RootFS.DiffIDs) {
		t.Errorf("%d history entries for %d layers", len(config.History), len(config.RootFS.DiffIDs))
	}
	var outcomes []Outcome
	if err := json.Unmarshal([]byte(labels[ModulesLabel]), &outcomes); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(res.Modules, outcomes); d != "" || len(outcomes) == 0 || outcomes[0].How != StandIn {
		t.Errorf("%v\n%s", outcomes, d)
	}
	if d := cmp.Diff([]string{"/etc/systemd/user/plasma-kwin_wayland.service.d/override.conf"}, res.Undone); d != "" {
		t.Error(d)
	}
	var names []string
	for _, l := range res.Layers {
		names = append(names, l.Name)
	}
	if d := cmp.Diff([]string{"trust", "programs/veilor", "config", "site"}, names); d != "" {
		t.Error(d)
	}
}

// The same inputs give the same digest: another directory, cache or time does
// not matter, and a change of one file leaves the other layers alone.
func TestBuildIsReproducible(t *testing.T) {
	a := options(t, t.TempDir())
	writeBase(t, a, imagetest.Base())
	first, err := Build(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	b := options(t, t.TempDir())
	writeBase(t, b, imagetest.Base())
	second, err := Build(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest != second.Digest {
		t.Errorf("digests %s and %s", first.Digest, second.Digest)
	}
	warm, err := Build(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if warm.Digest != first.Digest {
		t.Errorf("digest %s from a warm cache, %s from a cold one", warm.Digest, first.Digest)
	}

	b.Overlay.(fstest.MapFS)["usr/share/x"] = &fstest.MapFile{Data: []byte("x")}
	changed, err := Build(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range changed.Layers {
		if same := l.Digest == first.Layers[i].Digest; same != (l.Name != "config") {
			t.Errorf("layer %s the same: %v", l.Name, same)
		}
	}

	b.Created = time.Unix(1e9, 0)
	dated, err := Build(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if dated.Digest == changed.Digest {
		t.Error("another date gives the same digest")
	}
}

// A tampered cache does not get into an image.
func TestBuildTamperedCache(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	first, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"layer", "index"} {
		files, err := filepath.Glob(filepath.Join(o.Cache, dir, "*"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(f, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	second, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest != second.Digest {
		t.Errorf("digest %s, want %s", second.Digest, first.Digest)
	}
}

func TestBuildRefuses(t *testing.T) {
	const override = "etc/systemd/user/plasma-kwin_wayland.service.d/override.conf"
	for name, c := range map[string]struct {
		base   imagetest.Files
		change func(*Options)
		want   string
	}{
		"trap changed":  {imagetest.Base().With(imagetest.Files{override: "[Service]\nExecStart=/usr/bin/other\n"}), nil, "/" + override + ": /" + override + " does not contain"},
		"trap gone":     {imagetest.Base().With(imagetest.Files{override: ""}), nil, "/" + override + ": is not there any more"},
		"twin changed":  {imagetest.Base().With(imagetest.Files{"usr/" + override: "x"}), nil, "/usr/" + override + " does not contain"},
		"sudo is back":  {imagetest.Base().With(imagetest.Files{"usr/bin/sudo": "sudo"}), nil, "/usr/bin/sudo is there again"},
		"open policy":   {imagetest.Base().With(imagetest.Files{"etc/containers/policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}`}), nil, "/etc/containers/policy.json does not contain"},
		"kargs changed": {imagetest.Base().With(imagetest.Files{"usr/lib/bootc/kargs.d/10-secureblue.toml": "kargs = []"}), nil, "10-secureblue.toml does not contain"},
		"no os-release": {imagetest.Base().With(imagetest.Files{"usr/lib/os-release": ""}), nil, "is it an operating system?"},
		"no such unit": {imagetest.Base(), func(o *Options) {
			delete(o.Overlay.(fstest.MapFS), "usr/lib/systemd/system/veilor-mesh.service")
		}, "enabling veilor-mesh.service: no such unit"},
		"unit without Install": {imagetest.Base(), func(o *Options) {
			o.Overlay.(fstest.MapFS)["usr/lib/systemd/system/veilor-mesh.service"] = &fstest.MapFile{Data: []byte("[Service]\n")}
		}, "its [Install] section is missing or empty"},
		"unit masked by the base": {imagetest.Base().With(imagetest.Files{"etc/systemd/system/veilor-mesh.service": "-> /dev/null"}), nil, "the base masks it"},
		"mask over a unit": {imagetest.Base().With(imagetest.Files{"etc/systemd/system/upgrade-on-boot.service": "[Service]"}), nil,
			"masking upgrade-on-boot.service: the base has the unit at /etc/systemd/system/upgrade-on-boot.service"},
		"dangling link": {imagetest.Base(), func(o *Options) {
			o.Overlay.(fstest.MapFS)["etc/l"] = &fstest.MapFile{Data: []byte("/usr/bin/nothing"), Mode: os.ModeSymlink}
		}, "/etc/l leads to /usr/bin/nothing, which is not in the overlay or the base"},
		"below a link of the base": {imagetest.Base(), func(o *Options) {
			o.Overlay.(fstest.MapFS)["usr/sbin/x"] = &fstest.MapFile{}
		}, "placing /usr/sbin/x: the base has a link at /usr/sbin, to bin"},
		"over a directory": {imagetest.Base(), func(o *Options) {
			o.Overlay.(fstest.MapFS)["usr/lib/bootc"] = &fstest.MapFile{}
		}, "placing /usr/lib/bootc: the base has a directory there"},
		"other release":      {imagetest.Base(), func(o *Options) { o.Site.OS.Release = 45 }, "comparing recipe and site"},
		"bad version":        {imagetest.Base(), func(o *Options) { o.Version = "44 beta" }, `"44 beta" is no version`},
		"other architecture": {imagetest.Base(), func(o *Options) { o.Arch = "arm64" }, "it is for linux/amd64, not for linux/arm64; give --arch amd64"},
		"no such tag":        {imagetest.Base(), func(o *Options) { o.Base.Tag = "v2" }, "no image with this tag; there is v1"},
		"out has other things": {imagetest.Base(), func(o *Options) {
			if err := imagetest.WriteFile(o.Out.Path, "letter.txt", "dear"); err != nil {
				panic(err)
			}
		}, "the directory has other things in it"},
		"failing programs": {imagetest.Base(), func(o *Options) {
			o.Programs = func(context.Context) (overlay.Tree, error) { return nil, errors.New("compiling: no") }
		}, "compiling: no"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir())
			writeBase(t, o, c.base)
			if c.change != nil {
				c.change(&o)
			}
			_, err := Build(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant …%s…", err, c.want)
			}
			// Nothing half-written: neither the image nor a temporary directory.
			left, err := filepath.Glob(filepath.Join(filepath.Dir(o.Out.Path), ".*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if isLayout(o.Out.Path) == nil {
				t.Error("an image was written")
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"docker://x":             "not an OCI image directory; write oci:DIR",
		"oci:":                   "not an OCI image directory; write oci:DIR",
		"oci:" + dir:             "no file oci-layout in it",
		"oci:" + dir + "/absent": "no such file or directory",
	} {
		d, err := ParseDir(text)
		if err == nil {
			_, err = d.Open("amd64")
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", text, err, want)
		}
	}
}

// A layer whose bytes are not what the manifest says is refused.
func TestOpenBaseTampered(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	img, err := o.Base.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	a, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	b, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blobs := filepath.Join(o.Base.Path, "blobs", "sha256")
	data, err := os.ReadFile(filepath.Join(blobs, b.Hex))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(blobs, a.Hex), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "fetch the image again") {
		t.Errorf("got %v", err)
	}
}

// What is changed in a base after it was indexed is found, whether its layers are
// linked or copied into the image.
func TestBuildTamperedBase(t *testing.T) {
	for name, c := range map[string]struct {
		blob func(*v1.Manifest) v1.Hash
		want string
	}{
		"first layer":   {func(m *v1.Manifest) v1.Hash { return m.Layers[0].Digest }, "the base's layer "},
		"last layer":    {func(m *v1.Manifest) v1.Hash { return m.Layers[1].Digest }, "the base's layer "},
		"configuration": {func(m *v1.Manifest) v1.Hash { return m.Config.Digest }, "the image's configuration "},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir())
			writeBase(t, o, imagetest.Base())
			first, err := Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			base, err := o.Base.Open("amd64")
			if err != nil {
				t.Fatal(err)
			}
			m, err := base.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(o.Base.Path, "blobs", "sha256", c.blob(m).Hex)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			// A new file, so that the image keeps its own.
			if err := errors.Join(os.Remove(file), os.WriteFile(file, data, 0o644)); err != nil {
				t.Fatal(err)
			}
			_, err = Build(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.want+file+" is damaged or was changed") || !strings.Contains(err.Error(), "delete this file and fetch") {
				t.Errorf("got %v", err)
			}
			img, err := o.Out.Open("amd64")
			if err != nil {
				t.Fatal(err)
			}
			if d, err := img.Digest(); err != nil || d.String() != first.Digest {
				t.Errorf("the image that was there has become %s, %v; want %s", d, err, first.Digest)
			}
		})
	}
}

// A layer is read in the same way where it can be linked and where it is copied.
func TestTake(t *testing.T) {
	const text = "layer"
	here := t.TempDir()
	places := map[string]string{"linked": here}
	if other, err := os.MkdirTemp("/dev/shm", "veilor-test-"); err != nil {
		t.Logf("copying was NOT TESTED: it needs a second file system: %v", err)
	} else {
		t.Cleanup(func() { os.RemoveAll(other) })
		places["copied"] = other
	}
	from := filepath.Join(here, "from")
	if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	hash := func(text string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: sha([]byte(text))} }
	for how, place := range places {
		for name, c := range map[string]struct {
			digest v1.Hash
			size   int64
			fails  bool
		}{
			"whole":         {hash(text), int64(len(text)), false},
			"another size":  {hash(text), int64(len(text)) + 1, true},
			"other content": {hash("Layer"), int64(len(text)), true},
		} {
			t.Run(how+"/"+name, func(t *testing.T) {
				to := filepath.Join(place, "to")
				defer os.Remove(to)
				if err := take(from, to, c.digest, c.size); (err != nil) != c.fails {
					t.Errorf("got %v", err)
				}
				if data, err := os.ReadFile(to); err != nil || string(data) != text {
					t.Errorf("%q, %v", data, err)
				}
			})
		}
	}
}

// An image that keeps its /etc at usr/etc is undone there.
func TestBuildUsrEtc(t *testing.T) {
	o := options(t, t.TempDir())
	files := imagetest.Files{}
	for p, text := range imagetest.Base() {
		if strings.HasPrefix(p, "etc/") {
			p = "usr/" + p
		}
		files[p] = text
	}
	writeBase(t, o, files.With(imagetest.Files{"usr/etc/os-release": ""}))
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	img, err := o.Out.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	got := contents(t, img, 2)
	for _, p := range []string{
		"usr/etc/systemd/user/plasma-kwin_wayland.service.d/.wh.override.conf",
		"usr/etc/systemd/system/multi-user.target.wants/.wh.tailscaled.service",
		"etc/containers/policy.json",
	} {
		if _, ok := got[p]; !ok {
			t.Errorf("%s is not in the layers", p)
		}
	}
}

// What an image has at a path is told without following links.
func TestLstat(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBase(t.Context(), o.Out, "amd64", o.Cache)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]struct {
		mode    fs.FileMode
		link    string
		content string
	}{
		"usr/bin/veilor":                             {0o755, "", "program"},
		"/usr/share/veilor/zone":                     {0o644, "", "veilor\n"},
		"etc/systemd/system/upgrade-on-boot.service": {fs.ModeSymlink | 0o777, "/dev/null", ""},
		"etc/containers":                             {fs.ModeDir | 0o711, "", ""},
	} {
		mode, link, sum, ok := b.Lstat(p)
		if !ok || mode != want.mode || link != want.link || (mode.IsRegular() && sum != sha256.Sum256([]byte(want.content))) {
			t.Errorf("%s: %v %v %q %x", p, ok, mode, link, sum)
		}
	}
	if mode, link, _, ok := b.Lstat("etc/systemd/system/multi-user.target.wants/tailscaled.service"); ok {
		t.Errorf("what was removed is there: %v %q", mode, link)
	}
}

func TestMergeWhiteouts(t *testing.T) {
	b := &Base{files: map[string]file{}}
	reg := func(names ...string) (ns []node) {
		for _, n := range names {
			ns = append(ns, node{Name: n, Type: tar.TypeReg})
		}
		return ns
	}
	b.merge(0, reg("a/1", "a/2", "b/1", "c/d/1"))
	b.merge(1, reg("a/.wh.1", "b/.wh..wh..opq", "b/2", "c/.wh.d"))
	var got []string
	for p := range b.files {
		got = append(got, p)
	}
	if len(got) != 2 || !b.Has("a/2") || !b.Has("/b/2") {
		t.Errorf("left: %v", got)
	}
}

func TestMergeOSRelease(t *testing.T) {
	got := mergeOSRelease([]byte("# c\nA=1\nB='2'\nA=3\nC=4"), map[string]string{"A": "x y", "Z": "z"})
	if want := "# c\nA=\"x y\"\nB='2'\nC=4\nZ=\"z\"\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzParseInstall(f *testing.F) {
	f.Add([]byte("[Unit]\nWantedBy=no\n[Install]\nWantedBy=a.target \\\n b.target\nAlias=x.service\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		in := parseInstall("x.service", data)
		if len(in.links) > 0 && !bytes.Contains(data, []byte("[Install]")) {
			t.Errorf("links without an [Install] section: %v", in.links)
		}
	})
}

// A build that is interrupted leaves the image that was there.
func TestBuildInterrupted(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	first, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Version = "44.test.2"
	o.Step = func(name string) func(string) {
		if name == "write" {
			cancel()
		}
		return func(string) {}
	}
	if _, err := Build(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	img, err := o.Out.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d.String() != first.Digest {
		t.Errorf("digest %s, %v, want %s", d, err, first.Digest)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(o.Out.Path), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
