package meshsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Await returns when somebody answers on the socket. While nobody does it sleeps
// until the kernel says that something changed where the socket will be
// (inotify(7)); it asks again and again for nothing.
func (c Client) Await(ctx context.Context) error {
	for {
		again, err := c.awaitOnce(ctx)
		if err != nil || !again {
			return err
		}
	}
}

// awaitOnce waits for one change on the way to the socket; again is false if it
// answers.
func (c Client) awaitOnce(ctx context.Context) (again bool, err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return false, fmt.Errorf("waiting for %s: %w", c.Path, os.NewSyscallError("inotify_init1", err))
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	// The directories of the socket, from its own up: systemd removes its own
	// while the daemon is stopped. Something must be made in the lowest one that
	// is there, or that one itself must go. IN_ATTRIB is the change of mode by
	// which Listen ends.
	const what = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	for dir := filepath.Dir(filepath.Clean(c.Path)); ; dir = filepath.Dir(dir) {
		_, err := unix.InotifyAddWatch(fd, dir, what|unix.IN_ONLYDIR)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return false, fmt.Errorf("waiting for %s: watching %s: %w", c.Path, dir, err)
		}
	}
	// Asked after the watch was laid, so that nothing is missed between.
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Path); err == nil {
		conn.Close()
		return false, nil
	}
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := events.Read(make([]byte, 4096)); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, fmt.Errorf("waiting for %s: %w", c.Path, err)
	}
	return true, nil
}
