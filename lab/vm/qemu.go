// Package vm runs the lab's machine: QEMU with UEFI firmware, an installed disk,
// a serial console that is driven as a person would, and a side channel for
// measurements.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/lab/sandbox"
)

const (
	// EventsPort is the file in the machine whose writes come out at
	// Machine.Events.
	EventsPort = "/dev/virtio-ports/" + eventsName
	eventsName = "org.veilor.lab"

	// DataLabel is the label of the file system of Config.Data.
	DataLabel = "LAB"

	// firmware of the tools' root.
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"

	// memory suffices for the unlocking (argon2id with 64 MiB), tailscaled and
	// our programs; cpus beyond the host's two only cost.
	defaultMemory = 1536
	defaultCPUs   = 2

	// tbSize is TCG's cache of translated code in MiB. The default is flushed
	// during a boot; a gigabyte is not.
	tbSize = 1024
)

// Config says what machine to run.
type Config struct {
	// Tools is a root of debian.Tools, prepared with sandbox.Chroot.
	Tools *sandbox.Root
	// Dir is the machine's own directory: its disk overlay, firmware variables
	// and logs. It must be shared with Tools under the same name.
	Dir string
	// Disk is the installed disk, raw; it is not changed. It must be shared too.
	// Empty: the firmware finds nothing to boot.
	Disk string
	// Resume goes on with what a machine that has ended left in Dir: its disk and
	// its firmware's variables; logs go on as well. Disk must be the same.
	Resume bool
	// Data, if set, is a file made by MakeData: a second disk, read-only.
	Data string
	// Accel is what Probe found; zero is TCG.
	Accel Accel
	// Tap is a tap device in the named network namespace NetNS. Empty: the
	// machine has no network card.
	Tap, NetNS string
	// MAC of the network card; empty is QEMU's own.
	MAC string
	// Memory in MiB and CPUs; 0 is what the lab uses.
	Memory, CPUs int
	// Console, if set, gets everything the console shows. A file console.log
	// in Dir has it in any case.
	Console io.Writer
}

// Machine is a running (or ended) machine.
type Machine struct {
	// Console is its serial console.
	Console *Console
	// Events is the other end of EventsPort. Somebody must read it if somebody
	// in the machine writes.
	Events net.Conn
	// Monitor speaks QMP.
	Monitor *Monitor

	cmd     *exec.Cmd
	started time.Time
	shell   sync.Mutex // the one shell on the console
	runs    int
	done    chan struct{}
	err     error // of cmd.Wait, once done is closed
	kill    sync.Once
}

// Start powers a machine on. It ends with ctx.
func Start(ctx context.Context, cfg Config) (_ *Machine, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("starting a machine: %w", err)
	}
	log, err := cfg.log("qemu.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := cfg.prepare(ctx, log); err != nil {
		return nil, fmt.Errorf("starting a machine: %w", err)
	}
	consoleLog, err := cfg.log("console.log")
	if err != nil {
		return nil, err
	}
	var closers []io.Closer
	defer func() {
		if err != nil {
			for _, c := range closers {
				c.Close()
			}
		}
	}()
	closers = append(closers, consoleLog)

	cmd := cfg.Tools.Command(ctx, "qemu-system-x86_64", cfg.args()...)
	var ends [3]net.Conn
	for i, name := range []string{"console", "monitor", "events"} {
		ours, theirs, err := pair(name)
		if err != nil {
			return nil, fmt.Errorf("starting a machine: %w", err)
		}
		defer theirs.Close()
		closers = append(closers, ours)
		ends[i] = ours
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs) // descriptors 3, 4, 5
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := startIn(cfg.NetNS, cmd); err != nil {
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	m := &Machine{Events: ends[2], cmd: cmd, started: time.Now(), done: make(chan struct{})}
	var sink io.Writer = consoleLog
	if cfg.Console != nil {
		sink = io.MultiWriter(consoleLog, cfg.Console)
	}
	m.Console = NewConsole(ends[0], sink)
	go func() {
		m.err = cmd.Wait()
		close(m.done)
		for _, e := range ends {
			e.Close()
		}
		consoleLog.Close()
	}()
	if m.Monitor, err = newMonitor(ctx, ends[1]); err != nil {
		words, _ := os.ReadFile(filepath.Join(cfg.Dir, "qemu.log"))
		return nil, errors.Join(fmt.Errorf("starting QEMU: %w: %s", err, words), m.Kill())
	}
	return m, nil
}

// log opens one of the machine's logs.
func (cfg *Config) log(name string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if !cfg.Resume {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(cfg.Dir, name), flags, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting a machine: %w", err)
	}
	return f, nil
}

