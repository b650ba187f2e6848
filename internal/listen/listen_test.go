package listen

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	open := func() (net.Listener, error) {
		return Unix(t.Context(), path, 0o660, "the status socket", "veilor-mesh")
	}
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v; want 0660", info.Mode(), err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "opening the status socket: somebody answers on "+path+": is another veilor-mesh running?") {
		t.Errorf("while somebody answers: %v", err)
	}
	// Killed, it leaves its socket behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = open(); err != nil {
		t.Fatalf("after one that is gone: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "no socket; move it away") {
		t.Errorf("over a file: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "somebody's" {
		t.Errorf("the file: %q, %v", data, err)
	}
}

func TestPause(t *testing.T) {
	if !Pause(nil) {
		t.Error("nothing ended, and nobody tries again")
	}
	done := make(chan struct{})
	close(done)
	if Pause(done) {
		t.Error("it is tried again after the end")
	}
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
