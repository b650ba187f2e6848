package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// helperVar makes the test binary play the lab instead of testing.
	helperVar = "VEILOR_LAB_SANDBOX_TEST"
	dirVar    = "VEILOR_LAB_SANDBOX_DIR"

	// patience bounds every wait for the kernel to tidy up.
	patience = 10 * time.Second
)

func TestMain(m *testing.M) {
	switch os.Getenv(helperVar) {
	case "litter":
		os.Exit(Run(litter))
	case "signal":
		os.Exit(Run(func(ctx context.Context) int {
			fmt.Println("ready")
			<-ctx.Done()
			fmt.Println(context.Cause(ctx))
			return 3
		}))
	case "orphan":
		os.Exit(Run(func(context.Context) int {
			// A grandchild whose parent dies at once is init's to reap.
			out, err := exec.Command("sh", "-c", "sh -c 'sleep 0.2' & echo $!").Output()
			if err != nil {
				return 1
			}
			pid := strings.TrimSpace(string(out))
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
					return 0
				}
			}
			return 1
		}))
	}
	os.Exit(m.Run())
}

// litter makes one of everything that could be left behind, and waits.
func litter(ctx context.Context) int {
	dir := os.Getenv(dirVar)
	image, mnt, tmp := filepath.Join(dir, "image"), filepath.Join(dir, "mnt"), filepath.Join(dir, "tmp")
	script := fmt.Sprintf(`set -e
		truncate -s 8M %[1]s; mkfs.ext4 -q %[1]s; mkdir %[2]s %[3]s
		mount -o loop %[1]s %[2]s; mount -t tmpfs none %[3]s
		ip netns add litter; ip -n litter link set lo up
		setsid sleep 86400.5 </dev/null >/dev/null 2>&1 &`, image, mnt, tmp)
	if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		fmt.Printf("%s: %v\n", out, err)
		return 1
	}
	fmt.Println("ready")
	<-ctx.Done()
	return 0
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: namespaces and mounts need root")
	}
}

// helper starts this test binary in a role and waits until it says "ready".
func helper(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"="+role, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	out := bufio.NewReader(pipe)
	line, err := out.ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("helper %s said %q, %v", role, line, err)
	}
	return cmd, out
}

func TestKilledOuterLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	cmd, _ := helper(t, "litter", dir)
	if left := traces(t, dir); len(left) == 0 {
		t.Fatal("the helper left no traces while it ran: this test would pass on anything")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if left = traces(t, dir); len(left) == 0 {
			break
		}
	}
	for _, l := range left {
		t.Errorf("left behind: %s", l)
	}
	if _, err := os.Stat("/run/netns/litter"); err == nil {
		t.Error("left behind: network namespace name in the host's /run/netns")
	}
}

// traces lists processes, mounts and loop devices that name dir or the
// helper's sleep.
func traces(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	mounts, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, m := range mounts {
		if b, err := os.ReadFile(m); err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, m)
		}
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range commands {
		if b, err := os.ReadFile(c); err == nil && bytes.Contains(b, []byte("86400.5\x00")) && bytes.HasPrefix(b, []byte("sleep")) {
			found = append(found, c)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, l)
		}
	}
	return found
}

func TestSignalReachesWorkerAndCodeComesBack(t *testing.T) {
	needRoot(t)
	cmd, out := helper(t, "signal", "")
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(out)
	if want := "interrupted by SIGTERM\n"; string(said) != want {
		t.Errorf("worker said %q, want %q", said, want)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("exit code %d, want the worker's 3", got)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"=orphan")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestMountingOutsideIsRefused(t *testing.T) {
	if _, err := Chroot(t.TempDir()); !errors.Is(err, ErrOutside) {
		t.Errorf("Chroot outside: %v, want ErrOutside", err)
	}
	if _, err := Overlay(t.TempDir(), t.TempDir()); !errors.Is(err, ErrOutside) {
		t.Errorf("Overlay outside: %v, want ErrOutside", err)
	}
}

func TestRunLoggedShowsTheLastWords(t *testing.T) {
	var log bytes.Buffer
	err := RunLogged(t.Context(), exec.Command("sh", "-c", "echo one; echo two >&2; exit 4"), &log)
	if err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("error %v does not carry the output", err)
	}
	if got := log.String(); !strings.Contains(got, "one\n") || !strings.HasPrefix(got, "+ sh") {
		t.Errorf("log %q", got)
	}
}
