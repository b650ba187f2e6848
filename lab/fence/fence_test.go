// Package fence_test runs the real tailscaled behind the product's fence, on a
// machine whose DNS is dead, and looks at everything that leaves.
package fence_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/fence"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// control is the only server of the directory. Nobody answers there; how
// tailscaled behaves then is the question.
var control = netip.MustParseAddr("10.88.3.10")

const (
	// waitLimit is for tailscaled to do what it does within seconds.
	waitLimit = 90 * time.Second
	// enough attempts have been stopped when so many were.
	enough = 4
)

// capture is a TUN device that swallows what leaves, and remembers it.
type capture struct {
	mu   sync.Mutex
	seen map[string]int
	news chan struct{}
}

// strangers are what left for somebody else than the control server.
func (c *capture) strangers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, s := range slices.Sorted(maps.Keys(c.seen)) {
		if !strings.Contains(s, " "+control.String()+":") {
			all = append(all, fmt.Sprintf("%s (%d)", s, c.seen[s]))
		}
	}
	return all
}

func (c *capture) read(f *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		if s := destination(buf[:n]); s != "" {
			c.mu.Lock()
			c.seen[s]++
			c.mu.Unlock()
			select {
			case c.news <- struct{}{}:
			default:
			}
		}
	}
}

// destination is "tcp ADDRESS:PORT" of a unicast packet.
func destination(b []byte) string {
	var addr netip.Addr
	var proto byte
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		addr, proto, rest = netip.AddrFrom4([4]byte(b[16:20])), b[9], b[int(b[0]&15)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		addr, proto, rest = netip.AddrFrom16([16]byte(b[24:40])), b[6], b[40:]
	default:
		return ""
	}
	if addr.IsMulticast() { // the kernel's own: MLD, router solicitation
		return ""
	}
	name := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
	if name == "" || len(rest) < 4 {
		return fmt.Sprintf("protocol %d %s:", proto, addr)
	}
	return name + " " + netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[2:])).String()
}

// machine is a namespace with a default route into the capture.
func machine(t *testing.T, name string) (*namespace.Namespace, *capture) {
	t.Helper()
	// Nobody answers on the resolver's address: the cache is empty, the DNS dead.
	ns, err := namespace.New(name, namespace.Options{Dir: t.TempDir(), ResolvConf: "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	var f *os.File
	err = ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq("wan0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "wan0")
		link, err := netlink.LinkByName("wan0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.88.1.10/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		everywhere, err := netlink.ParseIPNet("0.0.0.0/0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere})
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{seen: map[string]int{}, news: make(chan struct{}, 1)}
	go c.read(f)
	t.Cleanup(func() { f.Close() })
	return ns, c
}

// run starts tailscaled in ns and in the control group, and has it join.
func run(t *testing.T, p program.Set, ns *namespace.Namespace, group *os.File) {
	t.Helper()
	// Not t.TempDir: its path is longer than a socket's may be.
	dir, err := os.MkdirTemp("", "ts")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	start := func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "TS_NO_LOGS_NO_SUPPORT=1", "TS_DEBUG_FIREWALL_MODE=nftables")
		if group != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		}
		if err := ns.Start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	start(exec.Command(p.Tailscaled, "--no-logs-no-support", "--tun=tailscale0", "--port=41641",
		"--statedir="+dir, "--state="+filepath.Join(dir, "state"), "--socket="+socket))
	start(exec.Command(p.Tailscale, "--socket="+socket, "up", "--login-server=https://hs.lab.test",
		"--auth-key=hskey-auth-none-none", "--accept-dns=false", "--timeout="+waitLimit.String()))
}

// controlGroup makes one like tailscaled.service's; nil if there are none here.
func controlGroup(t *testing.T) (root, name string, fd *os.File) {
	t.Helper()
	root = t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Logf("not tried: the control group (%v)", err)
		return "", "", nil
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	slice := "veilor-lab-" + strconv.Itoa(os.Getpid())
	name = slice + "/tailscaled.service"
	if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
		t.Logf("not tried: the control group (%v)", err)
		return "", "", nil
	}
	t.Cleanup(func() {
		for _, d := range []string{name, slice} {
			if err := os.Remove(filepath.Join(root, d)); err != nil {
				t.Log(err)
			}
		}
	})
	fd, err := os.Open(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return root, name, fd
}

// Without the fence tailscaled asks its vendor's servers as soon as the control
// server's name cannot be resolved; with it, not one packet leaves for anybody
// but the control server.
func TestTailscaledAsksNobodyElse(t *testing.T) {
	gate.Root(t, "the fence")
	dir := gate.Cache(t, "the fence")
	p, err := program.Build(t.Context(), "../..", filepath.Join(dir, "bin"), t.Output())
	if err != nil {
		t.Fatal(err)
	}

	t.Run("no fence", func(t *testing.T) {
		ns, c := machine(t, "bare")
		run(t, p, ns, nil)
		ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
		defer cancel()
		for len(c.strangers()) == 0 {
			select {
			case <-c.news:
			case <-ctx.Done():
				t.Fatalf("tailscaled asked nobody in %v; so the fence cannot be shown", waitLimit)
			}
		}
		t.Logf("asked: %v", c.strangers())
	})

	t.Run("fence", func(t *testing.T) {
		root, group, fd := controlGroup(t)
		ns, c := machine(t, "fenced")
		in := nftables.WithNetNSFd(ns.FD())
		if err := fence.Load(fence.Config{Servers: []netip.Addr{control}, Group: group, Root: root}, in); err != nil {
			t.Fatal(err)
		}
		run(t, p, ns, fd)
		ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
		defer cancel()
		look := time.NewTicker(time.Second)
		defer look.Stop()
		var counts map[string]uint64
		for counts[fence.NoTCP] < enough {
			select {
			case <-look.C:
			case <-ctx.Done():
				t.Fatalf("fewer than %d attempts were stopped in %v: %v", enough, waitLimit, counts)
			}
			if counts, err = fence.Counts(in); err != nil {
				t.Fatal(err)
			}
		}
		if s := c.strangers(); s != nil {
			t.Errorf("left for somebody else: %v", s)
		}
		t.Logf("stopped: %d attempts by TCP; DNS past the resolver %d, anything else %d", counts[fence.NoTCP], counts[fence.NoDNS], counts[fence.NoRest])
	})
}
