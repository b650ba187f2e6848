package signing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/site"
)

func pass(text string) func(string) ([]byte, error) {
	return func(string) ([]byte, error) { return []byte(text), nil }
}

// pair makes a key pair without the files, whose encryption is slow by design.
func pair(t *testing.T) (*Private, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := &Private{key}
	pub, err := k.Public()
	if err != nil {
		t.Fatal(err)
	}
	return k, pub
}

// serve runs a registry on loopback with one image and returns its repository.
func serve(t *testing.T) (repo string, push func(tag string) v1.Hash) {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	repo = strings.TrimPrefix(s.URL, "http://") + "/veilor/veilor-os"
	return repo, func(tag string) v1.Hash {
		img, err := random.Image(64, 1)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(repo + ":" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

const identity = "ghcr.io/veilor/veilor-os"

// trusting is a site with two groups; the first has two keys.
func trusting(ref string, ci1, ci2, release []byte) *site.Site {
	return &site.Site{Image: site.Image{Ref: ref, Signatures: []site.SignatureGroup{
		{Name: "ci", Keys: []site.File{{Data: ci1}, {Data: ci2}}},
		{Name: "release", Keys: []site.File{{Data: release}}},
	}}}
}

func TestSignAndVerify(t *testing.T) {
	ctx := t.Context()
	ci, ciPub := pair(t)
	next, nextPub := pair(t)
	release, releasePub := pair(t)
	stranger, _ := pair(t)
	s := trusting(identity, ciPub, nextPub, releasePub)
	repo, push := serve(t)

	missing := func(tag string) []string {
		t.Helper()
		r, err := Verify(ctx, s, repo+":"+tag)
		if err != nil {
			t.Fatal(err)
		}
		return r.Missing()
	}
	sign := func(tag, id string, want int, keys ...*Private) {
		t.Helper()
		_, n, err := Sign(ctx, repo+":"+tag, id, keys)
		if err != nil {
			t.Fatal(err)
		}
		if n != want {
			t.Errorf("%s: %d new signatures, want %d", tag, n, want)
		}
	}

	digest := push("a")
	both := []string{"ci", "release"}
	if d := cmp.Diff(both, missing("a")); d != "" {
		t.Errorf("unsigned: %s", d)
	}
	sign("a", identity, 1, stranger)
	sign("a", "ghcr.io/veilor/other", 2, ci, release)
	if d := cmp.Diff(both, missing("a")); d != "" {
		t.Errorf("signed by a stranger and for another repository: %s", d)
	}
	sign("a", identity, 1, next)
	sign("a", identity, 0, next)
	if d := cmp.Diff([]string{"release"}, missing("a")); d != "" {
		t.Errorf("signed by one group: %s", d)
	}
	sign("a", identity, 1, next, release)
	if got := missing("a"); got != nil {
		t.Errorf("signed by both groups: %v missing", got)
	}
	r, err := Verify(ctx, s, repo+"@"+digest.String())
	if err != nil {
		t.Fatal(err)
	}
	want := &Report{Image: repo + "@" + digest.String(), Digest: digest.String(), Identity: identity, Groups: []Group{{"ci", 2}, {"release", 1}}}
	if d := cmp.Diff(want, r); d != "" {
		t.Error(d)
	}

	// Signatures of one image are none for another, even under its name.
	other := push("b")
	from, err := name.NewTag(fmt.Sprintf("%s:sha256-%s.sig", repo, digest.Hex))
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.NewTag(fmt.Sprintf("%s:sha256-%s.sig", repo, other.Hex))
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(both, missing("b")); d != "" {
		t.Errorf("replayed signatures: %s", d)
	}
	// Garbage among the signatures is passed over.
	img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer([]byte("x"), layerType), MediaType: layerType, Annotations: map[string]string{annotation: "!"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(from, img); err != nil {
		t.Fatal(err)
	}
	if got := missing("a"); got != nil {
		t.Errorf("with garbage: %v missing", got)
	}
}

func TestGenerateDoesNotOverwrite(t *testing.T) {
	dir := t.TempDir()
	private, public, err := Generate(dir, "ci", nil)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]os.FileMode{private: 0o600, public: 0o644} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	k, err := Load(private, pass(""))
	if err != nil {
		t.Fatalf("an empty passphrase: %v", err)
	}
	pub, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Public(); err != nil || !bytes.Equal(got, pub) {
		t.Errorf("public half: %s, %v, want %s", got, err, pub)
	}
	if err := os.Remove(private); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Generate(dir, "ci", nil); err == nil || !strings.Contains(err.Error(), public+" is there already") {
		t.Errorf("got %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	private, public, err := Generate(dir, "ci", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(private)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct{ file, pass, want string }{
		{filepath.Join(dir, "absent.key"), "secret", "no such file or directory; make a pair with: veilor-forge key generate"},
		{private, "wrong", "opening " + private + ": wrong passphrase"},
		{public, "", "is the public half; give the .key file"},
		{put("empty", ""), "", "is not PEM, or cut short"},
		{put("short", string(data[:len(data)/2])), "secret", "is not PEM, or cut short"},
		{put("other", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "", `holds "CERTIFICATE"`},
	} {
		if _, err := Load(c.file, pass(c.pass)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want …%s…", c.file, err, c.want)
		} else if strings.Contains(err.Error(), c.pass) && c.pass == "wrong" && !strings.Contains(err.Error(), "wrong passphrase") {
			t.Errorf("%s: the error shows the passphrase", c.file)
		}
	}
	failed := errors.New("no terminal")
	if _, err := Load(private, func(string) ([]byte, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	_, pub := pair(t)
	repo, push := serve(t)
	push("a")
	for _, c := range []struct {
		key  []byte
		ref  string
		want string
	}{
		{nil, repo + ":a", "the file is not there; make a pair with"},
		{pub[:40], repo + ":a", "not one PEM public key"},
		{pub, repo + ":none", "finding " + repo + ":none"},
		{pub, "a b", `reading "a b"`},
	} {
		if _, err := Verify(t.Context(), trusting(identity, pub, pub, c.key), c.ref); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want …%s…", err, c.want)
		}
	}
	k, _ := pair(t)
	for _, id := range []string{"", "a b", "ghcr.io/x@sha256:00", "UPPER"} {
		if _, _, err := Sign(t.Context(), repo+":a", id, []*Private{k}); err == nil {
			t.Errorf("signed for %q", id)
		}
	}
}

// The judge is not we but containers' own policy code: skopeo under the policy
// that the image carries.
func TestSkopeoAgrees(t *testing.T) {
	version, err := exec.Command("skopeo", "--version").Output()
	if err != nil {
		t.Skip("NOT CHECKED: no skopeo (apt-get install skopeo)")
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(version), "skopeo version %d.%d", &major, &minor); err != nil || major == 1 && minor < 17 {
		t.Skipf("NOT CHECKED: %s; keyPaths needs 1.17 (Debian 13 has 1.18)", bytes.TrimSpace(version))
	}
	ctx, dir := t.Context(), t.TempDir()
	ci, ciPub := pair(t)
	release, releasePub := pair(t)
	repo, push := serve(t)
	push("a")
	_, nextPub := pair(t)
	s := trusting(repo, nextPub, ciPub, releasePub)
	for _, g := range s.Image.Signatures {
		for i, k := range g.Keys {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(overlay.KeyPath(g.Name, i+1))), k.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	policy := filepath.Join(dir, "policy.json")
	text := bytes.ReplaceAll(overlay.Policy(s), []byte("/usr/share/pki/containers"), []byte(dir))
	if err := os.WriteFile(policy, text, 0o644); err != nil {
		t.Fatal(err)
	}
	registries := filepath.Join(dir, "registries.d")
	if err := os.MkdirAll(registries, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(registries, "veilor.yaml"), []byte("docker:\n  "+repo+":\n    use-sigstore-attachments: true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	pull := func(n int) (string, error) {
		cmd := exec.CommandContext(ctx, "skopeo", "--policy", policy, "--registries.d", registries,
			"copy", "--src-tls-verify=false", "--remove-signatures", "docker://"+repo+":a", fmt.Sprintf("dir:%s/%d", dir, n))
		cmd.Env = append(os.Environ(), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	steps := []struct {
		keys []*Private
		ok   bool
	}{{nil, false}, {[]*Private{ci}, false}, {[]*Private{release}, true}}
	for i, step := range steps {
		if _, _, err := Sign(ctx, repo+":a", repo, step.keys); err != nil {
			t.Fatal(err)
		}
		out, err := pull(i)
		if (err == nil) != step.ok {
			t.Errorf("step %d: %v\n%s", i, err, out)
		}
	}
}

func FuzzMatches(f *testing.F) {
	h := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	good, err := json.Marshal(map[string]any{"critical": map[string]any{
		"identity": map[string]string{"docker-reference": identity},
		"image":    map[string]string{"docker-manifest-digest": h.String()},
		"type":     "cosign container image signature"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, text []byte) {
		if matches(text, h, identity) && matches(text, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("1", 64)}, identity) {
			t.Errorf("%q is about two digests", text)
		}
	})
}
