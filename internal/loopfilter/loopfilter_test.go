package loopfilter

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestLoginDefs(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Range
		bad  bool
	}{
		{"", people, false},
		{"# UID_MIN 5\nUID_MIN\t\t 1000\nUID_MAX 60000\nSYS_UID_MIN 201\n", Range{1000, 60000}, false},
		{"UID_MIN 500\n", Range{500, 60000}, false},
		{"UID_MIN 0\n", people, true},
		{"UID_MAX 4294967295\n", people, true},
		{"UID_MAX 900\n", people, true},
		{"UID_MIN a\n", people, true},
	} {
		got, err := parseLoginDefs(strings.NewReader(tt.text))
		if got != tt.want && !tt.bad || (err != nil) != tt.bad {
			t.Errorf("%q: %v, %v; want %v", tt.text, got, err, tt.want)
		}
	}
	if got, err := logins(fstest.MapFS{}); err != nil || got != people {
		t.Errorf("no login.defs: %v, %v", got, err)
	}
}

func FuzzLoginDefs(f *testing.F) {
	f.Add("UID_MIN 1000\nUID_MAX 60000\n")
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseLoginDefs(strings.NewReader(text)); err == nil && (r.has(0) || r.has(61184) || r.First > r.Last) {
			t.Errorf("%v lets daemons in", r)
		}
	})
}

func TestForMachine(t *testing.T) {
	names := netip.MustParseAddr("127.83.0.53")
	root := fstest.MapFS{
		"etc/login.defs":   {Data: []byte("UID_MIN 1000\nUID_MAX 50000\n")},
		"usr/lib/passwd":   {Data: []byte("root:x:0:0::/root:/bin/sh\nunbound:x:991:991::/:/sbin/nologin\nsystemd-resolve:x:193:193::/:/sbin/nologin\n")},
		"etc/passwd":       {Data: []byte("root:x:0:0::/root:/bin/bash\n+nis\n_veilor:!:980:980::/:/sbin/nologin\nunbound:x:990:990::/:/sbin/nologin\n")},
		"etc/passwd-other": {},
	}
	f, err := ForMachine(root, names, "_veilor")
	if err != nil {
		t.Fatal(err)
	}
	want := Filter{Users: []Range{{0, 0}, homed, {1000, 50000}, {980, 980}}, Resolvers: []uint32{990, 193}, Names: names}
	if diff := cmp.Diff(want, f, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	delete(root, "etc/passwd")
	if _, err := ForMachine(root, names, "_veilor"); err == nil || !strings.Contains(err.Error(), "there is no _veilor") {
		t.Errorf("without the forwarder's user: %v", err)
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n_veilor:!:980:980::/:/\n")
	f.Fuzz(func(t *testing.T, text string) {
		ids := map[string]uint32{}
		if parsePasswd(strings.NewReader(text), ids); len(ids) > strings.Count(text, "\n")+1 {
			t.Errorf("%d users", len(ids))
		}
	})
}

// TestUsers connects as several users to several addresses, in a namespace of
// its own.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: packet filters and other users need it")
	}
	// The thread is in the new namespace and dies with its goroutine.
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	service, names := netip.MustParseAddr("127.83.0.1"), netip.MustParseAddr("127.83.0.53")
	const resolver, forwarder = 998, 997
	f := Filter{Users: []Range{{0, 0}, people, homed, {forwarder, forwarder}}, Resolvers: []uint32{resolver}, Names: names}
	if err := f.Load(nftables.WithNetNSFd(int(ns))); err != nil {
		t.Fatal(err)
	}
	if err := f.Load(nftables.WithNetNSFd(int(ns))); err != nil {
		t.Fatalf("loading it again: %v", err)
	}
	// The server is the forwarder's: its answers must get through, too.
	other := netip.MustParseAddr("127.0.0.1")
	for _, a := range []netip.Addr{service, names, other} {
		listen(t, forwarder, a)
	}
	for _, tt := range []struct {
		uid  int
		to   netip.Addr
		want bool
	}{
		{0, service, true}, {1000, service, true}, {60000, service, true}, {60200, service, true}, {forwarder, service, true},
		{1, service, false}, {33, service, false}, {999, service, false}, {60514, service, false}, {61184, service, false}, {65534, service, false}, {100000, service, false},
		{resolver, service, false}, {resolver, names, true}, {33, names, false}, {1000, names, true},
		{33, other, true}, {resolver, other, true},
	} {
		err := connect(t, tt.uid, tt.to)
		if got := err == nil; got != tt.want {
			t.Errorf("user %d to %s: %v, want it to work: %t", tt.uid, tt.to, err, tt.want)
		}
		if !tt.want && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("user %d to %s: %v, want a refusal at once", tt.uid, tt.to, err)
		}
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		out, err := exec.Command(nft, "list", "table", "ip", Table).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "meta skuid 1000-60000 accept") {
			t.Errorf("nft does not read it back: %v\n%s", err, out)
		}
		if want := `iifname != "lo" ip daddr 127.83.0.0/16 counter packets 0 bytes 0 drop`; !strings.Contains(string(out), want) {
			t.Errorf("nft does not read back: %s\n%s", want, out)
		}
	}
}

