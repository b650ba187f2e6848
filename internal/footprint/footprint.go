// Package footprint keeps a daemon that mostly waits small in memory.
//
// A Go program of ours has some 18 MB of instructions and tables, and its start
// (flags, the site file, signatures of the directory, tables of libraries) has the
// kernel map most of them. Waiting needs a quarter of that. The rest stays mapped
// for as long as the program runs, and counts as memory in use when the kernel
// looks for some that it can take. Letting go of it costs nothing that was not
// already paid: the pages are in the page cache or the file, and come back when
// they are used.
//
// A collection of garbage, which Go's runtime makes every two minutes even of a
// program that waits, reads the tables of every function that somebody is in, and
// maps 3 to 4 MB of them again. So what is mapped is let go of after each.
package footprint

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settled is how long after its start a daemon has done what is done once: its
	// first connections, the first look at the directory and its peers.
	settled = 30 * time.Second
	// leastApart is the least time between two times of letting go. A program that
	// works collects garbage many times a second; one that waits every two minutes.
	leastApart = time.Minute
)

// Keep waits until the start is over, returns to the kernel what only the start has
// needed, and after that what each collection of garbage has mapped, until ctx ends.
// What goes wrong harms nothing, and is told log.
func Keep(ctx context.Context, log *slog.Logger) {
	timer := time.NewTimer(settled)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	debug.FreeOSMemory()
	collected := collections(ctx)
	for {
		if err := LetGo(); err != nil {
			log.Debug("staying as large as at the start", "err", err)
			return
		}
		last := time.Now()
		for time.Since(last) < leastApart {
			select {
			case <-collected:
			case <-ctx.Done():
				return
			}
		}
	}
}

// collections tells of every collection of garbage until ctx ends; of several in a
// row once.
func collections(ctx context.Context) <-chan struct{} {
	told := make(chan struct{}, 1)
	var next func(struct{})
	next = func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		runtime.AddCleanup(new(garbage), next, struct{}{})
		select {
		case told <- struct{}{}:
		default:
		}
	}
	runtime.AddCleanup(new(garbage), next, struct{}{})
	return told
}

// garbage is what the next collection finds. It has a pointer, without which the
// runtime would put it in one block with others that live longer.
type garbage struct{ _ *byte }

// LetGo unmaps the pages of the program's own file. Those that are used again come
// back by a minor fault, 16 at a time.
func LetGo() error {
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
