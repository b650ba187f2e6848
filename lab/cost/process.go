package cost

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that runs.
type process struct {
	pid  int
	name string // of its program
	args []string
}

// inNamespace finds the processes whose network namespace is at path.
func inNamespace(path string) ([]process, error) {
	want, err := identity(path)
	if err != nil {
		return nil, fmt.Errorf("finding processes: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("finding processes: %w", err)
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if is, err := identity(filepath.Join("/proc", e.Name(), "ns/net")); err != nil || is != want {
			continue // another's, or it has ended
		}
		program, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		line, err2 := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || err2 != nil {
			continue
		}
		all = append(all, process{pid, filepath.Base(program), strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")})
	}
	return all, nil
}

// identity is what two names of a file have in common.
func identity(path string) ([2]uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return [2]uint64{}, err
	}
	s := info.Sys().(*syscall.Stat_t)
	return [2]uint64{s.Dev, s.Ino}, nil
}

// daemonsOf picks the laptop's daemons out of processes.
func daemonsOf(all []process) (pids map[string]int, err error) {
	pids = map[string]int{}
	for _, p := range all {
		name := p.name
		switch {
		case name == "veilor" && slices.Contains(p.args, "mesh") && slices.Contains(p.args, "run"):
			name = mesh
		case name == "veilor" && slices.Contains(p.args, "notify"):
			name = notify
		case name == ygg, name == tailscaled:
		default:
			continue
		}
		if pids[name] != 0 {
			return nil, fmt.Errorf("finding the laptop's daemons: %s runs twice", name)
		}
		pids[name] = p.pid
	}
	for _, name := range daemons {
		if pids[name] == 0 && name != notify { // which needs a session bus
			return nil, fmt.Errorf("finding the laptop's daemons: %s does not run", name)
		}
	}
	return pids, nil
}

// The laptop's daemons, and which are ours.
const (
	mesh       = "veilor-mesh"
	ygg        = "veilor-ygg"
	notify     = "veilor-notify"
	tailscaled = "tailscaled"
)

var daemons = []string{mesh, ygg, notify, tailscaled}

func ours(name string) bool { return name != tailscaled }

// processorTime is what all threads of a process have used, those that have
// ended included, to the nanosecond (clock_getcpuclockid(3), whose encoding is
// the kernel's, include/linux/posix-timers.h).
func processorTime(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &t); err != nil {
		return 0, fmt.Errorf("reading the processor time of %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// work is processor time: of everything on this machine, and of the forwarder.
type work struct{ all, forwarder time.Duration }

// workDone is what has been done in the laptop's world so far. Whatever else this
// machine does counts too: it is to be quiet.
func (t *town) workDone() (w work, err error) {
	all, err := inNamespace(t.world.Guest.Path())
	if err != nil {
		return w, err
	}
	pids, err := daemonsOf(all)
	if err != nil {
		return w, err
	}
	if w.forwarder, err = processorTime(pids[mesh]); err != nil {
		return w, err
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return w, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	w.all, err = busy(string(text))
	return w, err
}

// busy reads from /proc/stat (proc_stat(5)) for how long the processors were not
// idle. Its unit is a hundredth of a second.
func busy(text string) (time.Duration, error) {
	const idle, wait, guest = 4, 5, 9 // of the fields; what guests had is in the others already
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) <= idle || f[0] != "cpu" {
		return 0, fmt.Errorf("reading the machine's processor time: %q", line)
	}
	var sum int64
	for i, s := range f {
		if i == 0 || i == idle || i == wait || i >= guest {
			continue
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading the machine's processor time: %q", line)
		}
		sum += n
	}
	return time.Duration(sum) * (time.Second / 100), nil
}

// memoryOf is what a process has now.
func memoryOf(pid int) (Memory, error) {
	sums, err := readSizes(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	status, err := readSizes(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Resident: sums["Rss"], Anonymous: sums["Anonymous"], Peak: status["VmHWM"]}
	if m.Resident == 0 {
		return Memory{}, fmt.Errorf("reading the memory of %d: it has none", pid)
	}
	return m, nil
}

func readSizes(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading memory: %w", err)
	}
	return sizes(text), nil
}

// sizes reads lines such as "VmHWM:   1234 kB", in bytes; other lines are left
// out. The kernel's kB is 1024 bytes.
func sizes(text []byte) map[string]int64 {
	found := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" || !strings.HasSuffix(f[0], ":") {
			continue
		}
		if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			found[strings.TrimSuffix(f[0], ":")] = n * 1024
		}
	}
	return found
}

// interfacesOf are the bytes that the interfaces of a process's network namespace
// have carried.
func interfacesOf(pid int) (map[string]Wire, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("reading the interfaces: %w", err)
	}
	return interfaces(text), nil
}

// interfaces reads /proc/net/dev (proc_pid_net(5)): two lines of titles, and then
// "name: bytes packets errs drop fifo frame compressed multicast bytes ...".
func interfaces(text []byte) map[string]Wire {
	found := map[string]Wire{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, figures, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(figures)
		if !ok || len(f) < 16 {
			continue
		}
		down, err := strconv.ParseInt(f[0], 10, 64)
		up, err2 := strconv.ParseInt(f[8], 10, 64)
		if err == nil && err2 == nil {
			found[strings.TrimSpace(name)] = Wire{Up: up, Down: down}
		}
	}
	return found
}

// ThisMachine is what is measured on.
func ThisMachine() Machine {
	m := Machine{Processor: "unknown", Kernel: "unknown"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			switch strings.TrimSpace(key) {
			case "processor":
				m.Cores++
			case "model name":
				m.Processor = strings.TrimSpace(value)
			}
		}
	}
	return m
}
