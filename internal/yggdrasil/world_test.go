package yggdrasil

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
)

// The world of the namespace test: a laptop, an edge and a public peer around
// an ISP, each a network namespace, none with a route out. Everything in it is a
// process of its own: veilor-ygg twice, and this test binary in the roles below.
//
//	laptop 10.88.1.10 --- isp --- 10.88.3.20 edge (TLS front, veilor-ygg, service on ygg0)
//	                        \---- 10.88.5.10 public peer (TLS front, the plain library)
const roleEnv = "VEILOR_YGG_TEST_ROLE"

// patience is how long an event may be waited for that no goal gives a time:
// on a machine that does much else besides, all is late.
const patience = time.Minute

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := roles[role](ctx, os.Args[1:]); err != nil {
			log.Fatalf("%s: %v", role, err)
		}
		return
	}
	code := m.Run()
	if program.dir != "" {
		os.RemoveAll(program.dir)
	}
	os.Exit(code)
}

// program is veilor-ygg, built once for all tests that run it.
var program struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func veilorYgg() (string, error) {
	program.once.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "veilor-ygg"); program.err != nil {
			return
		}
		program.path = filepath.Join(program.dir, "veilor-ygg")
		build := exec.Command("go", "build", "-o", program.path, "github.com/veilor/veilor-os/cmd/veilor-ygg")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("building veilor-ygg: %w\n%s", err, out)
		}
	})
	return program.path, program.err
}

var roles = map[string]func(context.Context, []string) error{
	"front": front, "public": public, "service": service, "probe": probe, "echo": echo, "hold": hold,
}

// front ends TLS: LISTEN BACKEND CERT KEY.
func front(ctx context.Context, a []string) error {
	s := &http.Server{Addr: a[0], Handler: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: a[1]}),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	context.AfterFunc(ctx, func() { s.Close() })
	return s.ListenAndServeTLS(a[2], a[3])
}

// public is a stock node with a front: KEY LISTEN CERT TLSKEY.
func public(ctx context.Context, a []string) error {
	key, err := ReadKey(a[0])
	if err != nil {
		return err
	}
	lib := &logger{to: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	c, err := core.New(&tls.Certificate{PrivateKey: key}, lib, core.ListenAddress("ws://127.0.0.1:8080"))
	if err != nil {
		return err
	}
	defer c.Stop()
	return front(ctx, []string{a[1], "127.0.0.1:8080", a[2], a[3]})
}

// service says "ok" to whoever connects: LISTEN...
func service(ctx context.Context, a []string) error {
	for _, addr := range a {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "ok\n")
				c.Close()
			}
		}()
	}
	<-ctx.Done()
	return nil
}

// probe opens a new connection every 100 ms, whatever became of the last, and
// prints when it begins, and when each good answer came (Unix nanoseconds): ADDRESS.
func probe(ctx context.Context, a []string) error {
	var mu sync.Mutex
	fmt.Println("asks", time.Now().UnixNano())
	for tick := time.Tick(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		go func() {
			c, err := net.DialTimeout("tcp", a[0], time.Second)
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			if b, _ := io.ReadAll(c); string(b) == "ok\n" {
				mu.Lock()
				fmt.Println(time.Now().UnixNano())
				mu.Unlock()
			}
		}()
	}
}

// world is the running one.
type world struct {
	t                       *testing.T
	dir                     string
	binary                  string
	isp, laptop, edge, peer netns.NsHandle
	edgeAddr, laptopAddr    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: failover, one peer at a time and the filter; run `sudo go test ./internal/yggdrasil`")
	}
	if testing.Short() {
		t.Skip("NOT TESTED in -short: it takes half a minute")
	}
	w := &world{t: t, dir: t.TempDir()}
	var err error
	w.binary, err = veilorYgg()
	w.must(err)
	w.isp, w.laptop, w.edge, w.peer = w.namespace(), w.namespace(), w.namespace(), w.namespace()
	w.cable(w.laptop, "10.88.1")
	w.cable(w.edge, "10.88.3")
	w.cable(w.peer, "10.88.5")
	w.in(w.isp, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// in runs f on a thread in ns, which then dies.
func (w *world) in(ns netns.NsHandle, f func() error) {
	w.t.Helper()
	w.must(within(ns, f))
}

func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (w *world) namespace() (ns netns.NsHandle) {
	w.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		done <- err
	}()
	w.must(<-done)
	w.t.Cleanup(func() { ns.Close() })
	w.in(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// cable joins ns to the ISP: .1 there, .10 (and .20) here.
func (w *world) cable(ns netns.NsHandle, net24 string) {
	w.t.Helper()
	name := "to-" + strings.ReplaceAll(net24, ".", "-")
	up := func(name string, addrs ...string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	w.in(w.isp, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}); err != nil {
			return err
		}
		return up(name, net24+".1/24")
	})
	w.in(ns, func() error {
		if err := up("eth0", net24+".10/24", net24+".20/24"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(net24 + ".1")})
	})
}

