package recipe

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

var (
	digestA = "sha256:" + strings.Repeat("a1", 32)
	digestB = "sha256:" + strings.Repeat("b2", 32)
	locked  = Lock{
		Image: "ghcr.io/secureblue/kinoite-main-hardened", Release: 44, Digest: digestA,
		Platforms: map[string]string{"amd64": digestB, "arm64": digestA}, Date: "2026-11-23",
	}
)

func TestLock(t *testing.T) {
	got, err := ParseLock("base.lock", locked.Text())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&locked, got); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	later := locked
	later.Date = "2026-11-24"
	if !got.Same(&later) {
		t.Error("another day is another image")
	}
	if later.Digest = digestB; got.Same(&later) {
		t.Error("another digest is the same image")
	}
	for _, c := range []struct {
		digest, arch string
		want         bool
	}{{digestA, "amd64", true}, {digestB, "amd64", true}, {digestB, "arm64", false}, {"", "riscv64", false}, {"sha256:0", "amd64", false}} {
		if c.digest != "" && locked.Pins(c.digest, c.arch) != c.want {
			t.Errorf("%+v", c)
		}
	}
	if _, err := LoadLock(fstest.MapFS{}); !errors.Is(err, ErrNoLock) || !strings.Contains(err.Error(), "veilor-forge image lock") {
		t.Errorf("without a lock: %v", err)
	}
	if _, err := LoadLock(fstest.MapFS{LockPath: {Data: locked.Text()}}); err != nil {
		t.Error(err)
	}
}

func TestParseLockRefuses(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"tag":          {"hardened\n", "hardened:44\n", `base.lock:3: image: "ghcr.io/secureblue/kinoite-main-hardened:44" is no repository`},
		"no registry":  {"ghcr.io/secureblue/", "", "is no repository"},
		"release":      {"release: 44", "release: 0", "release: 0 is no release"},
		"short digest": {"digest: sha256:a1", "digest: sha256:", "is no sha256:"},
		"other hash":   {"digest: sha256:", "digest: sha512:", "is no sha256:"},
		"platform":     {"amd64: sha256:", "amd64: ", "no architecture with its digest"},
		"date":         {"2026-11-23", "23.11.2026", "is no day"},
		"unknown key":  {"release:", "tag: x\nrelease:", `unknown field "tag"`},
		"huge":         {"release: 44", "release: 44 #" + strings.Repeat("x", strictyaml.MaxSize), "such a file has at most"},
	} {
		text := strings.Replace(string(locked.Text()), c.old, c.new, 1)
		_, err := ParseLock("base.lock", []byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, new(strictyaml.Problem)) {
			t.Errorf("%s: got %v\nwant …%s…", name, err, c.want)
		}
	}
}

func TestPin(t *testing.T) {
	text, err := os.ReadFile(recipeFile)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := Pin("recipe.yml", text, &locked)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Replace(text, []byte("image-version: 44\n"), []byte(`image-version: "44@`+digestA+"\"\n"), 1)
	if d := cmp.Diff(string(want), string(pinned)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	other := locked
	other.Release = 45
	if _, err := Pin("recipe.yml", text, &other); err == nil || !strings.Contains(err.Error(), "the lock is of ghcr.io/secureblue/kinoite-main-hardened:45") {
		t.Errorf("of another release: %v", err)
	}
	twice := append(bytes.Clone(text), "#\nimage-version: 44\n"...)
	if _, err := Pin("recipe.yml", twice, &locked); err == nil {
		t.Error("pinned a recipe with two versions")
	}
}

func TestLockAgrees(t *testing.T) {
	r, err := Load(recipeFile)
	if err != nil {
		t.Fatal(err)
	}
	s, err := site.Load(siteFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := locked.Agree(r, s); err != nil {
		t.Error(err)
	}
	old := locked
	old.Release--
	if err := old.Agree(r, s); err == nil || !strings.Contains(err.Error(), "image-version") || !strings.Contains(err.Error(), "os.release") {
		t.Errorf("the lock of another release: %v", err)
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add(locked.Text())
	f.Add([]byte("image: a/b\nrelease: 1\ndigest: " + digestA + "\ndate: \"2026-01-01\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLock("base.lock", data)
		if err != nil {
			return
		}
		again, err := ParseLock("base.lock", l.Text())
		if err != nil {
			t.Fatalf("what was read is not written readably: %v\n%s", err, l.Text())
		}
		if again.Date != l.Date || !again.Same(l) {
			t.Errorf("%+v became %+v", l, again)
		}
	})
}
