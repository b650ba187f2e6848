package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how layers are compressed.
type Compression string

// Gzip is read by every client. Zstd makes layers some 10 % smaller and is read by
// skopeo, podman and ostree since 2021.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// ParseCompression reads the name of a compression.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case Gzip, Zstd:
		return c, nil
	}
	return "", fmt.Errorf("%q is no compression for layers; write gzip or zstd", s)
}

func (c Compression) mediaType() types.MediaType {
	if c == Zstd {
		return types.OCILayerZStd
	}
	return types.OCILayer
}

// writer compresses into w, always to the same bytes: the compressors are of a
// module whose version go.mod pins, so that their output does not change with the
// Go release, and work on one processor, so that it does not change with their
// number.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	if c == Zstd {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	}
	return gzip.NewWriterLevel(w, gzip.DefaultCompression)
}

func (c Compression) reader(r io.Reader) (io.ReadCloser, error) {
	if c == Zstd {
		d, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return gzip.NewReader(r)
}

// blob is a compressed layer in the cache.
type blob struct {
	path        string
	compression Compression
	diffID      v1.Hash
	digest      v1.Hash
	size        int64
}

func (b blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b blob) DiffID() (v1.Hash, error)            { return b.diffID, nil }
func (b blob) Size() (int64, error)                { return b.size, nil }
func (b blob) MediaType() (types.MediaType, error) { return b.compression.mediaType(), nil }
func (b blob) Compressed() (io.ReadCloser, error)  { return os.Open(b.path) }
func (b blob) Uncompressed() (io.ReadCloser, error) {
	data, err := os.ReadFile(b.path)
	if err != nil {
		return nil, err
	}
	return b.compression.reader(bytes.NewReader(data))
}

// layer compresses the layer of part p, or finds it in the cache.
func (s *stage) layer(cache string, c Compression, p part, date time.Time) (blob, error) {
	sum := sha256.New()
	if err := s.tar(sum, p, date); err != nil {
		return blob{}, err
	}
	b := blob{compression: c, diffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}}
	b.path = filepath.Join(cache, "layer", b.diffID.Hex+"."+string(c))
	record := b.path + ".json"
	if b.cached(record) {
		return b, nil
	}
	var out bytes.Buffer
	zw, err := c.writer(&out)
	if err != nil {
		return blob{}, err
	}
	if err := s.tar(zw, p, date); err != nil {
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
	data, err := json.Marshal(v1.Descriptor{MediaType: c.mediaType(), Digest: b.digest, Size: b.size})
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
