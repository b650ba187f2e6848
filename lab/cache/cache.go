// Package cache keeps what the lab builds, keyed by everything that went into
// it, so that a second run builds nothing twice.
//
// An artefact is a directory NAME-HASH. It is built in a directory beside it
// and renamed into place when it is whole, so an interrupted build leaves
// nothing that could be mistaken for a result: a cancelled one removes its
// directory, a killed one is removed by the next build of the same name. One
// build per name runs at a time, across processes.
package cache

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keep is how many artefacts of a name stay: the one in use, and the one
	// before, so that switching between two branches does not rebuild forever.
	keep = 2

	// buildPrefix marks directories of builds under way.
	buildPrefix = ".building-"

	// lockPoll is how often a second process looks whether the first is done.
	lockPoll = 200 * time.Millisecond
)

// Event is one step in the life of an artefact, for a progress display.
type Event struct {
	Name string
	What What
	Took time.Duration // with Built only
}

// What happened.
type What int

const (
	Reused   What = iota // it was there
	Building             // it was not, and is being made
	Built                // and now it is there
	Waiting              // another process is making it
)

func (w What) String() string {
	return [...]string{"reused", "building", "built", "waiting for another build"}[w]
}

// Cache is a directory of artefacts.
type Cache struct {
	Dir string
	// Notify, if set, hears of every artefact asked for.
	Notify func(Event)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Get returns the directory of the artefact name made from inputs. If it is
// not there, build makes it in the empty directory that it is given. After
// Get the artefact belongs to nobody: treat it as read-only.
func (c *Cache) Get(ctx context.Context, name string, inputs *Inputs, build func(ctx context.Context, dir string) error) (string, error) {
	if strings.ContainsAny(name, "/.") || name == "" {
		return "", fmt.Errorf("caching: %q is no name for an artefact", name)
	}
	sum, err := inputs.Sum()
	if err != nil {
		return "", fmt.Errorf("hashing the inputs of %s: %w", name, err)
	}
	final := filepath.Join(c.Dir, name+"-"+sum)
	if c.reuse(final) {
		c.notify(Event{Name: name, What: Reused})
		return final, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache: %w", err)
	}
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if c.reuse(final) { // made while we waited
		c.notify(Event{Name: name, What: Reused})
		return final, nil
	}
	if err := c.sweep(name); err != nil {
		return "", err
	}
	c.notify(Event{Name: name, What: Building})
	start := c.now()
	if err := c.build(ctx, name, final, build); err != nil {
		return "", err
	}
	c.notify(Event{Name: name, What: Built, Took: c.now().Sub(start)})
	return final, c.prune(name, final)
}

// Has reports whether the artefact is there, so that who can do without it need
// not wait for it to be made.
func (c *Cache) Has(name string, inputs *Inputs) bool {
	sum, err := inputs.Sum()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(c.Dir, name+"-"+sum))
	return err == nil
}

func (c *Cache) build(ctx context.Context, name, final string, build func(context.Context, string) error) (err error) {
	dir, err := os.MkdirTemp(c.Dir, buildPrefix+name+"-")
	if err != nil {
		return fmt.Errorf("building %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveTree(dir))
		}
	}()
	// MkdirTemp makes it 0700; roots that are built in it must be traversable.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("building %s: %w", name, err)
	}
	if err := build(ctx, dir); err != nil {
		return fmt.Errorf("building %s: %w", name, err)
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("building %s: %w", name, err)
	}
	left, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("building %s: it left %s mounted", name, strings.Join(left, ", "))
	}
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	c.reuse(final) // one clock for all uses, also the first
	return nil
}

// reuse reports whether the artefact is there, and marks it as just used.
func (c *Cache) reuse(final string) bool {
	if _, err := os.Stat(final); err != nil {
		return false
	}
	now := c.now()
	_ = os.Chtimes(final, now, now) // only the order of pruning hangs on it
	return true
}

// lock takes the build lock of a name. The kernel drops it with the process.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, "."+name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		if !told {
			told = true
			c.notify(Event{Name: name, What: Waiting})
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another build of %s: %w", name, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// sweep removes what killed builds of this name left. The lock is held, so
// nobody is building it.
func (c *Cache) sweep(name string) error {
	left, err := filepath.Glob(filepath.Join(c.Dir, buildPrefix+name+"-*"))
	if err != nil {
		return fmt.Errorf("sweeping the cache: %w", err)
	}
	for _, dir := range left {
		// "tools-x" must not sweep the builds of "tools-x-y".
		if strings.Contains(strings.TrimPrefix(filepath.Base(dir), buildPrefix+name+"-"), "-") {
			continue
		}
		if err := RemoveTree(dir); err != nil {
			return err
		}
	}
	return nil
}

// prune removes the artefacts of a name that were used longest ago.
func (c *Cache) prune(name, final string) error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return fmt.Errorf("pruning the cache: %w", err)
	}
	type artefact struct {
		dir  string
		used time.Time
	}
	var old []artefact
	for _, e := range entries {
		stem, sum, ok := cutLast(e.Name(), "-")
		if !ok || stem != name || len(sum) != sumLength {
			continue
		}
		dir := filepath.Join(c.Dir, e.Name())
		if info, err := e.Info(); err == nil && dir != final {
			old = append(old, artefact{dir, info.ModTime()})
		}
	}
	slices.SortFunc(old, func(a, b artefact) int { return cmp.Or(b.used.Compare(a.used), strings.Compare(a.dir, b.dir)) })
	for i, a := range old {
		if i+1 < keep {
			continue
		}
		if err := RemoveTree(a.dir); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) notify(e Event) {
	if c.Notify != nil {
		c.Notify(e)
	}
}

func (c *Cache) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// RemoveTree removes a directory that may have had mounts in it. They are
// detached first: removing through a bind mount would empty the host's /dev.
func RemoveTree(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("removing a tree: %w", err)
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("removing %s: unmounting %s first: %w", dir, m, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}

// mountsBelow lists the mount points in dir, outer ones first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer f.Close()
	var found []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// proc(5): the fifth field is the mount point, blanks as \040.
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return found, nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
