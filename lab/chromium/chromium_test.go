package chromium

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/wss"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

func root(t *testing.T) *sandbox.Root {
	t.Helper()
	gate.Root(t, "a real browser")
	dir := gate.Cache(t, "a real browser")
	tree, err := Root.Build(t.Context(), &cache.Cache{Dir: dir}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	// Not in memory: an overlay cannot lie on another one.
	scratch, err := os.MkdirTemp(dir, "chromium-scratch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(scratch) })
	r, err := sandbox.Overlay(tree, scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestPage opens the service as a person does: Chromium with our policy asks
// Unbound with our configuration, which asks veilor-mesh, which carries the
// connection over the tailnet.
func TestPage(t *testing.T) {
	r := root(t)
	f, err := outfit.Make(t.Context(), outfit.Options{Source: "../..", Cache: gate.Cache(t, "a real browser"), Wide: true, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	town, stop, err := floors.Start(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	tree, err := overlay.Render(os.DirFS("../../overlay"), town.Site)
	if err != nil {
		t.Fatal(err)
	}
	file := func(path string) []byte {
		found, ok := tree.Find(path)
		if !ok {
			t.Fatalf("the overlay has no %s", path)
		}
		return found.Data
	}
	// Unbound as secureblue configures it reads conf.d, and has a root's trust
	// anchor; neither matters to a zone that is said to be ours.
	config := append([]byte("server:\n  interface: 127.0.0.1\n  username: \"\"\n  chroot: \"\"\n  directory: \"/var/tmp\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\nremote-control:\n  control-enable: no\n"),
		file("etc/unbound/conf.d/veilor.conf")...)
	for path, text := range map[string][]byte{"/etc/unbound/veilor-test.conf": config, "/etc/resolv.conf": []byte("nameserver 127.0.0.1\n")} {
		if err := os.WriteFile(r.Path(path), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	guest := town.World.Guest
	unbound := r.Command(ctx, "unbound", "-d", "-c", "/etc/unbound/veilor-test.conf")
	unbound.Stdout, unbound.Stderr = t.Output(), t.Output()
	if err := guest.Start(unbound); err != nil {
		t.Fatal(err)
	}
	defer end(unbound)
	b := In(r)
	for name, c := range map[string]struct {
		policy []byte
		opens  bool
	}{
		"with the policy":    {file("etc/trivalent/policies/managed/veilor.json"), true},
		"without the policy": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := b.Policy(c.policy); err != nil {
				t.Fatal(err)
			}
			dom, err := b.Open(ctx, guest, "https://"+town.Site.Services[0].Name+"/")
			if err != nil {
				t.Fatal(err)
			}
			if opened := strings.Contains(dom, "You reached this page"); opened != c.opens {
				t.Errorf("opened: %t, want %t; the page is\n%.2000s", opened, c.opens, dom)
			}
		})
	}
}

func end(cmd *exec.Cmd) {
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
}

// TestFingerprint holds veilor-ygg's hello against the hello of this browser's
// WebSocket.
func TestFingerprint(t *testing.T) {
	r := root(t)
	ns, err := namespace.New("browser", namespace.Options{Dir: filepath.Join(t.TempDir(), "netns")})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	l, err := ns.Listen("tcp", "127.0.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs := hellos(l)
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	own := hellos(l2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := os.WriteFile(r.Path("/var/tmp/page.html"), []byte(`<script>new WebSocket("wss://edge.lab.test/")</script>`), 0o644); err != nil {
		t.Fatal(err)
	}
	go In(r).Open(ctx, ns, "file:///var/tmp/page.html", "--host-resolver-rules=MAP edge.lab.test 127.0.0.1", "--timeout=5000")
	wait := func(who string, from <-chan censor.Fingerprint) censor.Fingerprint {
		t.Helper()
		select {
		case f := <-from:
			return f
		case <-ctx.Done():
			t.Fatalf("%s sent no hello", who)
		}
		return censor.Fingerprint{}
	}
	browser := wait("Chromium", theirs)
	target := wss.Target{URL: &url.URL{Scheme: "wss", Host: "edge.lab.test", Path: "/"}, Address: netip.MustParseAddrPort(l2.Addr().String())}
	go new(wss.Dialer).Dial(ctx, target)
	ours := wait("veilor-ygg", own)
	t.Logf("Chromium's WebSocket  %s", browser.JA4)
	t.Logf("veilor-ygg            %s", ours.JA4)
	t.Logf("suites: only Chromium %v, only veilor-ygg %v", without(browser.Suites, ours.Suites), without(ours.Suites, browser.Suites))
	t.Logf("extensions: only Chromium %v, only veilor-ygg %v", without(browser.Extensions, ours.Extensions), without(ours.Extensions, browser.Extensions))
	// What a censor can block without blocking browsers is a set of suites that
	// no browser has.
	if strings.Split(browser.JA4, "_")[1] != strings.Split(ours.JA4, "_")[1] {
		t.Errorf("the cipher suites differ: %v and %v", browser.Suites, ours.Suites)
	}
}

// hellos reads what clients of l send first, and hangs up.
func hellos(l net.Listener) <-chan censor.Fingerprint {
	heard := make(chan censor.Fingerprint, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				var stream []byte
				buffer := make([]byte, 4<<10)
				for {
					n, err := c.Read(buffer)
					stream = append(stream, buffer[:n]...)
					if f, e := censor.Identify(stream); e == nil {
						heard <- f
						return
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return heard
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