// prepare makes the files that are the machine's own.
func (cfg *Config) prepare(ctx context.Context, log io.Writer) error {
	if cfg.Resume {
		return nil
	}
	vars, err := os.ReadFile(cfg.Tools.Path(firmwareVars))
	if err != nil {
		return fmt.Errorf("taking the firmware: %w", err)
	}
	if err := os.WriteFile(cfg.varsFile(), vars, 0o600); err != nil {
		return fmt.Errorf("taking the firmware: %w", err)
	}
	if cfg.Disk == "" {
		return nil
	}
	return cfg.Tools.Run(ctx, log, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", cfg.Disk, cfg.overlayFile())
}

func (cfg *Config) varsFile() string    { return filepath.Join(cfg.Dir, "vars.fd") }
func (cfg *Config) overlayFile() string { return filepath.Join(cfg.Dir, "disk.qcow2") }

// args are QEMU's. Descriptors 3 to 5 are console, monitor and events.
func (cfg *Config) args() []string {
	memory, cpus := cfg.Memory, cfg.CPUs
	if memory == 0 {
		memory = defaultMemory
	}
	if cpus == 0 {
		cpus = defaultCPUs
	}
	args := append(cfg.Accel.bare(),
		"-m", strconv.Itoa(memory), "-smp", strconv.Itoa(cpus),
		"-drive", "if=pflash,format=raw,readonly=on,file="+firmwareCode,
		"-drive", "if=pflash,format=raw,file="+cfg.varsFile(),
		"-chardev", "socket,id=console,fd=3", "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=events,fd=5",
		"-device", "virtserialport,chardev=events,name="+eventsName,
		"-device", "virtio-rng-pci",
	)
	if cfg.Disk != "" {
		// Unsafe: the host's crash is not what is tested, and a guest's flush
		// still reaches the overlay file.
		args = append(args, "-drive", "if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file="+cfg.overlayFile(),
			"-device", "virtio-blk-pci,drive=root,bootindex=0")
	}
	if cfg.Data != "" {
		args = append(args, "-drive", "if=none,id=data,format=raw,readonly=on,file="+cfg.Data, "-device", "virtio-blk-pci,drive=data")
	}
	if cfg.Tap != "" {
		card := "virtio-net-pci,netdev=net,romfile=" // no network boot
		if cfg.MAC != "" {
			card += ",mac=" + cfg.MAC
		}
		args = append(args, "-netdev", "tap,id=net,script=no,downscript=no,ifname="+cfg.Tap, "-device", card)
	}
	return args
}

// pair makes a connected pair of sockets: one end to use, one to hand on. No
// file is left anywhere, and no path is too long for it.
func pair(name string) (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the %s's line: %w", name, err)
	}
	f := os.NewFile(uintptr(fds[0]), name)
	defer f.Close()
	ours, err = net.FileConn(f) // a duplicate
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("making the %s's line: %w", name, err)
	}
	return ours, os.NewFile(uintptr(fds[1]), name), nil
}

// startIn starts a command in a named network namespace; empty is ours.
func startIn(name string, cmd *exec.Cmd) error {
	if name == "" {
		return cmd.Start()
	}
	// A process is born in the namespace of the thread that forks it.
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("keeping the network namespace: %w", err)
	}
	defer own.Close()
	there, err := netns.GetFromName(name)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", name, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", name, err)
	}
	started := cmd.Start()
	if err := netns.Set(own); err != nil {
		// The thread stays locked and dies with this goroutine rather than
		// carry others into the wrong network.
		return errors.Join(started, fmt.Errorf("leaving network namespace %s: %w", name, err))
	}
	runtime.UnlockOSThread()
	return started
}

// Pid is QEMU's, in the sandbox.
func (m *Machine) Pid() int { return m.cmd.Process.Pid }

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Kill pulls the plug and waits for the end.
func (m *Machine) Kill() error {
	m.kill.Do(func() { _ = m.cmd.Process.Kill() })
	<-m.done
	return nil
}

// MakeData makes a read-only disk from a directory: ext4 with the label
// DataLabel. The directory and the file must be shared with the tools.
func MakeData(ctx context.Context, tools *sandbox.Root, dir, file string, log io.Writer) error {
	var bytes int64
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			// A block for the inode and the end of the file.
			bytes += info.Size() + dataBlock
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("making the data disk: %w", err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("making the data disk: %w", err)
	}
	kib := (bytes+bytes/dataSpare+dataFloor)>>10 + 1
	return tools.Run(ctx, log, nil, "mkfs.ext4", "-q", "-L", DataLabel, "-O", "^has_journal", "-m", "0", "-d", dir, file, fmt.Sprintf("%dk", kib))
}

// Space on a data disk: file system's own, beside the files.
const (
	dataBlock = 4096
	dataSpare = 16      // one part in this
	dataFloor = 4 << 20 // at least
)
