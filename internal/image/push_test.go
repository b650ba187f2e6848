package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/veilor/veilor-os/internal/image/imagetest"
)

// badRegistry is a registry in front of which something goes wrong.
type badRegistry struct {
	mu       sync.Mutex
	received map[string]int // uploads of blobs that arrived whole, by digest
	// cut says whether to drop the connection of an upload in the middle.
	cut func(uploads int) bool
	// answer, if set, changes what is answered.
	answer  func(r *http.Request, status int, h http.Header, body []byte) (int, []byte)
	uploads int
	inner   http.Handler
}

func (b *badRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPatch {
		b.mu.Lock()
		b.uploads++
		cut := b.cut != nil && b.cut(b.uploads)
		b.mu.Unlock()
		if cut {
			_, _ = io.CopyN(io.Discard, r.Body, 10)
			panic(http.ErrAbortHandler) // net/http drops the connection
		}
	}
	rec := httptest.NewRecorder()
	b.inner.ServeHTTP(rec, r)
	if d := r.URL.Query().Get("digest"); r.Method == http.MethodPut && d != "" && rec.Code < 300 {
		b.mu.Lock()
		b.received[d]++
		b.mu.Unlock()
	}
	status, body := rec.Code, rec.Body.Bytes()
	if b.answer != nil {
		status, body = b.answer(r, status, rec.Header(), body)
	}
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// serve starts b and returns the repository to push to.
func (b *badRegistry) serve(t *testing.T) string {
	t.Helper()
	b.received = map[string]int{}
	b.inner = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://") + "/veilor/veilor-os"
}

func quickRetries(t *testing.T) {
	t.Helper()
	old := retries
	retries = remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 4}
	t.Cleanup(func() { retries = old })
}

func built(t *testing.T) Options {
	t.Helper()
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	build(t, o)
	return o
}

// A connection that drops in the middle of a blob is tried again by itself.
func TestPushDrops(t *testing.T) {
	quickRetries(t)
	o := built(t)
	b := &badRegistry{cut: func(n int) bool { return n%2 == 1 && n < 8 }}
	ref := b.serve(t) + ":44"
	var last, total int64
	digest, err := Push(t.Context(), o.Out, ref, func(done, of int64) { last, total = done, of })
	if err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	img, err := Open(t.Context(), ref, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d != digest {
		t.Errorf("%s there, %s pushed, %v", d, digest, err)
	}
}

// A push that failed goes on where it stopped.
func TestPushResumes(t *testing.T) {
	quickRetries(t)
	o := built(t)
	b := &badRegistry{cut: func(n int) bool { return n > 3 }}
	ref := b.serve(t) + ":44"
	if _, err := Push(t.Context(), o.Out, ref, nil); err == nil || !strings.Contains(err.Error(), "what was sent stays there: run it again") {
		t.Fatalf("got %v", err)
	}
	if len(b.received) == 0 {
		t.Fatal("nothing arrived before the connection was lost")
	}
	if _, err := Open(t.Context(), ref, ""); err == nil {
		t.Error("an image that is not whole has a tag")
	}
	b.mu.Lock()
	b.cut = nil
	b.mu.Unlock()
	if _, err := Push(t.Context(), o.Out, ref, nil); err != nil {
		t.Fatal(err)
	}
	for d, n := range b.received {
		if n != 1 {
			t.Errorf("%s was sent %d times", d, n)
		}
	}
}

// A registry that keeps something else than it was given is found by the push.
func TestPushLies(t *testing.T) {
	quickRetries(t)
	o := built(t)
	img, err := o.Out.Open("")
	if err != nil {
		t.Fatal(err)
	}
	all, err := layersOf(img)
	if err != nil {
		t.Fatal(err)
	}
	base, ours := all[0], all[len(all)-1]
	is := func(r *http.Request, method, part string) bool {
		return r.Method == method && strings.Contains(r.URL.Path, part)
	}
	for name, c := range map[string]struct {
		answer func(r *http.Request, status int, h http.Header, body []byte) (int, []byte)
		want   string
	}{
		"another manifest under the tag": {func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
			if is(r, http.MethodGet, "/manifests/44") {
				return status, append(body, '\n')
			}
			return status, body
		}, "somebody else pushed there at the same time, or the registry is broken"},
		"another manifest under the digest": {func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
			if is(r, http.MethodGet, "/manifests/sha256:") {
				return status, append(body, '\n')
			}
			return status, body
		}, "digest"},
		"a changed layer": {func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
			if is(r, http.MethodGet, ours.Digest) {
				body = bytes.Clone(body)
				body[len(body)/2] ^= 1
			}
			return status, body
		}, "the registry does not keep what it is given"},
		"a shorter layer of the base": {func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
			if is(r, http.MethodHead, base.Digest) && status == http.StatusOK {
				h.Set("Content-Length", "3")
			}
			return status, body
		}, "has 3 bytes there and"},
		"has every blob already": {func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
			if is(r, http.MethodHead, "/blobs/") {
				h.Set("Content-Length", "3")
				return http.StatusOK, nil
			}
			return status, body
		}, "BLOB_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &badRegistry{answer: c.answer}
			_, err := Push(t.Context(), o.Out, b.serve(t)+":44", nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
}

// What was damaged on the disk is not sent.
func TestPushDamaged(t *testing.T) {
	o := built(t)
	img, err := o.Out.Open("")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ourLayers(img)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.Out.Path, "blobs", strings.Replace(ours[0].Digest, ":", "/", 1))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	b := &badRegistry{}
	_, err = Push(t.Context(), o.Out, b.serve(t)+":44", nil)
	if err == nil || !strings.Contains(err.Error(), "build the image again") || b.uploads > 0 {
		t.Errorf("%d uploads, %v", b.uploads, err)
	}
}

func TestPushRefuses(t *testing.T) {
	o := built(t)
	for ref, want := range map[string]string{
		"veilor-os:44":                 "it names no registry; write for example ghcr.io/veilor/veilor-os:44",
		"veilor/veilor-os:44":          "it names no registry",
		"127.0.0.1:1/Veilor:44":        "write for example ghcr.io/veilor/veilor-os:44",
		"127.0.0.1:1/v:a b":            "write for example ghcr.io/veilor/veilor-os:44",
		"127.0.0.1:1/v@sha256:" + zero: "its digest is sha256:",
	} {
		if _, err := Push(t.Context(), o.Out, ref, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", ref, err, want)
		}
	}
}

var zero = strings.Repeat("0", 64)

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"ghcr.io/veilor/veilor-os:44", "oci:a:b", "127.0.0.1:5000/x@sha256:" + zero, "localhost/x", "a.b/", "://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parseRef(s); err == nil {
			if again, err := parseRef(r.Name()); err != nil || again.Name() != r.Name() {
				t.Errorf("%q is %q, which is %v, %v", s, r.Name(), again, err)
			}
		}
		if d, err := ParseDir(s); err == nil {
			if again, err := ParseDir(d.String()); err != nil || (d.Tag != "" && again != d) {
				t.Errorf("%q is %+v, which is %+v, %v", s, d, again, err)
			}
		}
	})
}

// An OCI directory is somebody else's text as well.
func FuzzIndexJSON(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:` + zero + `","annotations":{"org.opencontainers.image.ref.name":"v1"},"platform":{"architecture":"amd64","os":"linux"}}]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		for name, text := range map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": data} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if img, err := (Dir{Path: dir}).Open("amd64"); err == nil {
			t.Errorf("%s: an image without blobs was opened: %v", data, img)
		}
		if json.Valid(data) {
			_, _ = Dir{Path: dir, Tag: "v1"}.Open("")
		}
	})
}
