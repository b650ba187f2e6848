package check

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/trust"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// repository is what rules read of the real checkout. Large pictures that no rule
// looks at are left out, because each of the many tests draws them anew.
func repository(t testing.TB) fstest.MapFS {
	t.Helper()
	root := filepath.Join("..", "..")
	tree := fstest.MapFS{}
	for _, dir := range []string{"overlay", "bluebuild/recipes", "bluebuild/base.lock", "site", "kickstart", "cmd/veilor", "cmd/veilor-ygg", workflowsDir} {
		if _, err := os.Stat(filepath.Join(root, dir)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := filepath.WalkDir(filepath.Join(root, dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.Contains(p, "wallpapers") {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			f := &fstest.MapFile{Mode: info.Mode()}
			if d.Type() == fs.ModeSymlink {
				target, err := os.Readlink(p)
				if err != nil {
					return err
				}
				f.Data = []byte(target)
			} else if f.Data, err = os.ReadFile(p); err != nil {
				return err
			}
			name, err := filepath.Rel(root, p)
			tree[filepath.ToSlash(name)] = f
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// world is a checkout and a site that a test breaks.
type world struct {
	t     testing.TB
	files fstest.MapFS
	site  *site.Site
	image Image
	// loaded changes what was made of them.
	loaded func(*Subject)
}

func newWorld(t testing.TB, files fstest.MapFS) *world {
	t.Helper()
	s, err := site.Parse("site/veilor.yaml", files["site/veilor.yaml"].Data)
	if err != nil {
		t.Fatal(err)
	}
	copied := fstest.MapFS{}
	for name, f := range files {
		c := *f
		copied[name] = &c
	}
	return &world{t: t, files: copied, site: s}
}

// edit replaces a text in a file; it must be there.
func (w *world) edit(name, old, new string) {
	w.t.Helper()
	f := w.files[name]
	if f == nil || !strings.Contains(string(f.Data), old) {
		w.t.Fatalf("%s does not contain %q: the test is older than the file", name, old)
	}
	f.Data = []byte(strings.ReplaceAll(string(f.Data), old, new))
}

func (w *world) put(name, text string) {
	w.files[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
}

func (w *world) remove(names ...string) {
	w.t.Helper()
	for _, n := range names {
		if w.files[n] == nil {
			w.t.Fatalf("there is no %s: the test is older", n)
		}
		delete(w.files, n)
	}
}

func (w *world) load() *Subject {
	w.t.Helper()
	s, err := Load(w.files, w.site, now)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Image = w.image
	if w.loaded != nil {
		w.loaded(s)
	}
	return s
}

func rule(t testing.TB, id string) Rule {
	t.Helper()
	for _, r := range Rules() {
		if r.ID == id {
			return r
		}
	}
	t.Fatalf("there is no rule %s", id)
	return Rule{}
}

// fakeImage is an image with the given files, of which "-> TARGET" is a link; setuid
// are those with the bit.
type fakeImage struct {
	files  map[string]string
	modes  map[string]fs.FileMode
	setuid []string
}

func (f fakeImage) Lstat(p string) (mode fs.FileMode, link string, sum [sha256.Size]byte, ok bool) {
	text, ok := f.files[p]
	if !ok {
		return 0, "", sum, false
	}
	if link, ok := strings.CutPrefix(text, "-> "); ok {
		return fs.ModeSymlink | 0o777, link, sum, true
	}
	return f.modes[p], "", sha256.Sum256([]byte(text)), true
}

func (f fakeImage) Has(p string) bool {
	for name := range f.files {
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

func (f fakeImage) Read(_ context.Context, p string) ([]byte, error) {
	if text, ok := f.files[p]; ok {
		return []byte(text), nil
	}
	return nil, fs.ErrNotExist
}

func (f fakeImage) Setuid() []string { return f.setuid }

// The repository itself keeps every rule that can be kept.
func TestRepository(t *testing.T) {
	w := newWorld(t, repository(t))
	results, err := Run(t.Context(), w.load())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		switch r.Status {
		case Failed:
			t.Errorf("%s: %s", r.ID, strings.Join(r.Problems, "\n"))
		case NotChecked:
			t.Logf("NOT CHECKED %s: %s", r.ID, strings.Join(r.Problems, "; "))
		}
	}
	var out strings.Builder
	if err := Write(&out, results); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "\n"); got < len(results)+1 {
		t.Errorf("%d lines for %d rules:\n%s", got, len(results), &out)
	}
}

// Nothing is wrong with an image that is as it should be, also without what a site
// lacks yet.
func TestBuiltImage(t *testing.T) {
	for _, missing := range []error{nil, errors.New("keys")} {
		w := newWorld(t, repository(t))
		inBuilt(func(fakeImage) {})(w)
		s := w.load()
		s.Missing = missing
		want := OK
		if missing != nil {
			want = NotChecked
		}
		for id, want := range map[string]Status{"image-overlay": want, "os-release": OK, "updates": OK, "tailscale": OK, "policy": OK} {
			if res := rule(t, id).run(t.Context(), s); res.Status != want {
				t.Errorf("%s: %s, want %s: %q", id, res.Status, want, res.Problems)
			}
		}
	}
}

// Every rule fails when what it is about is broken.
func TestRulesFail(t *testing.T) {
	files := repository(t)
	for _, r := range Rules() {
		if !slices.ContainsFunc(breaks, func(b breakage) bool { return b.rule == r.ID }) {
			t.Errorf("%s has no fixture that breaks it", r.ID)
		}
	}
	for _, b := range breaks {
		t.Run(b.rule+"/"+b.name, func(t *testing.T) {
			r := rule(t, b.rule)
			w := newWorld(t, files)
			b.do(w)
			res := r.run(t.Context(), w.load())
			all := strings.Join(res.Problems, "\n")
			// Another of the rule's findings may have come without the program.
			if !strings.Contains(all, b.want) && slices.ContainsFunc(res.Problems, func(p string) bool {
				return strings.Contains(p, "is not installed") || strings.Contains(p, "asks for root") || strings.Contains(p, "older than")
			}) {
				t.Skipf("SKIPPED, the rule was NOT tried: %s", strings.Join(res.Problems, "; "))
			}
			want := Failed
			if r.Pending != "" {
				want = NotYet
			}
			if res.Status != want {
				t.Fatalf("%s, want %s: %s", res.Status, want, strings.Join(res.Problems, "\n"))
			}
			if !strings.Contains(all, b.want) {
				t.Errorf("got  %s\nwant …%s…", all, b.want)
			}
		})
	}
}

// A rule whose tool is missing says so, and nothing else about what it found.
func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	old := adminDirs
	adminDirs = nil
	t.Cleanup(func() { adminDirs = old })
	s := newWorld(t, repository(t)).load()
	for _, id := range []string{"sudoers", "firewalld", "unit-exposure", "usbguard-rules", "shell", "desktop-files"} {
		res := rule(t, id).run(t.Context(), s)
		if res.Status != NotChecked || !strings.Contains(strings.Join(res.Problems, " "), "is not installed (Debian's package ") {
			t.Errorf("%s: %s: %q", id, res.Status, res.Problems)
		}
	}
	// In a directory of tools they are found before PATH is asked.
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "usr/sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/sbin/visudo"), []byte("#!/bin/sh\necho \"$2: no\"\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Tools.Dirs = []string{dir}
	if res := rule(t, "sudoers").run(t.Context(), s); res.Status != Failed || !strings.Contains(strings.Join(res.Problems, " "), "etc/sudoers.d/50-veilor: no") {
		t.Errorf("%s: %q", res.Status, res.Problems)
	}
}

// What a broken file makes impossible to check is not called ok.
func TestBrokenInputs(t *testing.T) {
	w := newWorld(t, repository(t))
	w.put(recipePath, "modules: 3\n")
	w.put("overlay/undo.yaml", "undo: 3\n")
	w.put("overlay/usr/share/veilor/x.tmpl", "{{ .Nothing }}")
	results, err := Run(t.Context(), w.load())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Status{}
	for _, r := range results {
		got[r.ID] = r.Status
	}
	for id, want := range map[string]Status{
		"recipe": Failed, "undo": Failed, "overlay": Failed,
		"sudo": NotChecked, "policy": NotChecked, "trivalent": NotChecked, "shell": NotChecked, "recipe-site": NotChecked, "tiers": OK,
	} {
		if got[id] != want {
			t.Errorf("%s: %s, want %s", id, got[id], want)
		}
	}
}

func TestRuleTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules() {
		if seen[r.ID] {
			t.Errorf("%s is there twice", r.ID)
		}
		seen[r.ID] = true
		for what, text := range map[string]string{"what": r.What, "why": r.Why, "source": r.Source, "fix": r.Fix} {
			if text == "" || strings.HasSuffix(text, ".") {
				t.Errorf("%s: %s is %q", r.ID, what, text)
			}
		}
	}
}

// Stand-ins fill exactly what is missing, and the given site is left alone.
func TestCompleted(t *testing.T) {
	w := newWorld(t, repository(t))
	pair, err := trust.Create("veilor", now)
	if err != nil {
		t.Fatal(err)
	}
	w.site.Authority.Data = pair.Certificate
	before, err := site.Parse("site/veilor.yaml", w.files["site/veilor.yaml"].Data)
	if err != nil {
		t.Fatal(err)
	}
	before.Authority.Data = pair.Certificate
	c, err := completed(w.site, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Complete(); err != nil {
		t.Error(err)
	}
	if string(c.Authority.Data) != string(pair.Certificate) {
		t.Error("the authority was replaced")
	}
	if d := cmp.Diff(before, w.site, cmp.Exporter(func(reflect.Type) bool { return true })); d != "" {
		t.Errorf("the given site was changed: %s", d)
	}
}

func FuzzParseCeilings(f *testing.F) {
	f.Add([]byte("ceilings:\n  - unit: a.service\n    exposure: 4.1\n    why: it has to talk to bootc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseCeilings("c", data)
		for _, c := range all {
			if err == nil && (c.Exposure <= maxExposure || c.Why == "") {
				t.Errorf("%+v", c)
			}
		}
	})
}

func FuzzDesktopGroup(f *testing.F) {
	f.Add("[A]\nk=v\n# c\n[B]\nk2 = v2;\n", "B")
	f.Fuzz(func(t *testing.T, text, group string) {
		for _, kv := range desktopGroup(text, group) {
			if strings.Contains(kv[0]+kv[1], "\n") {
				t.Errorf("%q", kv)
			}
		}
	})
}
