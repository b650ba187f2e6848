package weight

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/internal/image/imagetest"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/site"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// newest is what a run of the lab left in its cache; empty if nothing is there.
func newest(t *testing.T, pattern string) string {
	t.Helper()
	dir := os.Getenv(gate.CacheVar)
	if dir == "" {
		return ""
	}
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b string) int { return modified(t, a) - modified(t, b) })
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

func modified(t *testing.T, p string) int {
	info, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.ModTime().Unix())
}

// TestWeight prints the table and fails if an update weighs more than it may.
func TestWeight(t *testing.T) {
	scratch := t.TempDir()
	o := options(t, scratch)
	var clients []Client
	if _, err := exec.LookPath("skopeo"); err == nil {
		clients = append(clients, &Skopeo{Dir: filepath.Join(scratch, "skopeo"), Log: t.Output()})
	}

	// ostree's importer takes only a real base.
	tools, program, base := newest(t, "tools-*/root"), newest(t, "bootc-*/bootc"), newest(t, "base-*/oci")
	switch {
	case os.Geteuid() != 0:
		t.Log("ostree's importer was NOT MEASURED: it needs root")
	case tools == "" || program == "" || base == "":
		t.Log("ostree's importer was NOT MEASURED: VEILOR_LAB_CACHE names no cache with the lab's tools and base; make one with: make demo")
	default:
		o.Base = image.Dir{Path: base}
		i, err := NewImporter(t.Context(), tools, program, filepath.Join(scratch, "ostree"), t.Output())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		}()
		clients = append(clients, i)
	}

	source := filepath.Join(scratch, "source")
	if err := copyFiles(filepath.Join("..", "..", "overlay"), source); err != nil {
		t.Fatal(err)
	}
	// The real overlay on a base of any kind: what it undoes is not our subject.
	if err := os.WriteFile(filepath.Join(source, overlay.UndoFile), imagetest.Undo, 0o644); err != nil {
		t.Fatal(err)
	}
	wallpaper := largest(t, source, "usr/share/wallpapers", "usr/share/backgrounds", "usr/share/plymouth")
	if wallpaper == "" { // none yet: a photograph of the usual size, which does not compress
		wallpaper = "usr/share/wallpapers/veilor/contents/images/3840x2160.jpg"
		replace(t, source, wallpaper, 2<<20, 1)
	}
	oneFile := Change{Name: "one configuration file", Overlay: func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, "usr/lib/systemd/system/veilor-mesh.service"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, "# changed\n")
		return errors.Join(err, f.Close())
	}}
	// First, while the cache of o is empty; and with the go command, which has to see
	// that no program changed.
	atDesk := o
	atDesk.Programs = func(ctx context.Context) (overlay.Tree, error) { return compile(ctx, scratch) }
	rebuild, err := MeasureRebuild(t.Context(), atDesk, source, scratch, oneFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("on %s: %s", o.Base, rebuild)
	if err := rebuild.Check(); err != nil {
		t.Error(err)
	}
	if len(clients) == 0 {
		t.Skip("what clients fetch was NOT MEASURED: skopeo is missing; install it with: apt-get install skopeo")
	}
	rows, err := Measure(t.Context(), o, source, scratch, []Change{
		{Name: "one program", Programs: func(tree overlay.Tree) overlay.Tree {
			tree = slices.Clone(tree)
			data := bytes.Clone(tree[0].Data) // as after a fix of one line; clients fetch by layer
			data[len(data)/2] ^= 1
			tree[0].Data = data
			return tree
		}},
		oneFile,
		{Name: "one picture", Overlay: func(dir string) error {
			info, err := os.Stat(filepath.Join(dir, wallpaper))
			if err != nil {
				return err
			}
			replace(t, dir, wallpaper, int(info.Size()), 2)
			return nil
		}},
	}, clients)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", Table(rows))
	if out := os.Getenv("VEILOR_WEIGHT_JSON"); out != "" {
		data, err := json.MarshalIndent(struct {
			Rebuild Rebuild `json:"rebuild"`
			Updates []Row   `json:"updates"`
		}{rebuild, rows}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(out, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range rows {
		if err := r.Check(); err != nil {
			t.Error(err)
		}
		if r.Pulled > r.OneLayer {
			t.Errorf("%s, by %s: our layers cost %d, one layer would cost %d", r.Change, r.Client, r.Pulled, r.OneLayer)
		}
		if r.Ideal <= 0 || r.Pulled < r.Ideal/2 {
			t.Errorf("%s, by %s: %d bytes fetched for %d that changed; something was not counted", r.Change, r.Client, r.Pulled, r.Ideal)
		}
	}
}

func compile(ctx context.Context, scratch string) (overlay.Tree, error) {
	return overlay.BuildPrograms(ctx, filepath.Join("..", ".."), filepath.Join(scratch, "programs"), "amd64")
}

// options build on a small base of the test's own.
func options(t *testing.T, scratch string) image.Options {
	t.Helper()
	s, err := site.Make(filepath.Join(scratch, "site"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Parse("recipe.yml", imagetest.Recipe)
	if err != nil {
		t.Fatal(err)
	}
	table, err := image.ParseReplacements("stand-ins.yaml", []byte(imagetest.StandIns))
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(scratch, "base")
	if err := imagetest.Base().Write(base, "amd64"); err != nil {
		t.Fatal(err)
	}
	// Once: a table is of one state of the sources.
	programs, err := compile(t.Context(), scratch)
	if err != nil {
		t.Fatal(err)
	}
	return image.Options{
		Site: s.Site, Recipe: r, StandIns: table, Base: image.Dir{Path: base}, Arch: "amd64", Cache: filepath.Join(scratch, "cache"),
		Programs: func(context.Context) (overlay.Tree, error) { return programs, nil },
	}
}

// largest is the largest file below any of dirs, relative to root.
func largest(t *testing.T, root string, dirs ...string) (name string) {
	t.Helper()
	var size int64
	for _, d := range dirs {
		err := filepath.WalkDir(filepath.Join(root, d), func(p string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			if info.Size() > size {
				size = info.Size()
				name, err = filepath.Rel(root, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return name
}

// replace writes size bytes that do not compress, always the same for a seed.
func replace(t *testing.T, root, name string, size int, seed byte) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRebuildCheck(t *testing.T) {
	for _, c := range []struct {
		r    Rebuild
		good bool
	}{
		{Rebuild{First: time.Minute, Again: RebuildLimit, Layers: 9, New: 2}, true},
		{Rebuild{First: time.Minute, Again: RebuildLimit + 1, Layers: 9, New: 2}, false},
		{Rebuild{First: time.Minute, Again: 1, Layers: 9, New: 3}, false},
		{Rebuild{First: time.Minute, Again: 1, Layers: 9}, false}, // the change was not built
	} {
		if err := c.r.Check(); (err == nil) != c.good {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}

func TestRowCheck(t *testing.T) {
	for pulled, good := range map[int64]bool{1e6: true, 1.2e6 + Envelope: true, 1.2e6 + Envelope + 1: false} {
		if err := (Row{Ideal: 1e6, Pulled: pulled}).Check(); (err == nil) != good {
			t.Errorf("%d: %v", pulled, err)
		}
	}
}
