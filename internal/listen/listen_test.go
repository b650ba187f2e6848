package listen

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func TestTaken(t *testing.T) {
	free := netip.MustParseAddrPort("127.0.0.1:0")
	l, err := TCP(t.Context(), free, "a test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := UDP(t.Context(), free, "a test")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()

	_, err = TCP(t.Context(), netip.MustParseAddrPort(l.Addr().String()), "x.veilor")
	check(t, err, syscall.EADDRINUSE, "listening for x.veilor: tcp port", "is taken", "`ss -ltnp 'sport = :")
	_, err = UDP(t.Context(), netip.MustParseAddrPort(u.LocalAddr().String()), "the zone veilor")
	check(t, err, syscall.EADDRINUSE, "listening for the zone veilor: udp port", "is taken", "`ss -lunp 'sport = :")
	_, err = TCP(t.Context(), netip.MustParseAddrPort("192.0.2.1:1"), "x.veilor")
	check(t, err, syscall.EADDRNOTAVAIL, "loopback interface must be up")
}

func check(t *testing.T, err, is error, parts ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("error = %v, want %v", err, is)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}
