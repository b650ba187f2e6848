// Package footprint makes a daemon that mostly waits small in memory, once it
// has started.
//
// A Go program of ours has some 18 MB of instructions and tables, and its start
// (flags, the site file, signatures of the directory, tables of libraries) has the
// kernel map most of them. Waiting needs a quarter of that. The rest stays mapped
// for as long as the program runs, and counts as memory in use when the kernel
// looks for some that it can take. Letting go of it costs nothing that was not
// already paid: the pages are in the page cache or the file, and come back when
// they are used.
package footprint

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long after its start a daemon has done what is done once: its
// first connections, the first look at the directory and its peers.
const settled = 30 * time.Second

// Settle waits until the start is over, and then returns to the kernel what only
// the start has needed. It returns early if ctx ends. An error harms nothing.
func Settle(ctx context.Context) error {
	timer := time.NewTimer(settled)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil
	}
	return LetGo()
}

// LetGo collects garbage, returns free memory to the kernel, and unmaps the pages
// of the program's own file. Those that are used again come back by a minor
// fault, 16 at a time.
func LetGo() error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("letting go of memory: %w", err)
	}
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("letting go of memory: %w", err)
	}
	for _, m := range unchanged(text, program) {
		// Not by unix.Madvise, which wants a slice: this is memory that Go does not
		// know of.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("letting go of memory: %w", os.NewSyscallError("madvise", errno))
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// unchanged finds in /proc/self/smaps (proc_pid_smaps(5)) the mappings of a file
// that are not writable and have no page of their own: all of their content is in
// the file. A program that is relocated when it is loaded has read-only pages
// that are in no file, and those must stay.
func unchanged(smaps []byte, file string) []mapping {
	var (
		found []mapping
		m     mapping
		ours  bool
	)
	for lines := bufio.NewScanner(bytes.NewReader(smaps)); lines.Scan(); {
		line := lines.Text()
		if key, value, ok := strings.Cut(line, ":"); ok && !strings.Contains(key, " ") {
			if ours && key == "Anonymous" && strings.TrimSpace(value) == "0 kB" {
				found = append(found, m)
			}
			continue
		}
		m, ours = parse(line, file)
	}
	return found
}

// parse reads the first line of a mapping: "400000-c76000 r-xp 00000000 fe:00 42
// /usr/bin/veilor". ok says that it is of file, private and not writable.
func parse(line, file string) (m mapping, ok bool) {
	rest := line
	var fields [5]string
	for i := range fields {
		fields[i], rest, ok = strings.Cut(strings.TrimLeft(rest, " "), " ")
		if !ok {
			return m, false // it has no file
		}
	}
	perms := fields[1]
	if strings.TrimLeft(rest, " ") != file || len(perms) != 4 || perms[1] == 'w' || perms[3] != 'p' {
		return m, false
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err != nil || err2 != nil || end <= start {
		return m, false
	}
	return mapping{uintptr(start), uintptr(end)}, true
}
