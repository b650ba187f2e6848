// Package sandbox runs the lab inside namespaces of its own, so that nothing
// it makes can outlive it, however it dies.
//
// Everything heavy that the lab does (chroots, loop mounts, network
// namespaces, QEMU) leaves traces in the kernel. Removing them one by one in
// deferred functions works until the first kill -9. So the program re-executes
// itself as three processes:
//
//	outer   what the person started: forwards signals, waits, passes the code on
//	  └─ init   PID 1 of a new PID namespace, in new mount, IPC and UTS namespaces:
//	     │      mounts /proc, hides the host's named network namespaces, reaps
//	     └─ worker   runs the caller's function
//
// When init goes, the kernel kills every process in its PID namespace; when
// the last of them is gone the mount namespace goes, and with it every mount,
// every loop device (all are set up with autoclear) and every network namespace
// that was named by a mount. Init goes when the worker ends, when the outer
// process dies (parent-death signal, and a pipe that closes), or when it is
// killed itself.
//
// The network namespace stays the host's: package installs need it. Worlds
// without a route out are made inside by whoever needs them.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// roleVar tells a re-executed process which of the three it is. The
	// environment is used, not the arguments, so that the caller's own flag
	// parsing (and go test's) sees exactly what the person typed.
	roleVar    = "VEILOR_LAB_SANDBOX"
	roleInit   = "init"
	roleWorker = "worker"

	// lifelineFD is the read end of the pipe whose write end only the outer
	// process holds: the first descriptor after stdio.
	lifelineFD = 3

	// ExitSetup is the code when the namespaces could not be made.
	ExitSetup = 125

	// signalBase is what a shell adds to a signal number in an exit code.
	signalBase = 128

	// netnsDir is where `ip netns` keeps names; a tmpfs of our own there keeps
	// the lab's names private and the host's out of reach.
	netnsDir = "/run/netns"
)

// ErrNotRoot says that namespaces with real mounts need root.
var ErrNotRoot = errors.New("the lab needs root: run it with sudo or as root")

// Inside reports whether this process already runs in the sandbox. Functions
// that mount refuse to work outside of it.
func Inside() bool { return os.Getenv(roleVar) == roleWorker }

// Run executes work inside the sandbox and returns the exit code of the
// process: the program's main ends with os.Exit(sandbox.Run(...)) before it has
// done anything else of weight, because everything up to here runs in each of
// the three processes.
//
// The context given to work is cancelled by the first SIGINT, SIGTERM or
// SIGHUP; a second one ends the sandbox at once, which loses nothing but
// unsaved output.
func Run(work func(ctx context.Context) int) int {
	switch os.Getenv(roleVar) {
	case roleInit:
		return runInit()
	case roleWorker:
		return runWorker(work)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, ErrNotRoot)
		return ExitSetup
	}
	code, err := runOuter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return ExitSetup
	}
	return code
}

// forwarded are the signals that a person or a supervisor ends a program with.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}

func runOuter() (int, error) {
	// The parent-death signal fires when the *thread* that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	hold, lifeline, err := lifelinePipe()
	if err != nil {
		return 0, err
	}
	defer lifeline.Close()

	// Before the start, so that no signal can fall between start and Notify.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVar+"="+roleInit)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{hold}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		// A session of its own: Ctrl-C reaches only the outer process, which
		// passes it on once, instead of hitting QEMU and every tool as well.
		Setsid:    true,
		Pdeathsig: unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		hold.Close()
		return 0, fmt.Errorf("starting the sandbox (are namespaces allowed here?): %w", err)
	}
	hold.Close()

	done := make(chan struct{})
	defer close(done)
	go func() {
		for count := 0; ; {
			select {
			case <-done:
				return
			case s := <-signals:
				if count++; count > 1 {
					_ = cmd.Process.Kill()
				} else {
					_ = cmd.Process.Signal(s)
				}
			}
		}
	}()
	return exitCode(cmd.Wait(), cmd.ProcessState)
}

// lifelinePipe returns the read end, which init inherits, and the write end,
// which nobody inherits.
func lifelinePipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making the sandbox's lifeline: %w", err)
	}
	return r, w, nil
}

func exitCode(err error, state *os.ProcessState) (int, error) {
	if state == nil {
		return 0, fmt.Errorf("waiting for the sandbox: %w", err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return signalBase + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}

// runInit is PID 1. It must not use os/exec's Wait: it reaps everything itself.
func runInit() int {
	go func() {
		// Blocks until the outer process is gone, even if it died before the
		// parent-death signal was armed.
		lifeline := os.NewFile(lifelineFD, "lifeline")
		_, _ = io.Copy(io.Discard, lifeline)
		os.Exit(ExitSetup)
	}()
	unix.CloseOnExec(lifelineFD)

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, forwarded...)

	if err := privateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return ExitSetup
	}
	os.Setenv(roleVar, roleWorker)
	worker, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, fmt.Errorf("starting the sandbox's worker: %w", err))
		return ExitSetup
	}
	go func() {
		for s := range signals {
			_ = unix.Kill(worker.Pid, s.(syscall.Signal))
		}
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, fmt.Errorf("reaping in the sandbox: %w", err))
			return ExitSetup
		case pid != worker.Pid || ws.Stopped() || ws.Continued():
		case ws.Signaled():
			return signalBase + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}

// privateMounts makes the mount namespace one-way (nothing goes out, nothing
// comes in), gives it the /proc of the new PID namespace, and hides the host's
// named network namespaces.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", netnsDir, err)
	}
	if err := unix.Mount("netns", netnsDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mounting %s: %w", netnsDir, err)
	}
	return nil
}

func runWorker(work func(ctx context.Context) int) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, forwarded...)
	go func() {
		s := <-signals
		cancel(fmt.Errorf("interrupted by %s", unix.SignalName(s.(syscall.Signal))))
	}()
	return work(ctx)
}

// RunTests is for TestMain of packages whose tests mount or boot: as root the
// tests run in the sandbox, otherwise as they are, and those that need root
// skip themselves.
func RunTests(m interface{ Run() int }) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	return Run(func(context.Context) int { return m.Run() })
}
