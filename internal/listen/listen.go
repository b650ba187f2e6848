// Package listen opens the sockets that a daemon serves on, and says what to do
// when one cannot be had.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// TCP listens on addr. what says for whom, in errors.
func TCP(ctx context.Context, addr netip.AddrPort, what string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // splice(2) wants plain TCP, and loopback has one path
	// No client on loopback vanishes without a word: Go's question every 15 s
	// would only wake the machine.
	lc.KeepAlive = -1
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, explain(err, "tcp", "-ltnp", addr, what)
	}
	return l.(*net.TCPListener), nil
}

// UDP binds addr. what says for whom, in errors.
func UDP(ctx context.Context, addr netip.AddrPort, what string) (*net.UDPConn, error) {
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, explain(err, "udp", "-lunp", addr, what)
	}
	return c.(*net.UDPConn), nil
}

// answerLimit is how long a process at a socket may take to be known as alive; a
// local one takes microseconds.
const answerLimit = 5 * time.Second

// Unix listens on the socket at path, to which those may connect whom mode lets
// write. It takes the path over from a process that is gone, and from nobody else.
// what says for whom, and unit which daemon it is, in errors.
func Unix(ctx context.Context, path string, mode fs.FileMode, what, unit string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, fmt.Errorf("opening %s: %w", what, err) }
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(err)
	case info.Mode().Type() != fs.ModeSocket:
		return fail(fmt.Errorf("%s is there and no socket; move it away", path))
	default:
		d := net.Dialer{Timeout: answerLimit}
		c, err := d.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			c.Close()
			return fail(fmt.Errorf("somebody answers on %s: is another %s running? (`systemctl status %s`)", path, unit, unit))
		case !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist): // perhaps it is only busy
			return fail(fmt.Errorf("asking who listens on %s: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return fail(err)
	}
	// Until here its mode is what the umask leaves, which lets nobody else write.
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return fail(err)
	}
	return l, nil
}

// ComplainEvery is how often it is logged that clients are refused or have to wait,
// for the same reason.
const ComplainEvery = time.Hour

// AcceptAgain is when to try again where there was no file or memory for a connection.
// The client waits in the kernel's queue meanwhile.
const AcceptAgain = 100 * time.Millisecond

// Pause waits after a connection could not be accepted, for connections that end are
// what helps, and that takes a moment. It says whether to try again: not when done.
func Pause(done <-chan struct{}) bool {
	t := time.NewTimer(AcceptAgain)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-done:
		return false
	}
}

// explain adds what a person can do about err.
func explain(err error, network, flags string, addr netip.AddrPort, what string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening for %s: %s port %d of %s is taken: %w; `ss %s 'sport = :%d'` run as root says by whom; stop that program or let it listen on another address",
			what, network, addr.Port(), addr.Addr(), syscall.EADDRINUSE, flags, addr.Port())
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening for %s: %s %s: %w; ports below 1024 need CAP_NET_BIND_SERVICE, which veilor-mesh.service has",
			what, network, addr, syscall.EACCES)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listening for %s: %s %s: %w; the loopback interface must be up (`ip link set lo up`)",
			what, network, addr, syscall.EADDRNOTAVAIL)
	}
	return fmt.Errorf("listening for %s: %w", what, err)
}
