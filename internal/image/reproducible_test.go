package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/image/imagetest"
)

// childEnv makes the test binary do one thing in a process of its own and end.
const childEnv = "VEILOR_IMAGE_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// job is what a child is asked for, as JSON in $VEILOR_IMAGE_CHILD.
type job struct {
	Dir         string // the base is at Dir/base; everything else goes there too
	Umask       int
	Reverse     bool // write the overlay's files in the reverse order
	Compression Compression
	Tmpfs       int  // put the output on a tmpfs of so many bytes
	Stop        bool // stop for ever when the image is about to be put in place
}

func child(what string) error {
	var j job
	if err := json.Unmarshal([]byte(what), &j); err != nil {
		return err
	}
	syscall.Umask(j.Umask)
	files := testOverlay()
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	if j.Reverse {
		slices.Reverse(names)
	}
	src := filepath.Join(j.Dir, "overlay")
	for _, n := range names {
		p := filepath.Join(src, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
			return err
		}
		if files[n].Mode&os.ModeSymlink != 0 {
			if err := os.Symlink(string(files[n].Data), p); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(p, files[n].Data, files[n].Mode.Perm()|0o666); err != nil {
			return err
		}
	}
	o, err := makeOptions(j.Dir)
	if err != nil {
		return err
	}
	o.Overlay, o.Compression = os.DirFS(src), j.Compression
	if j.Tmpfs > 0 {
		o.Out.Path = filepath.Join(j.Dir, "small", "out")
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(o.Out.Path), 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("none", filepath.Dir(o.Out.Path), "tmpfs", 0, fmt.Sprintf("size=%d", j.Tmpfs)); err != nil {
			return err
		}
	}
	if j.Stop {
		o.beforeExchange = func() {
			fmt.Println("stopped")
			select {}
		}
	}
	r, err := Build(context.Background(), o)
	if j.Tmpfs > 0 {
		// Nobody else sees the tmpfs, so it is looked into here.
		left, globErr := filepath.Glob(filepath.Join(j.Dir, "small", "*"))
		hidden, hiddenErr := filepath.Glob(filepath.Join(j.Dir, "small", ".*"))
		fmt.Println("left:", append(left, hidden...), globErr, hiddenErr)
	}
	if err != nil {
		return err
	}
	fmt.Println(r.Digest)
	return nil
}

// start starts a child; as nobody if other is set and root runs the test.
func start(t *testing.T, j job, env []string, other bool) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The directory of the test binary is closed to others.
	program := filepath.Join(j.Dir, "child")
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = j.Dir
	cmd.Env = append(append(os.Environ(), env...), childEnv+"="+string(text), "HOME="+j.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if other && os.Geteuid() == 0 {
		const nobody = 65534
		err := filepath.WalkDir(j.Dir, func(p string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, nobody, nobody)
		})
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// place makes a directory with a base that anybody may reach.
func place(t *testing.T, name string) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "veilor-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := imagetest.Base().Write(filepath.Join(dir, "base"), "amd64"); err != nil {
		t.Fatal(err)
	}
	// Dates of files are nobody's business either.
	past := time.Unix(1e9, 0)
	if err := os.Chtimes(filepath.Join(dir, "base", "index.json"), past, past); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The same inputs give the same digest whatever the directory, user, umask, time
// zone, locale or order of files.
func TestBuildAnywhere(t *testing.T) {
	for _, c := range []Compression{Gzip, Zstd} {
		t.Run(string(c), func(t *testing.T) {
			var digests []string
			for _, j := range []struct {
				name  string
				job   job
				env   []string
				other bool
			}{
				{"one", job{Umask: 0o022}, []string{"TZ=UTC", "LC_ALL=C", "GOMAXPROCS=1"}, false},
				{"another, with a longer name", job{Umask: 0o077, Reverse: true}, []string{"TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=7", "USER=somebody"}, true},
				{"öffentlich", job{Umask: 0}, []string{"TZ=America/St_Johns", "LANG=zh_CN.GB18030", "SOURCE_DATE_EPOCH=1"}, true},
			} {
				j.job.Dir, j.job.Compression = place(t, j.name), c
				cmd := start(t, j.job, j.env, j.other)
				cmd.Stderr = t.Output()
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%s: %v", j.name, err)
				}
				digests = append(digests, strings.TrimSpace(string(out)))
			}
			if digests[0] == "" || digests[1] != digests[0] || digests[2] != digests[0] {
				t.Errorf("digests %v", digests)
			}
		})
	}
}

// Nothing that a build is made of may ask for the time, the host or the user.
func TestBuildAsksNobody(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(`\b(time\.Now|os\.Hostname|os\.Getuid|os\.Geteuid|user\.Current|rand\.[A-Z])`)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if m := forbidden.Find(data); m != nil {
			t.Errorf("%s calls %s", f, m)
		}
	}
}

// A full disk is said, and leaves nothing.
func TestBuildDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: a small file system needs root")
	}
	dir := place(t, "full")
	cmd := start(t, job{Dir: dir, Umask: 0o022, Tmpfs: 16 << 10}, nil, false)
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil || !strings.Contains(stderr.String(), "writing oci:"+filepath.Join(dir, "small", "out")) || !strings.Contains(stderr.String(), "no space left on device") {
		t.Errorf("%v: %s", err, stderr.String())
	}
	if got := strings.TrimSpace(string(out)); got != "left: [] <nil> <nil>" {
		t.Errorf("%s", got)
	}
}

// A build that is killed leaves the old image whole, and the next one tidies up.
func TestBuildKilled(t *testing.T) {
	dir := place(t, "killed")
	first := start(t, job{Dir: dir, Umask: 0o022}, nil, false)
	out, err := first.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "overlay")); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, job{Dir: dir, Umask: 0o022, Stop: true}, nil, false)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("stopped"))
	_, readErr := io.ReadFull(stdout, buf)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if readErr != nil {
		t.Fatal(readErr)
	}
	img, err := Dir{Path: filepath.Join(dir, "out")}.Open("amd64")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d.String() != strings.TrimSpace(string(out)) {
		t.Errorf("digest %s, %v, want %s", d, err, out)
	}
	parts := func() []string {
		left, err := filepath.Glob(filepath.Join(dir, ".out-*"))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	if len(parts()) != 1 {
		t.Fatalf("the killed build left %v", parts())
	}
	o, err := makeOptions(dir)
	if err != nil {
		t.Fatal(err)
	}
	o.Overlay = testOverlay()
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if len(parts()) > 0 {
		t.Errorf("left behind: %v", parts())
	}
}

// Two builds of the same image at once do not take each other's files away.
func TestBuildTwice(t *testing.T) {
	o := options(t, t.TempDir())
	writeBase(t, o, imagetest.Base())
	done := make(chan error)
	for i := range 4 {
		mine := o
		mine.Cache = filepath.Join(o.Cache, fmt.Sprint(i)) // else they wait for each other
		go func() {
			_, err := Build(t.Context(), mine)
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := o.Out.Open("amd64"); err != nil {
		t.Error(err)
	}
}
