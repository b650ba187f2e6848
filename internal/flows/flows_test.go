package flows

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A dual-stack server's IPv4 peers are found by their IPv4 address. That Close
// ends connections, and no others, is tried in the lab.
func TestParseMapped(t *testing.T) {
	b := make([]byte, messageSize)
	b[0] = unix.AF_INET6
	mapped := netip.MustParseAddr("::ffff:100.64.0.9").As16()
	copy(b[4+4+16:], mapped[:])
	_, peer, ok := parse(b, unix.IPPROTO_TCP)
	if want := netip.MustParseAddr("100.64.0.9"); !ok || peer != want {
		t.Errorf("got %v, %t, want %v", peer, ok, want)
	}
}

// Only what no program has any more is left alone.
func TestDying(t *testing.T) {
	for _, c := range []struct {
		state, inode byte
		want         bool
	}{{1, 0, false}, {3, 0, false}, {5, 1, false}, {5, 0, true}, {9, 0, true}, {8, 0, false}} {
		b := make([]byte, messageSize)
		b[1], b[68] = c.state, c.inode
		if got := dying(b); got != c.want {
			t.Errorf("state %d, inode %d: got %t", c.state, c.inode, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, messageSize))
	f.Add([]byte{unix.AF_INET})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, peer, ok := parse(b, unix.IPPROTO_TCP); ok && (!peer.IsValid() || peer.Is4In6()) {
			t.Errorf("peer %v", peer)
		}
	})
}

// A connection with somebody else survives.
func TestCloseNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: destroying sockets needs CAP_NET_ADMIN")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done, err := Close(0, netip.MustParseAddr("100.127.255.254"))
	if err != nil || done.Sockets != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}
