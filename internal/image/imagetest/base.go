// Package imagetest makes small base images for tests: an ostree-encapsulated
// one as ostree-ext writes it, with the traps of secureblue that the recipe
// undoes.
package imagetest

import (
	"archive/tar"
	"bytes"
	_ "embed" // the recipe and undo list
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Recipe and Undo are a recipe and an undo list that fit [Base]. They are not the
// product's: a test of how images are built must not fail because veilor-os got
// another font.
var (
	//go:embed recipe.yml
	Recipe []byte
	//go:embed undo.yaml
	Undo []byte
)

// StandIns is a table for what [Recipe] needs and [Base] has not.
const StandIns = `stand_ins:
  - {module: dnf install tailscale, by: the base of a test}
  - {module: script dnf -y reinstall sudo, by: the base of a test}
`

// Date is the date of every base.
var Date = time.Date(2026, 11, 1, 2, 3, 4, 0, time.UTC)

// Files is a base's content by path relative to the root. "-> X" is a symbolic
// link to X.
type Files map[string]string

// Base has what a build of veilor-os looks for in its base.
func Base() Files {
	return Files{
		"usr/lib/os-release": "NAME=\"Fedora Linux\"\nID=fedora\nVERSION_ID=44\nVERSION=\"44.20261101.0 (Kinoite)\"\nPRETTY_NAME=\"Fedora Linux 44\"\n",
		"etc/os-release":     "-> ../usr/lib/os-release",
		"usr/sbin":           "-> bin",
		"usr/bin/bash":       "bash",
		"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem":              "# somebody's authorities",
		"usr/lib/systemd/system/tailscaled.service":                     "[Service]\nExecStart=/usr/bin/tailscaled\n[Install]\nWantedBy=multi-user.target\n",
		"etc/systemd/system/multi-user.target.wants/tailscaled.service": "-> /usr/lib/systemd/system/tailscaled.service",
		"usr/lib/systemd/system/rpm-ostreed-automatic.timer":            "[Timer]\n[Install]\nWantedBy=timers.target\n",

		"etc/systemd/user/plasma-kwin_wayland.service.d/override.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/kwin_wayland_wrapper\n",
		"usr/libexec/secureblue/verify-provenance.sh":                  "case \"${image_ref}\" in\n    ghcr.io/secureblue/*)\n    ;;\n    *)\n        echo \"WARNING: Unknown image reference; unable to check provenance.\"\n        exit 1\nesac\nslsa-verifier verify-image\n",
		"usr/lib/bootc/kargs.d/10-secureblue.toml":                     "kargs = [\"lockdown=confidentiality\", \"slab_nomerge\"]\n",
		"etc/xdg/kdeglobals":                                           "[KDE Action Restrictions][$i]\nghns=false\n",
		"usr/share/kde-settings/kde-profile/default/xdg/kdeglobals":    "[KDE]\nLookAndFeelPackage=org.fedoraproject.fedora.desktop\n",
		"etc/containers/policy.json":                                   `{"default":[{"type":"reject"}],"transports":{"docker":{"ghcr.io/secureblue":[{"type":"sigstoreSigned"}]}}}`,
	}
}

// With returns f with what more has put over it; an empty text removes.
func (f Files) With(more Files) Files {
	out := maps.Clone(f)
	for p, text := range more {
		if text == "" {
			delete(out, p)
		} else {
			out[p] = text
		}
	}
	return out
}

// Write makes an OCI image directory at dir for linux/arch: half of the files in
// a plain layer, the other half in one as ostree-ext encapsulates, where every
// path is a hard link to an object.
func (f Files) Write(dir, arch string) error {
	var halves [2][]string
	for i, p := range slices.Sorted(maps.Keys(f)) {
		halves[i%2] = append(halves[i%2], p)
	}
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	var last v1.Hash
	for i, encapsulated := range []bool{false, true} {
		data, err := f.tar(halves[i], encapsulated)
		if err != nil {
			return err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return err
		}
		if last, err = l.DiffID(); err != nil {
			return err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Comment: "base"}, MediaType: types.OCILayer}); err != nil {
			return err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: Date}
	config.Config.Labels = map[string]string{
		"ostree.final-diffid": last.String(), "ostree.bootable": "true", "ostree.commit": "c0ffee", "version": "44.20261101.0",
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"}))
}

// WriteFile puts text into dir as name, for hand-made directories in tests.
func WriteFile(dir, name, text string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

func (f Files) tar(paths []string, encapsulated bool) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := map[string]bool{}
	for i, p := range paths {
		for d := path.Dir(p); d != "." && !dirs[d]; d = path.Dir(d) {
			dirs[d] = true
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: 0o644, Size: int64(len(f[p]))}
		text := f[p]
		if target, ok := cutLink(text); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
		}
		object := fmt.Sprintf("sysroot/ostree/repo/objects/%02x/%d.file", i, i)
		if encapsulated {
			h.Name = object
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return nil, err
		}
		if encapsulated {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: p, Linkname: object, Mode: 0o644}); err != nil {
				return nil, err
			}
		}
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		mode := int64(0o755)
		if d == "etc/containers" {
			mode = 0o711 // to see that a derived layer keeps it
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./" + d + "/", Mode: mode}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func cutLink(text string) (string, bool) {
	if len(text) > 3 && text[:3] == "-> " {
		return text[3:], true
	}
	return "", false
}
