package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestTwoClones builds programs, overlay and image in two clean clones of what is
// committed: other directories, users, umasks, zones, and Go caches of their own.
// It compiles everything four times, so it runs only if asked for:
//
//	VEILOR_TWO_CLONES=oci:DIR VEILOR_SITE=FILE go test -run TestTwoClones -timeout 60m ./internal/image
//
// where DIR is the lab's base, which everybody may read, and FILE a site whose keys
// are made, such as the ones that a run of the demo leaves in its cache.
func TestTwoClones(t *testing.T) {
	base, siteFile := os.Getenv("VEILOR_TWO_CLONES"), os.Getenv("VEILOR_SITE")
	if base == "" || siteFile == "" {
		t.Skip("NOT TESTED: it compiles everything four times; ask for it with VEILOR_TWO_CLONES and VEILOR_SITE")
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: building as another user needs root")
	}
	modules := output(t, "", nil, "go", "env", "GOMODCACHE")
	toolchain := output(t, "", nil, "go", "env", "GOROOT")
	type outcome struct {
		Image    Result
		Overlay  map[string]string
		Overlay2 map[string]string // arm64
	}
	var got []outcome
	for _, c := range []struct {
		dir   string
		umask string
		user  string // as setpriv takes it; empty is root
		env   []string
	}{
		{"one", "022", "", []string{"TZ=UTC", "LC_ALL=C"}},
		{"another/and a longer one", "077", "65534", []string{"TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "GOFLAGS=-p=1", "GOAMD64=v3"}},
	} {
		parent, err := os.MkdirTemp("", "veilor-clone-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(parent); err != nil {
				t.Error(err)
			}
		})
		dir := filepath.Join(parent, c.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		src := filepath.Join(dir, "src")
		output(t, "", nil, "git", "clone", "-q", "--no-hardlinks", filepath.Join("..", ".."), src)
		// The other user may read neither root's site nor its modules: the first is
		// copied, the second mounted where it can be reached.
		if err := os.CopyFS(filepath.Join(dir, "site"), os.DirFS(filepath.Dir(siteFile))); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"modules", "home", "base"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if c.user != "" {
			output(t, "", nil, "chown", "-R", c.user+":"+c.user, parent)
		}
		script := `set -e
mount --make-rprivate /
mount --bind "$MODULES" "$DIR/modules"
mount --bind "$BASE" "$DIR/base"
umask ` + c.umask + `
exec ${SETPRIV} sh -c '
cd "$DIR/src"
"$GO" build -o "$DIR/forge" ./cmd/veilor-forge
"$DIR/forge" overlay render --site "$DIR/site/$SITE" --out "$DIR/amd64" --cache "$DIR/cache" >&2
"$DIR/forge" overlay render --site "$DIR/site/$SITE" --out "$DIR/arm64" --arch arm64 --cache "$DIR/cache" >&2
exec "$DIR/forge" image build --site "$DIR/site/$SITE" --base "oci:$DIR/base" --out "oci:$DIR/image" --stand-ins lab/base/stand-ins.yaml --version 44.clone.1 --cache "$DIR/cache" --json'
`
		setpriv := ""
		if c.user != "" {
			setpriv = "setpriv --reuid=" + c.user + " --regid=" + c.user + " --clear-groups"
		}
		env := append(os.Environ(), c.env...)
		env = append(env,
			"DIR="+dir, "MODULES="+modules, "BASE="+strings.TrimPrefix(base, "oci:"), "SITE="+filepath.Base(siteFile), "SETPRIV="+setpriv,
			"HOME="+filepath.Join(dir, "home"), "GOMODCACHE="+filepath.Join(dir, "modules"), "GOCACHE="+filepath.Join(dir, "gocache"), "XDG_CACHE_HOME=",
			"GO="+filepath.Join(toolchain, "bin", "go"), "GOPROXY=off", "PATH="+filepath.Join(toolchain, "bin")+":"+os.Getenv("PATH"))
		answer := output(t, "", env, "sh", "-c", script)
		var o outcome
		if err := json.Unmarshal([]byte(answer), &o.Image); err != nil {
			t.Fatal(err)
		}
		o.Overlay, o.Overlay2 = sums(t, filepath.Join(dir, "amd64")), sums(t, filepath.Join(dir, "arm64"))
		got = append(got, o)
	}
	a, b := got[0], got[1]
	if a.Image.Digest == "" || a.Image.Digest != b.Image.Digest {
		t.Errorf("digests %s and %s", a.Image.Digest, b.Image.Digest)
	}
	t.Logf("%s, twice; %d files rendered for amd64 and %d for arm64", a.Image.Digest, len(a.Overlay), len(a.Overlay2))
	for _, pair := range [][2]map[string]string{{a.Overlay, b.Overlay}, {a.Overlay2, b.Overlay2}} {
		if len(pair[0]) == 0 || len(pair[0]) != len(pair[1]) {
			t.Errorf("%d and %d files", len(pair[0]), len(pair[1]))
		}
		for p, sum := range pair[0] {
			if pair[1][p] != sum {
				t.Errorf("%s: %s and %s", p, sum, pair[1][p])
			}
		}
	}
}

// output runs a program in a mount namespace of its own.
func output(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// sums are the modes and hashes of all files below dir.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content []byte
		switch {
		case info.Mode().IsRegular():
			content, err = os.ReadFile(p)
		case info.Mode()&os.ModeSymlink != 0:
			var target string
			target, err = os.Readlink(p)
			content = []byte(target)
		}
		all[rel] = info.Mode().String() + " " + sha(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