// process is one that start began.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Scanner
	log  *bytes.Buffer
	once sync.Once
	done chan struct{}
	err  error
}

func (p *process) stop() error {
	p.once.Do(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
		defer late.Stop()
		p.err = p.cmd.Wait()
		close(p.done)
	})
	return p.err
}

// ends waits for a process that ends by itself, at most for the time limit.
func (p *process) ends(limit time.Duration) error {
	p.t.Helper()
	late := time.AfterFunc(limit, func() { p.cmd.Process.Kill() })
	p.once.Do(func() {
		p.err = p.cmd.Wait()
		close(p.done)
	})
	if !late.Stop() {
		p.t.Fatalf("it did not end within %v\n%s", limit, p.log)
	}
	return p.err
}

func (w *world) start(ns netns.NsHandle, name string, env []string, args ...string) *process {
	w.t.Helper()
	p := &process{t: w.t, cmd: exec.Command(args[0], args[1:]...), log: new(bytes.Buffer), done: make(chan struct{})}
	// A test that is killed leaves no process behind.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	w.must(err)
	p.out = bufio.NewScanner(stdout)
	// A child is born in the namespace of the thread that forks it, and gets its
	// death signal when that thread ends, not the process: so the thread stays.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			started <- err
			return
		}
		started <- p.cmd.Start()
		<-p.done
	}()
	w.must(<-started)
	w.t.Cleanup(func() {
		p.stop()
		if w.t.Failed() {
			w.t.Logf("--- %s\n%s", name, p.log)
		}
	})
	return p
}

func (w *world) role(ns netns.NsHandle, role string, args ...string) *process {
	w.t.Helper()
	self, err := os.Executable()
	w.must(err)
	return w.start(ns, role, []string{roleEnv + "=" + role}, append([]string{self}, args...)...)
}

// until waits for ok, at most for the time limit.
func (w *world) until(limit time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(began) > limit {
			w.t.Fatalf("%s: not within %v", what, limit)
		}
		<-tick.C
	}
	return time.Since(began)
}

// block drops everything to and from ip at the ISP; the function undoes it.
func (w *world) block(ip string) (undo func()) {
	w.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(w.isp)))
	w.must(err)
	table := c.AddTable(&nftables.Table{Name: "censor", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	for _, leg := range []struct {
		key    expr.MetaKey
		offset uint32
	}{{expr.MetaKeyIIFNAME, 16}, {expr.MetaKeyOIFNAME, 12}} { // destination, source
		name := make([]byte, 16)
		copy(name, "to-10-88-1")
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: leg.key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: leg.offset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net.ParseIP(ip).To4()},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	w.must(c.Flush())
	return func() {
		c.DelTable(table)
		w.must(c.Flush())
	}
}

// certificate writes one for name, signed by itself, and its key.
func (w *world) certificate(name string) (cert, key string) {
	w.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	w.must(err)
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	w.must(err)
	cert, key = filepath.Join(w.dir, name+".crt"), filepath.Join(w.dir, name+".key")
	w.must(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	w.must(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o600))
	return cert, key
}

// node is a key file and its public key.
type node struct {
	path string
	pub  ed25519.PublicKey
}

func (w *world) keys(names ...string) (nodes []node) {
	w.t.Helper()
	for _, n := range names {
		path := filepath.Join(w.dir, n+".pem")
		k, err := MakeKey(path)
		w.must(err)
		nodes = append(nodes, node{path, k.Public().(ed25519.PublicKey)})
	}
	return nodes
}

// ygg starts veilor-ygg with w as its configuration.
func (w *world) ygg(ns netns.NsHandle, name string, cfg wire, env ...string) (*process, *Config) {
	w.t.Helper()
	run := filepath.Join(w.dir, name)
	w.must(os.MkdirAll(run, 0o755))
	cfg.IfName, cfg.IfMTU, cfg.AdminListen = "ygg0", 1280, "unix://"+filepath.Join(run, "admin.sock")
	data, err := json.Marshal(cfg)
	w.must(err)
	data = bytes.ReplaceAll(data, []byte("null"), []byte("[]"))
	path := filepath.Join(run, "ygg.json")
	w.must(os.WriteFile(path, data, 0o644))
	parsed, err := LoadConfig(path)
	w.must(err)
	p := w.start(ns, name, env, w.binary, "run", "--debug", "--config", path)
	w.until(patience, name+" answers on its admin socket", func() bool {
		_, err := Query(w.t.Context(), parsed.AdminSocket)
		return err == nil
	})
	return p, parsed
}

func hexKey(k ed25519.PublicKey) string { return hex.EncodeToString(k) }
