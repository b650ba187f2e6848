package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/lab/cache"
)

func good() Spec {
	return Spec{Tools: "/t/tools-1/root", Imgref: "ostree-image-signed:docker://x/y:1", Digest: "sha256:1", Passphrase: "p", Hostname: "h"}
}

func TestBadSpecWritesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"too small":       {func(s *Spec) { s.Size = MinSize - 1 }, "the system needs"},
		"tiny":            {func(s *Spec) { s.Size = 1 }, "the disk has 0 MiB"},
		"no passphrase":   {func(s *Spec) { s.Passphrase = "" }, "passphrase is empty"},
		"two lines":       {func(s *Spec) { s.Passphrase = "secret\nsecret" }, "line break"},
		"no name":         {func(s *Spec) { s.Hostname = "" }, "no host name"},
		"hash with colon": {func(s *Spec) { s.RootHash = "a:b" }, "colon"},
		"no digest":       {func(s *Spec) { s.Digest = "" }, "digest is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			tc.change(&s)
			dir := filepath.Join(t.TempDir(), "cache")
			_, err := Install(t.Context(), &cache.Cache{Dir: dir}, s, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v tells the passphrase", err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Error("something was written")
			}
		})
	}
	s := good()
	s.Size = 100 * mib
	var small *TooSmallError
	if _, err := Install(t.Context(), &cache.Cache{}, s, io.Discard); !errors.As(err, &small) || small.Need != MinSize {
		t.Errorf("error %v, want TooSmallError that needs %d", err, int64(MinSize))
	}
}

func TestEveryFieldIsAnInput(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bootc")
	if err := os.WriteFile(bin, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for name, change := range map[string]func(*Spec){
		"nothing":    func(*Spec) {},
		"tools":      func(s *Spec) { s.Tools = "/t/tools-2/root" },
		"imgref":     func(s *Spec) { s.Imgref += "x" },
		"digest":     func(s *Spec) { s.Digest += "x" },
		"passphrase": func(s *Spec) { s.Passphrase += "x" },
		"hash":       func(s *Spec) { s.RootHash += "x" },
		"hostname":   func(s *Spec) { s.Hostname += "x" },
		"kargs":      func(s *Spec) { s.Kargs = []string{"quiet"} },
		"size":       func(s *Spec) { s.Size = MinSize + mib },
		"config":     func(s *Spec) { s.Config = t.TempDir() },
	} {
		s := good()
		s.Bootc = bin
		change(&s)
		sum, err := s.inputs().Sum()
		if err != nil {
			t.Fatal(err)
		}
		if other, clash := sums[sum]; clash {
			t.Errorf("%s does not change the disk's key (as %s)", name, other)
		}
		sums[sum] = name
	}
}

func TestImageKargs(t *testing.T) {
	image := fstest.MapFS{
		kargsDir + "/20-b.toml":      {Data: []byte("kargs = [\"b=1\", \"c\"]\n")},
		kargsDir + "/10-a.toml":      {Data: []byte("kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]\n")},
		kargsDir + "/30-arm.toml":    {Data: []byte("kargs = [\"arm\"]\nmatch-architectures = [\"aarch64\"]\n")},
		kargsDir + "/README":         {Data: []byte("not TOML")},
		"usr/lib/bootc/other.toml":   {Data: []byte("kargs = [\"no\"]")},
		kargsDir + "/sub/40-no.toml": {Data: []byte("kargs = [\"no\"]")},
	}
	got, err := imageKargs(image, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b=1", "c"}, got); diff != "" {
		t.Errorf("kernel arguments (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"kargs = \"a\"", "karg = [\"a\"]", "kargs = [\"a\\nb\"]", "kargs = [\"\"]", "{"} {
		if got, err := parseKargs([]byte(bad), "amd64"); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

func FuzzParseKargs(f *testing.F) {
	f.Add([]byte("kargs = [\"a=b\"]\nmatch-architectures = [\"x86_64\"]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		kargs, err := parseKargs(b, "amd64")
		if err != nil {
			return
		}
		for _, k := range kargs {
			if k == "" || strings.ContainsAny(k, "\n\x00") {
				t.Errorf("accepted %q", k)
			}
		}
	})
}

func TestCheckEntry(t *testing.T) {
	boot := fstest.MapFS{"loader.0/entries/ostree-1.conf": {Data: []byte("title x\noptions root=/dev/a rw ostree=/x\nlinux /k\n")}}
	boot["loader/entries/ostree-1.conf"] = boot["loader.0/entries/ostree-1.conf"]
	if err := checkEntry(boot, []string{"rw", "root=/dev/a"}); err != nil {
		t.Error(err)
	}
	if err := checkEntry(boot, []string{"quiet"}); err == nil || !strings.Contains(err.Error(), "quiet") {
		t.Errorf("error %v, want one about quiet", err)
	}
	if err := checkEntry(fstest.MapFS{}, nil); err == nil {
		t.Error("no entry was no error")
	}
}

func TestSetPassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(path, []byte("root:*:1:0:99999:7:::\nrooter:*:1::::::\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := setPassword(path, "root", "$6$x$y"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("root:$6$x$y:1:0:99999:7:::\nrooter:*:1::::::\n", string(b)); diff != "" {
		t.Errorf("shadow (-want +got):\n%s", diff)
	}
	if err := setPassword(path, "nobody", "x"); err == nil {
		t.Error("a missing user was no error")
	}
}

func TestClosure(t *testing.T) {
	deps := "linux: loader relocator\nloader: relocator boot\nrelocator: mmap\nother: linux\nboot:\n"
	if diff := cmp.Diff([]string{"linux", "loader", "relocator", "boot", "mmap"}, closure("linux", deps)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

func TestGrubHasNoCommandThatShadowsAFunction(t *testing.T) {
	for _, m := range grubModules {
		if bytes.Contains(grubConfig, []byte("function "+m+" ")) && m != "true" {
			t.Errorf("module %s would shadow the function of that name", m)
		}
	}
}

func TestPlaceKeepsHolesAndBounds(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	part := make([]byte, 3*copyBlock)
	copy(part[copyBlock:], bytes.Repeat([]byte{7}, copyBlock))
	if err := errors.Join(os.WriteFile(from, part, 0o600), truncate(to, 5*copyBlock)); err != nil {
		t.Fatal(err)
	}
	if err := place(t.Context(), from, to, copyBlock, int64(len(part))); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 5*copyBlock)
	copy(want[copyBlock:], part)
	if !bytes.Equal(got, want) {
		t.Error("the partition is not where it should be")
	}
	if err := place(t.Context(), from, to, 0, 1); err == nil {
		t.Error("an image of the wrong length was no error")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := place(cancelled, from, to, 0, int64(len(part))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestUUID(t *testing.T) {
	a, err := newUUID()
	if err != nil || len(a) != 36 || a[14] != '4' || !strings.ContainsRune("89ab", rune(a[19])) {
		t.Errorf("UUID %q, %v", a, err)
	}
}
