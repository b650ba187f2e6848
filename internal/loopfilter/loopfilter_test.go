package loopfilter

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

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
	listen := func(a netip.Addr) {
		fd := socket(t, forwarder)
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 4430, Addr: a.As4()}), unix.Listen(fd, 64)); err != nil {
			t.Fatal(err)
		}
	}
	other := netip.MustParseAddr("127.0.0.1")
	for _, a := range []netip.Addr{service, names, other} {
		listen(a)
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
