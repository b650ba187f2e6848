package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// Accel is how QEMU runs the machine's processor.
type Accel string

const (
	// TCG translates in user space. It works everywhere and is what the lab's
	// timings are about.
	TCG Accel = "tcg"
	// KVM is the hardware's. A machine that is itself virtual may offer it and
	// be far slower with it than without: only Probe knows.
	KVM Accel = "kvm"
)

// bare is a machine without any device.
func (a Accel) bare() []string {
	return append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"}, a.args()...)
}

func (a Accel) args() []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	// Without la57 the kernel has four levels of page tables, not five: one
	// load less for every translation, an eighth of the time until the login.
	return []string{"-accel", "tcg,thread=multi,tb-size=" + strconv.Itoa(tbSize), "-cpu", "max,la57=off"}
}

const (
	// probeTime is what a kernel may take from power-on to the end of its
	// boot, where it finds no root and panics. Working KVM needs two or three
	// seconds; TCG needs fifteen; nested KVM that falls back to emulating the
	// guest's kernel needs minutes.
	probeTime = 8 * time.Second

	// probeEnd is what the kernel says then.
	probeEnd = "Unable to mount root fs"

	probeVersion = "1"
)

// Verdict is what Probe found.
type Verdict struct {
	Accel Accel
	// Why, for a report.
	Why string
}

// Probe finds out whether KVM really works here, by booting the kernel with it.
// The answer is kept for as long as the machine is up and QEMU is the same.
func Probe(ctx context.Context, c *cache.Cache, tools *sandbox.Root, kernel string, log io.Writer) (Verdict, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return Verdict{TCG, "this machine has no /dev/kvm"}, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Verdict{}, fmt.Errorf("probing KVM: %w", err)
	}
	qemu, err := tools.Output(ctx, log, "qemu-system-x86_64", "--version")
	if err != nil {
		return Verdict{}, err
	}
	dir, err := c.Get(ctx, "kvm", cache.NewInputs(probeVersion).Bytes(boot).String(qemu), func(ctx context.Context, dir string) error {
		v, err := probe(ctx, dir, tools, kernel, log)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "verdict"), []byte(string(v.Accel)+"\n"+v.Why), 0o644)
	})
	if err != nil {
		return Verdict{}, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "verdict"))
	if err != nil {
		return Verdict{}, fmt.Errorf("probing KVM: %w", err)
	}
	accel, why, _ := strings.Cut(string(b), "\n")
	return Verdict{Accel(accel), why}, nil
}

func probe(ctx context.Context, dir string, tools *sandbox.Root, kernel string, log io.Writer) (Verdict, error) {
	// The directory is not shared with the tools; a copy of the kernel is.
	b, err := os.ReadFile(kernel)
	if err != nil {
		return Verdict{}, fmt.Errorf("probing KVM: %w", err)
	}
	inside := "/var/tmp/" + filepath.Base(dir) + "-vmlinuz"
	if err := os.WriteFile(tools.Path(inside), b, 0o644); err != nil {
		return Verdict{}, fmt.Errorf("probing KVM: %w", err)
	}
	defer os.Remove(tools.Path(inside))

	limited, cancel := context.WithTimeoutCause(ctx, probeTime, ErrTimeout)
	defer cancel()
	args := append(KVM.bare(), "-no-reboot", "-m", "256", "-serial", "stdio", "-kernel", inside, "-append", "console=ttyS0 panic=-1")
	cmd := tools.Command(limited, "qemu-system-x86_64", args...)
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	var out bytes.Buffer
	cmd.Stdout = io.MultiWriter(&out, log)
	start := time.Now()
	err = sandbox.RunLogged(limited, cmd, log)
	took := time.Since(start).Round(100 * time.Millisecond)
	switch {
	case ctx.Err() != nil:
		return Verdict{}, fmt.Errorf("probing KVM: %w", context.Cause(ctx))
	case bytes.Contains(out.Bytes(), []byte(probeEnd)):
		return Verdict{KVM, fmt.Sprintf("a kernel boots in %v with KVM", took)}, nil
	case errors.Is(err, ErrTimeout):
		return Verdict{TCG, fmt.Sprintf("/dev/kvm is there, but a kernel does not boot in %v with it", probeTime)}, nil
	case err != nil:
		return Verdict{TCG, fmt.Sprintf("/dev/kvm is there, but QEMU cannot use it: %s", lastLine(err.Error()))}, nil
	}
	return Verdict{TCG, "/dev/kvm is there, but a kernel ends early with it"}, nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
