package image

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func digestOf(t *testing.T, d interface{ Digest() (v1.Hash, error) }) v1.Hash {
	t.Helper()
	h, err := d.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestResolve(t *testing.T) {
	var b badRegistry
	repo := b.serve(t)
	tag := func(s string) name.Tag {
		n, err := name.NewTag(repo + ":" + s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	two, err := random.Image(20, 1)
	if err != nil {
		t.Fatal(err)
	}
	var index v1.ImageIndex = empty.Index
	for _, a := range []mutate.IndexAddendum{
		{Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		{Add: two, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		{Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
	} {
		index = mutate.AppendManifests(index, a)
	}
	for what, err := range map[string]error{
		"an image":       remote.Write(tag("one"), one),
		"an index":       remote.WriteIndex(tag("44"), index),
		"an empty index": remote.WriteIndex(tag("none"), empty.Index),
	} {
		if err != nil {
			t.Fatalf("pushing %s: %v", what, err)
		}
	}

	got, err := Resolve(t.Context(), repo+":one")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Resolved{Digest: digestOf(t, one)}, got); d != "" {
		t.Errorf("one image (-want +got):\n%s", d)
	}
	if got, err = Resolve(t.Context(), repo+":44"); err != nil {
		t.Fatal(err)
	}
	want := Resolved{Digest: digestOf(t, index), Platforms: map[string]v1.Hash{"amd64": digestOf(t, one), "arm64": digestOf(t, two)}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("an index (-want +got):\n%s", d)
	}
	for ref, want := range map[string]string{
		repo + ":none":    "no image for Linux in it",
		repo + ":missing": "asking for the digest of",
		"veilor-os:44":    "it names no registry",
	} {
		if _, err := Resolve(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v\nwant …%s…", ref, err, want)
		}
	}

	// What a registry says of what it sends does not matter.
	b.answer = func(r *http.Request, status int, h http.Header, body []byte) (int, []byte) {
		h.Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
		return status, body
	}
	if got, err := Resolve(t.Context(), repo+":one"); err != nil || got.Digest != digestOf(t, one) {
		t.Errorf("a lie about the digest: %v, %v", got, err)
	}
}
