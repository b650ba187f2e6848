package world_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/world"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

func TestTwin(t *testing.T) {
	if got, want := world.Twin(world.EdgeAddress).String(), "2001:db8:3::14"; got != want {
		t.Errorf("the edge is also %s, want %s", got, want)
	}
}

type fixture struct {
	cfg  world.Config
	pool *x509.CertPool // the site's authority
	lab  *labsite.Lab
}

func prepare(t *testing.T) *fixture {
	t.Helper()
	gate.Root(t, "the world")
	f, err := outfit.Make(t.Context(), outfit.Options{Source: "../..", Cache: gate.Cache(t, "the world"), Log: t.Output(), Progress: func(what string) { t.Log(what) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	t.Cleanup(func() {
		if t.Failed() {
			gate.ShowLogs(t, f.World.Logs)
		}
	})
	f.World.Guest = true
	return &fixture{cfg: f.World, pool: f.Authority, lab: f.Lab}
}

// get fetches https://x.veilor/ on a new connection to address from ns.
func get(ctx context.Context, ns *namespace.Namespace, pool *x509.CertPool, address netip.Addr, timeout time.Duration) (from netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	h := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ns.DialContext(ctx, network, netip.AddrPortFrom(address, 443).String())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://x.veilor/", nil)
	if err != nil {
		return netip.Addr{}, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return netip.Addr{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return netip.Addr{}, err
	}
	var answer struct{ From netip.Addr }
	if err := json.Unmarshal(text, &answer); err != nil {
		return netip.Addr{}, fmt.Errorf("%q: %w", text, err)
	}
	return answer.From, nil
}

func TestWorld(t *testing.T) {
	f := prepare(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	began := time.Now()
	lap := func(what string) {
		t.Logf("%-40s %6.2f s", what, time.Since(began).Seconds())
		began = time.Now()
	}
	w, err := world.Start(ctx, f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	lap("world up")

	// The laptop's way in, as a process instead of a VM.
	key, err := w.Headscale.API.CreateKey(ctx, "tag:guest")
	if err != nil {
		t.Fatal(err)
	}
	lap("key minted")
	guest, err := w.Join(ctx, w.Guest, "guest", key)
	if err != nil {
		t.Fatal(err)
	}
	lap("guest joined as " + guest.Address.String())
	tailnet, yggdrasil := w.ServiceAddresses()
	from, err := get(ctx, w.Guest, f.pool, tailnet, 10*time.Second)
	if err != nil || from != guest.Address {
		t.Fatalf("over the tailnet: from %v, %v; want %v", from, err, guest.Address)
	}
	lap("first answer over the tailnet")

	t.Run("key is spent", func(t *testing.T) {
		keys, err := w.Headscale.API.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if !k.Used || strings.Contains(k.Secret, key.Secret[30:]) {
				t.Errorf("key %s: used %t", k.ID, k.Used)
			}
		}
	})
	t.Run("key is revoked", func(t *testing.T) {
		k, err := w.Headscale.API.CreateKey(ctx, "tag:guest")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Headscale.API.ExpireKey(ctx, k.ID); err != nil {
			t.Error(err)
		}
		if err := w.Headscale.API.ExpireKey(ctx, "777"); err == nil {
			t.Error("a key that does not exist was expired without an error")
		}
	})
	t.Run("a guest reaches x.veilor:443 and nothing else", func(t *testing.T) {
		l, err := w.Home.Listen("tcp", netip.AddrPortFrom(tailnet, 22).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		dial, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if c, err := w.Guest.DialContext(dial, "tcp", l.Addr().String()); err == nil {
			c.Close()
			t.Error("port 22 answers")
		}
	})
	t.Run("DNS knows lab.test and nothing else", func(t *testing.T) {
		for name, want := range map[string]string{"hs.lab.test": "10.88.3.10", "edge.lab.test": "10.88.3.20", "example.org": ""} {
			cmd := exec.Command("getent", "ahostsv4", name)
			var out strings.Builder
			cmd.Stdout = &out
			err := w.Guest.Run(cmd)
			if want == "" && err == nil || want != "" && !strings.HasPrefix(out.String(), want+" ") {
				t.Errorf("%s: %q, %v; want %q", name, out.String(), err, want)
			}
		}
	})
	t.Run("no way out", func(t *testing.T) {
		for _, ns := range []*namespace.Namespace{w.ISP, w.Home, w.Peer, w.Laptop, w.Guest} {
			dial, cancel := context.WithTimeout(ctx, time.Second)
			if c, err := ns.DialContext(dial, "tcp", "192.0.2.1:80"); err == nil {
				c.Close()
				t.Errorf("%s reaches the Internet", ns.Name)
			}
			cancel()
		}
	})
	if yggdrasil.Is4() || !netip.MustParsePrefix("200::/7").Contains(yggdrasil) {
		t.Errorf("the service's Yggdrasil address is %v", yggdrasil)
	}
	began = time.Now()
	yggLeg(ctx, t, f, w, yggdrasil)
	lap("Yggdrasil: edge, public peer, censored")

	t.Run("censor", func(t *testing.T) {
		if err := w.Censor.Block(censor.UDP(), censor.Host("control", world.Control)); err != nil {
			t.Fatal(err)
		}
		if _, err := get(ctx, w.Guest, f.pool, tailnet, 3*time.Second); err == nil {
			t.Error("the tailnet answers though UDP and control are blocked")
		}
		for _, rule := range []string{"udp", "control"} {
			// tailscaled may rest between two attempts.
			wait, cancel := context.WithTimeout(ctx, 30*time.Second)
			if err := w.Censor.AwaitHit(wait, rule); err != nil {
				t.Error(err)
			}
			cancel()
		}
		hits, err := w.Censor.Clear()
		t.Log("dropped:", hits)
		if err != nil || len(hits) != 2 {
			t.Fatal(hits, err)
		}
		began := time.Now()
		for {
			if _, err = get(ctx, w.Guest, f.pool, tailnet, time.Second); err == nil {
				break
			}
			if time.Since(began) > 60*time.Second {
				t.Fatal("the tailnet does not come back: ", err)
			}
		}
		t.Logf("back on the tailnet after %.2f s", time.Since(began).Seconds())
	})
	if err := w.Healthy(); err != nil {
		t.Error(err)
	}
	began = time.Now()
	w.Close()
	lap("world down")
	gone(t, f)

	// A second world where the first was.
	os.RemoveAll(f.cfg.Run)
	w, err = world.Start(ctx, f.cfg)
	if err != nil {
		t.Fatal("starting again: ", err)
	}
	lap("world up again")
	cancel()
	w.Close()
	gone(t, f)
}

// TestCancelled ends the world while it comes up.
func TestCancelled(t *testing.T) {
	f := prepare(t)
	for _, after := range []time.Duration{time.Millisecond, 300 * time.Millisecond, 3 * time.Second} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), after, errors.New("the person has had enough"))
		w, err := world.Start(ctx, f.cfg)
		if err == nil {
			<-ctx.Done() // it was faster
			w.Close()
		} else if !strings.Contains(err.Error(), "had enough") {
			t.Errorf("after %v: %v", after, err)
		}
		cancel()
		gone(t, f)
		os.RemoveAll(f.cfg.Run)
	}
}

// yggLeg reaches the service over Yggdrasil through the edge, and through the
// public peer when the edge is blocked.
func yggLeg(ctx context.Context, t *testing.T, f *fixture, w *world.World, service netip.Addr) {
	t.Helper()
	dir := filepath.Join(f.cfg.Run, "guest-ygg")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key.pem")
	private, err := yggdrasil.MakeKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	key := site.Key(hex.EncodeToString(private.Public().(ed25519.PublicKey)))
	if err := w.Edge.Admit(ctx, key); err != nil {
		t.Fatal(err)
	}
	s := f.lab.Site
	text, err := json.Marshal(map[string]any{
		"IfName": "ygg0", "IfMTU": 1280, "PrivateKeyPath": keyFile, "AdminListen": "unix://" + filepath.Join(dir, "admin.sock"),
		"Listen": []string{}, "AllowedPublicKeys": s.PeerKeys(), "Edges": world.Peers(s.Yggdrasil.Edges), "PublicPeers": world.Peers(s.Yggdrasil.Public), "Accept": []int{},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ygg.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(f.cfg.Logs, "guest-ygg.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(f.cfg.Tools.VeilorYgg, "run", "--config", file)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+f.cfg.WebCA.CertFile())
	cmd.Stdout, cmd.Stderr = log, log
	if err := w.Guest.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}()
	await := func(what string, limit time.Duration) {
		t.Helper()
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		type answer struct {
			from netip.Addr
			err  error
		}
		answers := make(chan answer, 1000)
		beat := time.NewTicker(100 * time.Millisecond)
		defer beat.Stop()
		last := errors.New("not asked")
		for {
			go func() {
				from, err := get(ctx, w.Guest, f.pool, service, 5*time.Second)
				answers <- answer{from, err}
			}()
			select {
			case a := <-answers:
				if a.err == nil {
					t.Logf("%s: answer from %v after %.2f s", what, a.from, time.Since(began).Seconds())
					if want := world.Address(key); a.from != want {
						t.Errorf("%s: from %v, want %v", what, a.from, want)
					}
					return
				}
				last = a.err
			case <-beat.C:
			case <-ctx.Done():
				t.Errorf("%s: no answer in %v: %v", what, limit, last)
				return
			}
		}
	}
	await("Yggdrasil", 20*time.Second)
	if err := w.Censor.Block(censor.UDP(), censor.Host("control", world.Control), censor.Host("edge", world.EdgeAddress)); err != nil {
		t.Fatal(err)
	}
	await("Yggdrasil without the edge", 30*time.Second)
	if err := w.Censor.Hit("edge"); err != nil {
		t.Error(err)
	}
	// Left alone, tailscaled finds the way through Yggdrasil after 4 s and the
	// block would be none.
	tailnet, _ := w.ServiceAddresses()
	for began := time.Now(); time.Since(began) < 8*time.Second; {
		if _, err := get(ctx, w.Guest, f.pool, tailnet, time.Second); err == nil {
			t.Fatal("the tailnet answers through Yggdrasil")
		}
	}
	if _, err := w.Censor.Clear(); err != nil {
		t.Fatal(err)
	}
}

// gone fails the test if the world has left anything.
func gone(t *testing.T, f *fixture) {
	t.Helper()
	if left, _ := os.ReadDir(f.cfg.Names); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		line, _ := os.ReadFile(p)
		text := strings.ReplaceAll(string(line), "\x00", " ")
		if strings.Contains(text, f.cfg.Run) || strings.Contains(text, f.cfg.PeerKey) || strings.Contains(text, "--keep-in-foreground") {
			t.Errorf("process %s is left: %s", p, text)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), f.cfg.Names) {
		t.Error("mounts are left")
	}
}
