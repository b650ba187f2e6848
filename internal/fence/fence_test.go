package fence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/tsconst"
)

// insideEnv makes the test binary a laptop in a network namespace.
const insideEnv = "VEILOR_TEST_FENCE_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := inside(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Real packets of marked sockets leave or do not; the same packets without the
// mark, and with it but without the fence, all leave, so that each is known to
// have been stopped by the fence.
func TestPackets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(strings.TrimSpace(out.String()))
}

var servers = []netip.Addr{
	netip.MustParseAddr("5.9.10.10"), netip.MustParseAddr("5.9.10.11"), netip.MustParseAddr("2a01:4f8:1::10"),
	netip.MustParseAddr("5.9.10.10"), // the relay may be the control server
}

// probe is one packet that tailscaled might send.
type probe struct {
	what string
	tcp  bool
	from uint16 // source port; 0 for any
	to   string
	stun bool
	// passes says whether the fence lets it out.
	passes bool
	rule   string
}

var probes = []probe{
	{what: "control", tcp: true, to: "5.9.10.10:443", passes: true, rule: Servers4},
	{what: "control, port 80", tcp: true, to: "5.9.10.10:80", passes: true, rule: Servers4},
	{what: "control, IPv6", tcp: true, to: "[2a01:4f8:1::10]:443", passes: true, rule: Servers6},
	{what: "relay", tcp: true, to: "5.9.10.11:443", passes: true, rule: Servers4},
	{what: "STUN of the relay", from: wireguardPort, to: "5.9.10.11:3478", stun: true, passes: true, rule: Servers4},
	{what: "a peer", from: wireguardPort, to: "93.184.1.1:41641", passes: true, rule: Peers},
	{what: "a peer, IPv6", from: wireguardPort, to: "[2a00:1450::1]:1234", passes: true, rule: Peers},
	{what: "the router's PCP", to: "192.168.1.1:5351", passes: true, rule: Router},

	{what: "the vendor's relay", tcp: true, to: "199.38.181.104:443", rule: NoTCP},
	{what: "the vendor's relay, IPv6", tcp: true, to: "[2607:f740:f::bc]:443", rule: NoTCP},
	{what: "the neighbour of control", tcp: true, to: "5.9.10.12:443", rule: NoTCP},
	{what: "UPnP", tcp: true, to: "192.168.1.1:5000", rule: NoTCP},
	{what: "the vendor's STUN", from: wireguardPort, to: "199.38.181.104:3478", stun: true, rule: NoSTUN},
	{what: "DNS", to: "9.9.9.9:53", rule: NoDNS},
	{what: "DNS of the router", to: "192.168.1.1:53", rule: NoDNS},
	{what: "DNS from the port of peers", from: wireguardPort, to: "9.9.9.9:53", rule: NoDNS},
	{what: "DNS over TCP", tcp: true, to: "9.9.9.9:53", rule: NoDNS},
	{what: "DNS over TLS", tcp: true, to: "9.9.9.9:853", rule: NoDNS},
	{what: "DNS of control", to: "5.9.10.10:53", rule: NoDNS},
	{what: "through Yggdrasil", from: wireguardPort, to: "[200:b649::1]:41641", rule: NoTunnel},
	{what: "SSDP", to: "192.168.1.1:1900", rule: NoRest},
	{what: "QUIC", to: "199.38.181.104:443", rule: NoRest},
	{what: "PCP of the Internet", to: "8.8.8.8:5351", rule: NoRest},
}

// inside is the laptop: one interface, from which everything that leaves is read.
func inside() error {
	// A TUN device: what leaves is read here, and needs no neighbour.
	capture, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a TUN device: %w", err)
	}
	req, err := unix.NewIfreq("wan0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(capture, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("adding an interface: %w", err)
	}
	link, err := netlink.LinkByName("wan0")
	if err != nil {
		return err
	}
	for _, name := range []string{"lo", "wan0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	for _, a := range []string{"192.168.1.5/24", "2001:db8::5/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("adding %s: %w", a, err)
		}
	}
	for _, p := range []string{"0.0.0.0/0", "::/0"} {
		dst, err := netlink.ParseIPNet(p)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			return fmt.Errorf("routing %s: %w", p, err)
		}
	}
	const mark = tsconst.LinuxBypassMarkNum
	if err := try(capture, "no fence", mark, func(probe) bool { return true }); err != nil {
		return err
	}
	if err := Load(Config{Servers: servers}); err != nil {
		return err
	}
	if err := try(capture, "fence, mark", mark, func(p probe) bool { return p.passes }); err != nil {
		return err
	}
	if err := try(capture, "fence, mark beside others' bits", mark|0x1, func(p probe) bool { return p.passes }); err != nil {
		return err
	}
	counts, err := Counts()
	if err != nil {
		return err
	}
	for _, p := range probes {
		if counts[p.rule] == 0 {
			return fmt.Errorf("%s: the rule %q has counted nothing: %v", p.what, p.rule, counts)
		}
	}
	for other, m := range map[string]int{"no mark": 0, "a subnet router's mark": tsconst.LinuxSubnetRouteMarkNum} {
		if err := try(capture, "fence, "+other, m, func(probe) bool { return true }); err != nil {
			return err
		}
	}
	// Addresses move: one transaction, and no second table.
	if err := Load(Config{Servers: []netip.Addr{netip.MustParseAddr("199.38.181.104")}}); err != nil {
		return err
	}
	moved := func(p probe) bool {
		to := netip.MustParseAddrPort(p.to)
		switch {
		case p.rule == NoDNS || p.rule == NoTunnel:
			return false
		case to.Addr() == netip.MustParseAddr("199.38.181.104"):
			return true
		}
		return p.rule == Peers || p.rule == Router
	}
	if err := try(capture, "fence, other servers", mark, moved); err != nil {
		return err
	}
	if err := Load(Config{}); err != nil {
		return err
	}
	if err := try(capture, "fence, no servers", mark, func(p probe) bool { return p.rule == Peers || p.rule == Router }); err != nil {
		return err
	}
	if err := Load(Config{Servers: servers, Group: "no.slice/such.service"}); !errors.Is(err, ErrNoGroup) {
		return fmt.Errorf("a control group that is not there: %v", err)
	}
	if err := try(capture, "fence, no group", mark, func(p probe) bool { return p.passes }); err != nil {
		return err
	}
	if err := byGroup(capture); err != nil {
		return err
	}
	for range 2 { // the second finds nothing
		if err := Remove(); err != nil {
			return err
		}
	}
	return try(capture, "fence removed", mark, func(probe) bool { return true })
}