// TestNeighbour connects from another machine, by a cable whose end here lets
// 127.0.0.0/8 in.
func TestNeighbour(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: packet filters and namespaces need it")
	}
	runtime.LockOSThread() // as in TestUsers
	neighbour, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	laptop, err := netns.New() // and here the thread stays
	if err != nil {
		t.Fatal(err)
	}
	defer laptop.Close()
	up := func(name, addr string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if addr != "" {
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	// The neighbour's lo stays down, so that 127.0.0.0/8 is not its own.
	there := func(f func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			if err := netns.Set(neighbour); err != nil {
				done <- err
				return
			}
			done <- f()
		}()
		return <-done
	}
	if err := errors.Join(
		netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(neighbour)}),
		up("lo", ""), up("eth0", "10.88.9.1/24"),
		os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0),
		there(func() error {
			if err := up("eth0", "10.88.9.2/24"); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{
				Dst: &net.IPNet{IP: Addresses.Addr().AsSlice(), Mask: net.CIDRMask(Addresses.Bits(), 32)}, Gw: net.IPv4(10, 88, 9, 1),
			})
		}),
	); err != nil {
		t.Fatal(err)
	}
	all := []netip.Addr{netip.MustParseAddr("127.83.0.1"), netip.MustParseAddr("127.83.0.53")}
	for _, a := range all {
		listen(t, 0, a)
	}
	dial := func(a netip.Addr) error {
		return there(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 4430).String(), answers)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	for _, a := range all {
		if err := dial(a); err != nil {
			t.Errorf("without the filter %s is not reached, so this tests nothing: %v", a, err)
		}
	}
	f := Filter{Users: []Range{{0, 0}}, Names: all[1]}
	if err := f.Load(nftables.WithNetNSFd(int(laptop))); err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if err := dial(a); err == nil {
			t.Errorf("a neighbour reaches %s", a)
		}
		if err := connect(t, 0, a); err != nil {
			t.Errorf("root of the laptop does not reach %s: %v", a, err)
		}
	}
}

// answers is how long a neighbour's connection may take; over a cable within one
// machine it takes less than a millisecond.
const answers = time.Second

// listen takes connections on port 4430 with a socket that belongs to uid.
func listen(t *testing.T, uid int, a netip.Addr) {
	t.Helper()
	fd := socket(t, uid)
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 4430, Addr: a.As4()}), unix.Listen(fd, 64)); err != nil {
		t.Fatal(err)
	}
}

// socket makes one that belongs to uid: to whoever's thread opened it.
func socket(t *testing.T, uid int) int {
	t.Helper()
	if err := unix.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// connect dials port 4430 from a socket that belongs to uid.
func connect(t *testing.T, uid int, a netip.Addr) error {
	for {
		fd := socket(t, uid)
		err := unix.Connect(fd, &unix.SockaddrInet4{Port: 4430, Addr: a.As4()})
		unix.Close(fd)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
