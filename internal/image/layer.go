package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/veilor/veilor-os/internal/overlay"
)

// stage is what a build puts on the base.
type stage struct {
	base    *Base
	entries map[string]overlay.Entry
	remove  map[string]bool // paths, relative, as the base has them
}

func newStage(b *Base) *stage {
	return &stage{base: b, entries: map[string]overlay.Entry{}, remove: map[string]bool{}}
}

func (s *stage) put(e overlay.Entry) { s.entries[e.Path] = e }

// parents returns the directories above p, outermost first.
func parents(p string) []string {
	var dirs []string
	for i, c := range p {
		if c == '/' {
			dirs = append(dirs, p[:i])
		}
	}
	return dirs
}

// check returns an error for an entry that the base gives no room: a link or a
// file where the entry needs a directory, or the reverse.
func (s *stage) check() error {
	for p := range s.entries {
		for _, d := range parents(p) {
			f, _, ok := s.base.find(d)
			if ok && f.typ == tar.TypeSymlink {
				return fmt.Errorf("placing /%s: the base has a link at /%s, to %s; put the file below its target", p, d, f.link)
			}
			if ok && f.typ != tar.TypeDir {
				return fmt.Errorf("placing /%s: the base has a file at /%s", p, d)
			}
		}
		if f, _, ok := s.base.find(p); ok && f.typ == tar.TypeDir {
			return fmt.Errorf("placing /%s: the base has a directory there", p)
		}
		if s.remove[p] {
			return fmt.Errorf("placing /%s: it is also removed; take it out of overlay/%s or out of the overlay", p, overlay.UndoFile)
		}
	}
	return nil
}

// tar writes the entries of one group, and with the group Config what is
// removed, in one order and with one date.
func (s *stage) tar(w io.Writer, g overlay.Group, date time.Time) error {
	headers := map[string]*tar.Header{}
	add := func(h tar.Header) {
		h.ModTime = date
		headers[strings.TrimSuffix(h.Name, "/")] = &h
		for _, d := range parents(strings.TrimSuffix(h.Name, "/")) {
			mode := int64(0o755)
			if f, _, ok := s.base.find(d); ok && f.typ == tar.TypeDir {
				mode = f.mode
			}
			headers[d] = &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode, ModTime: date}
		}
	}
	for _, e := range s.entries {
		if e.Group != g {
			continue
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: e.Path, Mode: int64(e.Perm()), Size: int64(len(e.Data))}
		if e.Link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.Link, 0
		}
		add(h)
	}
	if g == overlay.Config {
		for p := range s.remove {
			add(tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(p), ".wh."+path.Base(p)), Mode: 0o644})
		}
	}
	names := make([]string, 0, len(headers))
	for n := range headers {
		names = append(names, n)
	}
	// By components, so that a directory stands right before what is in it.
	slices.SortFunc(names, func(a, b string) int {
		return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
	})
	tw := tar.NewWriter(w)
	for _, n := range names {
		if err := tw.WriteHeader(headers[n]); err != nil {
			return fmt.Errorf("writing %s into a layer: %w", n, err)
		}
		if headers[n].Typeflag == tar.TypeReg {
			if _, err := tw.Write(s.entries[n].Data); err != nil {
				return fmt.Errorf("writing %s into a layer: %w", n, err)
			}
		}
	}
	return tw.Close()
}

// empty says whether a layer of group g would have nothing in it.
func (s *stage) empty(g overlay.Group) bool {
	for _, e := range s.entries {
		if e.Group == g {
			return false
		}
	}
	return g != overlay.Config || len(s.remove) == 0
}

// blob is a compressed layer in the cache.
type blob struct {
	path   string
	diffID v1.Hash
	digest v1.Hash
	size   int64
}

func (b blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b blob) DiffID() (v1.Hash, error)            { return b.diffID, nil }
func (b blob) Size() (int64, error)                { return b.size, nil }
func (b blob) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (b blob) Compressed() (io.ReadCloser, error)  { return os.Open(b.path) }
func (b blob) Uncompressed() (io.ReadCloser, error) {
	data, err := os.ReadFile(b.path)
	if err != nil {
		return nil, err
	}
	return gzip.NewReader(bytes.NewReader(data))
}

// layer compresses the layer of group g, or finds it in the cache. The
// compressor is one whose version go.mod pins, so that its output does not
// change with the Go release.
func (s *stage) layer(cache string, g overlay.Group, date time.Time) (blob, error) {
	sum := sha256.New()
	if err := s.tar(sum, g, date); err != nil {
		return blob{}, err
	}
	b := blob{diffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}}
	b.path = filepath.Join(cache, "layer", b.diffID.Hex)
	record := b.path + ".json"
	if b.cached(record) {
		return b, nil
	}
	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.DefaultCompression)
	if err != nil {
		return blob{}, err
	}
	if err := s.tar(zw, g, date); err != nil {
		return blob{}, err
	}
	if err := zw.Close(); err != nil {
		return blob{}, err
	}
	b.size = int64(out.Len())
	b.digest = v1.Hash{Algorithm: "sha256", Hex: sha(out.Bytes())}
	if err := keep(b.path, out.Bytes()); err != nil {
		return blob{}, err
	}
	data, err := json.Marshal(v1.Descriptor{MediaType: types.OCILayer, Digest: b.digest, Size: b.size})
	if err != nil {
		return blob{}, err
	}
	return b, keep(record, data)
}

// cached fills b from its record if the blob is there and is what it says.
func (b *blob) cached(record string) bool {
	data, err := os.ReadFile(record)
	if err != nil {
		return false
	}
	var d v1.Descriptor
	if json.Unmarshal(data, &d) != nil {
		return false
	}
	content, err := os.ReadFile(b.path)
	if err != nil || int64(len(content)) != d.Size || sha(content) != d.Digest.Hex {
		return false
	}
	b.digest, b.size = d.Digest, d.Size
	return true
}
