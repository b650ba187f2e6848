package pins

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv makes the test binary the world of a laptop whose DNS lies.
const insideEnv = "VEILOR_TEST_PINS_INSIDE"

// lie is what the ISP's resolver says about every name.
const lie = "6.6.6.6"

func TestMain(m *testing.M) {
	if dir := os.Getenv(insideEnv); dir != "" {
		if err := inside(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The real resolvers, glibc's and Go's (which is tailscaled's), believe the pins
// and not the DNS, which lies about every name; a name that is not pinned shows
// that they do ask it.
func TestResolversBelieveThePins(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network and a mount namespace")
	}
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(plain), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Apply(filepath.Join(dir, "hosts"), town); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"resolv.conf":   "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
		"nsswitch.conf": "hosts: files dns\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
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

func inside(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	for _, name := range []string{"hosts", "resolv.conf", "nsswitch.conf"} {
		if err := unix.Mount(filepath.Join(dir, name), "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", name, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	var asked atomic.Int64
	liar := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(r)
		if q := r.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.ParseIP(lie)}}
		}
		w.WriteMsg(m)
	})
	pc, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		return err
	}
	go (&dns.Server{PacketConn: pc, Handler: liar}).ActivateAndServe()

	resolvers := map[string]func(string) (string, error){
		"getent": func(name string) (string, error) {
			out, err := exec.Command("getent", "ahosts", name).Output()
			var all []string
			for _, line := range strings.Split(string(out), "\n") {
				if f := strings.Fields(line); len(f) > 1 && f[1] == "STREAM" {
					all = append(all, f[0])
				}
			}
			return strings.Join(all, " "), err
		},
		"Go": func(name string) (string, error) {
			addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(context.Background(), "ip", name)
			var all []string
			for _, a := range addrs {
				all = append(all, a.Unmap().String())
			}
			return strings.Join(all, " "), err
		},
	}
	for who, lookup := range resolvers {
		before := asked.Load()
		for _, h := range town {
			got, err := lookup(h.Name)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", who, h.Name, err)
			}
			for _, a := range h.Addresses {
				if !strings.Contains(" "+got+" ", " "+a.String()+" ") {
					return fmt.Errorf("%s: %s is at %s, want %s", who, h.Name, got, a)
				}
			}
			for _, a := range strings.Fields(got) {
				if netip.MustParseAddr(a) == netip.MustParseAddr(lie) {
					return fmt.Errorf("%s: %s: the lie was believed", who, h.Name)
				}
			}
			fmt.Printf("%s: %s is at %s\n", who, h.Name, got)
		}
		if n := asked.Load() - before; n != 0 {
			return fmt.Errorf("%s asked the DNS %d times about pinned names", who, n)
		}
		got, err := lookup("other.example.org")
		if err != nil || got != lie {
			return fmt.Errorf("%s: the resolver does not lie about other names: %s, %v; so this shows nothing", who, got, err)
		}
	}
	return nil
}
