package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killGrace is how long a cancelled tool has to tidy up after SIGTERM
	// before it is killed; skopeo and ostree need well under a second.
	killGrace = 5 * time.Second

	// errorTail is how much of a failed tool's output goes into the error; the
	// whole of it is in the log.
	errorTail = 1200
)

// ErrOutside is returned by everything that mounts when it is called outside
// the sandbox, where a crash would leave the mounts behind.
var ErrOutside = errors.New("this mounts, and runs only inside the sandbox: start the program through sandbox.Run")

// Root is a directory tree with an operating system in it, ready to run
// programs in.
type Root struct {
	dir    string
	mounts []string // in the order made
}

// Chroot prepares dir to run programs in: /proc, /dev and /sys are those of
// the sandbox. Close undoes it; so does the end of the sandbox.
func Chroot(dir string) (*Root, error) {
	if !Inside() {
		return nil, ErrOutside
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("preparing a root: %w", err)
	}
	r := &Root{dir: dir}
	for _, name := range []string{"/proc", "/dev", "/sys"} {
		if err := r.Bind(name, name); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// Overlay prepares a root whose lower layer is dir and whose changes go to
// scratch, a directory on a disk file system: what runs inside may write
// anywhere, and dir stays as it is. Overlays one after the other with the same
// scratch go on where the last one stopped.
func Overlay(dir, scratch string) (*Root, error) {
	r, err := Layer(dir, scratch)
	if err != nil {
		return nil, err
	}
	full, err := Chroot(r.dir)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	full.mounts = append(r.mounts, full.mounts...)
	return full, nil
}

// Layer is Overlay without /proc, /dev and /sys: the bare tree, to look at
// and to change.
func Layer(dir, scratch string) (*Root, error) {
	if !Inside() {
		return nil, ErrOutside
	}
	scratch, err := filepath.Abs(scratch)
	if err != nil {
		return nil, fmt.Errorf("preparing an overlay: %w", err)
	}
	merged := filepath.Join(scratch, "root")
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, d := range []string{merged, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("preparing an overlay: %w", err)
		}
	}
	options := "lowerdir=" + dir + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mounting an overlay on %s (the kernel must have overlayfs): %w", dir, err)
	}
	return &Root{dir: merged, mounts: []string{merged}}, nil
}

// Dir is where the tree is, seen from outside.
func (r *Root) Dir() string { return r.dir }

// Path is where a path of the root is, seen from outside. It does not follow
// links.
func (r *Root) Path(inside string) string { return filepath.Join(r.dir, inside) }

// Bind makes the host's file or directory appear in the root at inside, with
// everything mounted below it. Missing mount points are made.
func (r *Root) Bind(host, inside string) error {
	if !Inside() {
		return ErrOutside
	}
	target := r.Path(inside)
	info, err := os.Stat(host)
	if err != nil {
		return fmt.Errorf("binding into a root: %w", err)
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
			f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("binding %s into a root: %w", inside, err)
	}
	if err := unix.Mount(host, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s into a root: %w", inside, err)
	}
	r.mounts = append(r.mounts, target)
	return nil
}

// Share makes a host directory appear in the root under its own name, so that
// the same paths are good on both sides.
func (r *Root) Share(host string) error {
	host, err := filepath.Abs(host)
	if err != nil {
		return fmt.Errorf("sharing a directory: %w", err)
	}
	return r.Bind(host, host)
}

// Close undoes the mounts, last first. Programs that still run keep theirs.
func (r *Root) Close() error {
	var errs []error
	for i := len(r.mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(r.mounts[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", r.mounts[i], err))
		}
	}
	r.mounts = nil
	return errors.Join(errs...)
}

// Command prepares a program of the root. It runs with a small fixed
// environment (HOME is /root of the tree: a policy.json in a person's home would
// win over the one in /etc), gets SIGTERM when ctx ends, and SIGKILL if it stays.
func (r *Root) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// The name is looked up inside the root, so env(1), found by its fixed
	// path, does it.
	cmd := exec.CommandContext(ctx, "/usr/bin/env", append([]string{name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=/var/tmp", "DEBIAN_FRONTEND=noninteractive",
	}
	Gentle(cmd)
	return cmd
}

// Gentle makes the end of a command's context a SIGTERM, with SIGKILL after a
// grace period.
func Gentle(cmd *exec.Cmd) {
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = killGrace
}

// Run runs a program of the root to its end. Both outputs go to log; an error
// carries the last of them. A nil stdin is empty.
func (r *Root) Run(ctx context.Context, log io.Writer, stdin io.Reader, name string, args ...string) error {
	cmd := r.Command(ctx, name, args...)
	cmd.Stdin = stdin
	return RunLogged(ctx, cmd, log)
}

// Output runs a program of the root and returns its standard output; its
// standard error goes to log.
func (r *Root) Output(ctx context.Context, log io.Writer, name string, args ...string) (string, error) {
	cmd := r.Command(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := RunLogged(ctx, cmd, log); err != nil {
		return "", err
	}
	return out.String(), nil
}

// RunLogged runs any prepared command with its unset outputs going to log, and
// turns a failure into an error that names the program and shows its last words.
func RunLogged(ctx context.Context, cmd *exec.Cmd, log io.Writer) error {
	if log == nil {
		log = io.Discard
	}
	last := &tail{}
	both := io.MultiWriter(log, last)
	if cmd.Stdout == nil {
		cmd.Stdout = both
	}
	if cmd.Stderr == nil {
		cmd.Stderr = both
	}
	args := cmd.Args
	if args[0] == "/usr/bin/env" && len(args) > 1 {
		args = args[1:]
	}
	fmt.Fprintf(log, "+ %s\n", strings.Join(args, " "))
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("running %s: %w", args[0], context.Cause(ctx))
	}
	if words := strings.TrimSpace(last.String()); words != "" {
		return fmt.Errorf("running %s: %w: %s", args[0], err, words)
	}
	return fmt.Errorf("running %s: %w", args[0], err)
}

// tail keeps the last errorTail bytes written to it.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - errorTail; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
