package pins

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var town = []Host{
	{"hs.example.org", []netip.Addr{netip.MustParseAddr("5.9.10.10"), netip.MustParseAddr("2a01:4f8:1::10")}},
	{"derp.example.org", []netip.Addr{netip.MustParseAddr("5.9.10.11")}},
}

const (
	block = begin + "\n5.9.10.10 hs.example.org\n2a01:4f8:1::10 hs.example.org\n5.9.10.11 derp.example.org\n" + end + "\n"
	plain = "127.0.0.1 localhost\n::1 localhost\n\n# mine\n10.0.0.2\tprinter # in the hall\n"
)

func TestRender(t *testing.T) {
	for _, c := range []struct{ name, old, want string }{
		{"empty", "", block},
		{"first time", plain, block + plain},
		{"again", block + plain, block + plain},
		{"in the middle", "a\n" + block + plain, block + "a\n" + plain},
		{"twice", block + plain + block, block + plain},
		{"old addresses", strings.Replace(block, "5.9.10.10", "1.2.3.4", 1) + plain, block + plain},
		{"end is gone", strings.Replace(block, end+"\n", "", 1) + "# mine\n1.1.1.1 a b\n", block + "# mine\n1.1.1.1 a b\n"},
		{"begin is gone", "# mine\n" + end + "\n", block + "# mine\n"},
		{"no end of line", "127.0.0.1 localhost", block + "127.0.0.1 localhost"},
		{"other line ends", "127.0.0.1 localhost\r\n", block + "127.0.0.1 localhost\r\n"},
	} {
		got, others, err := Render([]byte(c.old), town)
		if err != nil || others != nil {
			t.Errorf("%s: %v, %v", c.name, others, err)
		}
		if diff := cmp.Diff(c.want, string(got)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
	if got, _, err := Render([]byte(block+plain), nil); err != nil || string(got) != plain {
		t.Errorf("no pins: %q, %v", got, err)
	}
	_, others, err := Render([]byte("10.6.6.6 www HS.example.org\n#10.6.6.7 hs.example.org\n"), town)
	if diff := cmp.Diff([]string{"10.6.6.6 HS.example.org"}, others); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, h := range []Host{
		{"a\n6.6.6.6 bank.example", town[0].Addresses},
		{"a b", town[0].Addresses},
		{"", town[0].Addresses},
		{"a.example", []netip.Addr{{}}},
		{"a.example", []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
	} {
		if got, _, err := Render(nil, []Host{h}); err == nil {
			t.Errorf("%v: %q", h, got)
		}
	}
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "real", "hosts")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(plain), 0o640); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		if err := os.Chown(file, 7, 8); err != nil {
			t.Fatal(err)
		}
	}
	labelled := unix.Setxattr(file, "user.label", []byte("net_conf_t"), 0) == nil
	link := filepath.Join(dir, "hosts")
	if err := os.Symlink("real/hosts", link); err != nil {
		t.Fatal(err)
	}
	if changed, _, err := Apply(link, town); err != nil || !changed {
		t.Fatalf("%v, %v", changed, err)
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if changed, _, err := Apply(link, town); err != nil || changed {
		t.Errorf("again: %v, %v", changed, err)
	}
	after, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("a file that says what it should was written again")
	}
	text, err := os.ReadFile(file)
	if err != nil || string(text) != block+plain {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	if after.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", after.Mode())
	}
	if s := after.Sys().(*syscall.Stat_t); root && (s.Uid != 7 || s.Gid != 8) {
		t.Errorf("owner %d:%d", s.Uid, s.Gid)
	}
	if labelled {
		value := make([]byte, 64)
		n, err := unix.Getxattr(file, "user.label", value)
		if err != nil || string(value[:n]) != "net_conf_t" {
			t.Errorf("label %q, %v", value[:max(n, 0)], err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if changed, _, err := Apply(filepath.Join(dir, "new"), town); err != nil || !changed {
		t.Errorf("no file before: %v, %v", changed, err)
	}
	if _, _, err := Apply(dir, town); err == nil {
		t.Error("a directory was written")
	}
}

func FuzzRender(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte(block + plain))
	f.Add([]byte(begin + "\n" + begin + "\n"))
	f.Fuzz(func(t *testing.T, old []byte) {
		once, _, err := Render(old, town)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(once, []byte(block)) {
			t.Fatalf("the block is not first: %q", once)
		}
		twice, _, err := Render(once, town)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v: %q and then %q", err, once, twice)
		}
	})
}