// byGroup is about a process in tailscaled's control group whose sockets have no
// mark.
func byGroup(capture int) error {
	root, err := os.MkdirTemp("", "cgroup")
	if err != nil {
		return err
	}
	defer os.Remove(root)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		fmt.Printf("not tried: the control group (%v)\n", err)
		return nil
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	slice := "veilor-test-" + strconv.Itoa(os.Getpid())
	group := slice + "/tailscaled.service"
	if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
		fmt.Printf("not tried: the control group (%v)\n", err)
		return nil
	}
	enter := func(g string) error {
		return os.WriteFile(filepath.Join(root, g, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	defer func() {
		enter(".")
		os.Remove(filepath.Join(root, group))
		os.Remove(filepath.Join(root, slice))
	}()
	id, level, err := groupID(root, group)
	if err != nil {
		return err
	}
	if level != 2 {
		return fmt.Errorf("the group's level is %d", level)
	}
	if err := load(servers, &id, level, nil); err != nil {
		fmt.Printf("not tried: the control group (%v)\n", err)
		return nil
	}
	if err := try(capture, "group fence, outside it", 0, func(probe) bool { return true }); err != nil {
		return err
	}
	if err := enter(group); err != nil {
		return err
	}
	return try(capture, "group fence, in it, no mark", 0, func(p probe) bool { return p.passes })
}

// sentinel is where the packet goes after which the capture is over.
var sentinel = netip.MustParseAddrPort("192.168.1.9:9")

// try sends every probe and compares what left.
func try(capture int, what string, mark int, want func(probe) bool) error {
	for _, p := range probes {
		if err := send(p, mark, want(p)); err != nil {
			return fmt.Errorf("%s: %s: %w", what, p.what, err)
		}
	}
	// Not fenced, whatever group this process is in: to a peer from its port.
	if err := send(probe{from: wireguardPort, to: sentinel.String()}, 0, true); err != nil {
		return err
	}
	left := map[string]bool{}
	for buf := make([]byte, 1<<16); !left["udp "+sentinel.String()]; {
		n, err := unix.Read(capture, buf)
		if err != nil {
			return fmt.Errorf("capturing: %w", err)
		}
		if d := destinationOf(buf[:n]); d != "" {
			left[d] = true
		}
	}
	var wrong []string
	n := 0
	for _, p := range probes {
		got := left[protocol(p)+" "+p.to]
		if got != want(p) {
			wrong = append(wrong, fmt.Sprintf("%s: left %v, want %v", p.what, got, want(p)))
		}
		if got {
			n++
		}
	}
	if wrong != nil {
		slices.Sort(wrong)
		return fmt.Errorf("%s:\n%s", what, strings.Join(wrong, "\n"))
	}
	fmt.Printf("%s: %d of %d left\n", what, n, len(probes))
	return nil
}

func protocol(p probe) string {
	if p.tcp {
		return "tcp"
	}
	return "udp"
}

// send makes one packet leave, or try to.
func send(p probe, mark int, passes bool) error {
	to := netip.MustParseAddrPort(p.to)
	domain, typ := unix.AF_INET, unix.SOCK_DGRAM
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if p.tcp {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return err
	}
	var here, there unix.Sockaddr = &unix.SockaddrInet4{Port: int(p.from)}, &unix.SockaddrInet4{Port: int(to.Port())}
	if to.Addr().Is6() {
		here, there = &unix.SockaddrInet6{Port: int(p.from)}, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	} else {
		there.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	}
	if p.from != 0 {
		if err := unix.Bind(fd, here); err != nil {
			return err
		}
	}
	if p.tcp {
		err := unix.Connect(fd, there)
		if !passes && p.rule == NoTCP {
			// The reset is there when connect returns: it never left the machine.
			if errors.Is(err, unix.EINPROGRESS) {
				code, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
				err = unix.Errno(code)
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("want a refusal at once, got %v", err)
			}
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	}
	payload := make([]byte, 32)
	if p.stun {
		binary.BigEndian.PutUint32(payload[4:], stunCookie)
	}
	if err := unix.Sendto(fd, payload, 0, there); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// destinationOf is protocol and address of an IP packet.
func destinationOf(b []byte) string {
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
	name := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
	if name == "" || len(rest) < 4 {
		return ""
	}
	return name + " " + netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[2:])).String()
}
