// Package namespace makes network namespaces and runs code and processes in
// them.
//
// A Namespace owns one operating-system thread that lives in it from beginning
// to end. Processes are forked from that thread, so that the kernel kills them
// if the lab dies (PR_SET_PDEATHSIG follows the forking thread), and sockets
// opened on it belong to the namespace for good, whoever uses them later.
//
// A namespace has no route out but the links that its maker adds.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace, named by a file in a directory.
type Namespace struct {
	// Name is the file's name: "isp".
	Name string

	path   string
	handle netns.NsHandle
	links  *netlink.Handle
	calls  chan func()

	mu     sync.Mutex
	closed bool
}

// Options of a namespace that are not just links.
type Options struct {
	// Dir holds the file by which the namespace can be found from outside, as
	// `ip netns` expects it: /run/netns.
	Dir string
	// ResolvConf, if not empty, is what processes in the namespace see as
	// /etc/resolv.conf. It costs them a mount namespace of their own, which
	// does not see what is mounted outside later.
	ResolvConf string
}

// New makes the namespace called name, with its loopback interface up. It needs
// CAP_SYS_ADMIN.
func New(name string, o Options) (*Namespace, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making namespace %s: %w", name, err)
	}
	n := &Namespace{Name: name, path: filepath.Join(o.Dir, name), calls: make(chan func())}
	file, err := os.OpenFile(n.path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("making namespace %s: %w; if no lab runs, remove it with `ip netns delete %s`", name, err, name)
	}
	file.Close()

	born := make(chan error, 1)
	tid := 0
	go func() {
		// Never unlocked: the runtime ends a thread whose goroutine ends locked,
		// and nobody inherits its namespaces.
		runtime.LockOSThread()
		tid = unix.Gettid()
		if err := enter(o.ResolvConf); err != nil {
			born <- err
			return
		}
		born <- nil
		for f := range n.calls {
			f()
		}
	}()
	err = <-born
	if err == nil {
		from := fmt.Sprintf("/proc/self/task/%d/ns/net", tid)
		if err = unix.Mount(from, n.path, "", unix.MS_BIND, ""); err == nil {
			n.handle, err = netns.GetFromPath(n.path)
		}
	}
	if err == nil {
		n.links, err = netlink.NewHandleAt(n.handle)
	}
	if err == nil {
		err = n.Up("lo")
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("making namespace %s: %w", name, err)
	}
	return n, nil
}

// enter moves the calling thread into new namespaces.
func enter(resolvConf string) error {
	flags := unix.CLONE_NEWNET
	if resolvConf != "" {
		flags |= unix.CLONE_NEWNS | unix.CLONE_FS
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unsharing: %w (this needs root)", err)
	}
	if resolvConf == "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	return bindResolvConf(resolvConf)
}

// bindResolvConf puts text over /etc/resolv.conf in the thread's own mounts. The
// text lives in a tmpfs that only these mounts know: nothing of it is left on
// the disk.
func bindResolvConf(text string) error {
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return fmt.Errorf("finding /etc/resolv.conf: %w", err)
	}
	const stage = "/mnt"
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k"); err != nil {
		return fmt.Errorf("mounting a tmpfs for resolv.conf: %w", err)
	}
	file := filepath.Join(stage, "resolv.conf")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing resolv.conf: %w", err)
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding resolv.conf: %w", err)
	}
	// The bind keeps the file alive; the tmpfs itself must not hide /mnt.
	return unix.Unmount(stage, unix.MNT_DETACH)
}

// Do runs f on the namespace's own thread and waits for it. f must be short:
// calls are served one at a time.
func (n *Namespace) Do(f func() error) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return fmt.Errorf("entering namespace %s: it is closed", n.Name)
	}
	done := make(chan error, 1)
	n.calls <- func() { done <- f() }
	n.mu.Unlock()
	return <-done
}

// Start starts cmd in the namespace, in a process group of its own, to be
// killed by the kernel if this process dies.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return n.Do(cmd.Start)
}

// Run starts cmd in the namespace and waits for it.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Listen listens on an address of the namespace; the address may still be
// missing (IP_FREEBIND), as that of a tunnel that comes up later.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		})
		return errors.Join(cerr, err)
	}}
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening in namespace %s: %w", n.Name, err)
	}
	return l, nil
}

// DialContext dials an IP address from inside the namespace. It fits
// http.Transport.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	// A thread of its own: connecting may take long, and Do is for short calls.
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := netns.Set(n.handle); err != nil {
			done <- result{err: err}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("dialling from namespace %s: %w", n.Name, r.err)
	}
	return r.conn, nil
}

// Path is the file that names the namespace.
func (n *Namespace) Path() string { return n.path }

// FD is the namespace's descriptor, open until Close.
func (n *Namespace) FD() int { return int(n.handle) }

// Close ends the namespace's thread, and with it every process that was started
// here, and removes its name. The kernel removes the namespace, its links and
// rules when the last socket of it is closed.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	close(n.calls)
	if n.links != nil {
		n.links.Close()
	}
	var errs []error
	if n.handle.IsOpen() && n.handle != 0 {
		errs = append(errs, n.handle.Close())
	}
	if err := unix.Unmount(n.path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmounting %s: %w", n.path, err))
	}
	errs = append(errs, os.Remove(n.path))
	return errors.Join(errs...)
}
