package yggdrasil

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// inForce is the goal for a revocation: from the order to the last byte.
	inForce = 5 * time.Second
	// churn is how many nodes come and go while the others, steady, have live
	// flows; the environment may say other numbers.
	churn, steadily = 20, 10
	// lanes is how many of them at once.
	lanes = 5
)

// number is a setting of the environment.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// echo sends back what it gets: LISTEN.
func echo(ctx context.Context, a []string) error {
	l, err := net.Listen("tcp", a[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// hold keeps one connection open and has a byte echoed ten times a second; it
// prints "open", when each byte came back (Unix nanoseconds), and "lost" when
// the connection ended, after which it makes another: ADDRESS.
func hold(ctx context.Context, a []string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	d := net.Dialer{Timeout: time.Second}
	for {
		if c, err := d.DialContext(ctx, "tcp", a[0]); err == nil {
			fmt.Println("open")
			stop := context.AfterFunc(ctx, func() { c.Close() })
			err := talk(ctx, c, tick.C)
			stop()
			c.Close()
			if ctx.Err() == nil {
				fmt.Println("lost", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func talk(ctx context.Context, c net.Conn, tick <-chan time.Time) error {
	b := []byte{0}
	for {
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		fmt.Println(time.Now().UnixNano())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
		}
	}
}

// flow is what hold told.
type flow struct {
	answers
	mu          sync.Mutex
	opens       int
	lost        []string
	namespace   netns.NsHandle
	node, other *process
}

func (f *flow) state() (opens int, lost []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opens, slices.Clone(f.lost)
}

// longest is the longest silence so far.
func (f *flow) longest() (d time.Duration) {
	f.answers.mu.Lock()
	defer f.answers.mu.Unlock()
	for i := 1; i < len(f.at); i++ {
		d = max(d, f.at[i].Sub(f.at[i-1]))
	}
	return d
}

func (w *world) hold(ns netns.NsHandle, addr string) *flow {
	w.t.Helper()
	p := w.role(ns, "hold", addr)
	f := &flow{answers: answers{stop: p.stop}, namespace: ns, other: p}
	go func() {
		for p.out.Scan() {
			line := p.out.Text()
			n, err := strconv.ParseInt(line, 10, 64)
			f.mu.Lock()
			switch {
			case err == nil:
				f.answers.mu.Lock()
				f.at = append(f.at, time.Unix(0, n))
				f.answers.mu.Unlock()
			case line == "open":
				f.opens++
			default:
				f.lost = append(f.lost, line)
			}
			f.mu.Unlock()
		}
	}()
	return f
}

// town is an edge that serves x.veilor to guests, by the tiers.
type town struct {
	*world
	control  *edge.Client
	edgeNode node
	edgePeer wirePeer
	cert     string
	site     string
	group    string
}

// in is the same town for a subtest.
func (w town) with(t *testing.T) town {
	inner := *w.world
	inner.t = t
	w.world = &inner
	return w
}

const townSite = `zone: veilor
os: {name: veilor-os, release: 44, home: "https://example.org"}
image:
  ref: registry.example.org/veilor
  base: registry.example.org/base
  signatures:
    - {name: ci, keys: [ci.pub]}
control: {url: "https://hs.example.org"}
authority: ca.pem
tiers:
  - {name: admin, tag: "tag:admin", reach: ["*:*"]}
  - {name: infra, tag: "tag:infra", reach: ["infra:*"]}
  - {name: guest, tag: "tag:guest", reach: ["x.veilor:443"]}
hosts:
  - {name: edge, tier: infra, tailnet: 100.64.0.1, yggdrasil: %s}
services:
  - {name: x.veilor, host: edge, ports: [443], loopback: 127.83.0.1}
yggdrasil: {edges: [], public: []}
`

func newTown(t *testing.T) (town, wire, *process) {
	t.Helper()
	w := town{world: newWorld(t)}
	w.edgeNode = w.keys("edge")[0]
	w.edgeAddr = Address(w.edgeNode.pub).String()
	cert, key := w.certificate("edge.lab.test")
	w.cert, w.site, w.group = cert, filepath.Join(w.dir, "site.yaml"), filepath.Join(w.dir, "group")
	w.must(os.WriteFile(w.site, fmt.Appendf(nil, townSite, hexKey(w.edgeNode.pub)), 0o644))
	w.must(os.WriteFile(w.group, []byte("only these machines know it\n"), 0o600))
	w.edgePeer = wirePeer{Name: "edge-1", URL: "wss://edge.lab.test/", Address: "10.88.3.20:443", Key: hexKey(w.edgeNode.pub)}
	control := "unix://" + filepath.Join(w.dir, "control.sock")
	cfg := wire{
		PrivateKeyPath: w.edgeNode.path, Listen: []string{"ws://127.0.0.1:8081"},
		ControlListen: control, NodesPath: filepath.Join(w.dir, "nodes.json"),
		GroupPasswordPath: w.group, SitePath: w.site, Host: "edge",
	}
	p, _ := w.ygg(w.edge, "edge", cfg)
	w.role(w.edge, "front", "10.88.3.20:443", "127.0.0.1:8081", cert, key)
	w.role(w.edge, "echo", "["+w.edgeAddr+"]:443")
	var err error
	w.control, err = edge.NewClient(control)
	w.must(err)
	return w, cfg, p
}

// leg makes a namespace with a cable of its own.
func (w town) leg(number int) netns.NsHandle {
	ns := w.namespace()
	w.cable(ns, fmt.Sprintf("10.88.%d", number))
	return ns
}

// guest starts a laptop in ns that keeps a flow to x.veilor.
func (w town) guest(ns netns.NsHandle, name string, k node) *flow {
	w.t.Helper()
	p, _ := w.ygg(ns, name, wire{
		PrivateKeyPath: k.path, Edges: []wirePeer{w.edgePeer}, GroupPasswordPath: w.group, SitePath: w.site, Tier: "guest",
	}, "SSL_CERT_FILE="+w.cert)
	f := w.hold(ns, "["+w.edgeAddr+"]:443")
	f.node = p
	return f
}

// dial says whether a new connection to the service opens from ns.
func (w town) dial(ns netns.NsHandle, port int) error {
	return within(ns, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(w.edgeAddr, strconv.Itoa(port)), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// TestChurn: whoever comes or goes disturbs nobody else.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED in -short: it takes half a minute")
	}
	t.Parallel()
	w, cfg, edgeYgg := newTown(t)
	ctx := t.Context()

	var steady []*flow
	for i := range number("VEILOR_YGG_GUESTS", steadily) {
		name := fmt.Sprintf("steady-%d", i)
		k := w.keys(name)[0]
		if _, err := w.control.Admit(ctx, edge.Node{Key: textKey(k.pub), Name: "laptop", Tier: "guest"}); err != nil {
			t.Fatal(err)
		}
		steady = append(steady, w.guest(w.leg(100+i), name, k))
	}
	for _, f := range steady {
		w.until(patience, "a flow of every guest", func() bool { return f.count() > 5 })
	}
	started := make([]int, len(steady))
	for i, f := range steady {
		started[i] = f.count()
	}

	t.Run("stranger", func(t *testing.T) {
		w := w.with(t)
		k := w.keys("stranger")[0]
		f := w.guest(w.leg(90), "stranger", k)
		w.until(patience, "the edge refuses the stranger", func() bool { return strings.Contains(f.node.log.String(), "does it admit this machine") })
		l, err := w.control.Nodes(ctx)
		if err != nil || l.Connected(textKey(k.pub)) || f.count() > 0 {
			t.Errorf("a stranger has a link, or %d answers; %v", f.count(), err)
		}
		if _, err := w.control.Admit(ctx, edge.Node{Key: textKey(k.pub), Name: "x", Tier: "nobody"}); err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("a tier that is not there: %v", err)
		}
	})

	var mu sync.Mutex
	var revoked []site.Key
	var admitted, closed, silenced []time.Duration
	t.Run("lanes", func(t *testing.T) {
		var all sync.WaitGroup
		defer all.Wait()
		for lane := range lanes {
			// Not t.Parallel, which runs no more of them at once than there are
			// processors: they wait, they do not work.
			all.Go(func() {
				t.Run(strconv.Itoa(lane), func(t *testing.T) {
					w := w.with(t)
					ns := w.leg(80 + lane)
					for round := range number("VEILOR_YGG_CHURN", churn) / lanes {
						name := fmt.Sprintf("guest-%d-%d", lane, round)
						k := w.keys(name)[0]
						key := textKey(k.pub)
						began := time.Now()
						if _, err := w.control.Admit(ctx, edge.Node{Key: key, Name: name, Tier: "guest"}); err != nil {
							t.Fatal(err)
						}
						f := w.guest(ns, name, k)
						w.until(patience, "the new guest is served", func() bool { return f.count() > 2 })
						in := f.first().Sub(began)
						if round == 0 {
							if err := w.dial(ns, 22); err == nil {
								t.Error("a guest opens a port that is not its own")
							}
						}
						began = time.Now()
						done, err := w.control.Revoke(ctx, key)
						answered := time.Since(began)
						if err != nil || done.Links != 1 || done.Flows < 1 {
							t.Fatalf("revoking: %+v, %v; want one link and a flow closed", done, err)
						}
						if err := w.dial(ns, 443); err == nil {
							t.Error("a revoked guest opens a new flow")
						}
						last := f.last().Sub(began)
						if last > inForce || answered > inForce {
							t.Errorf("revoked: the last byte %v after the order, answered after %v; want at most %v", last, answered, inForce)
						}
						if _, err := w.control.Admit(ctx, edge.Node{Key: key, Name: name, Tier: "guest"}); !errors.Is(err, edge.ErrRevoked) {
							t.Errorf("admitting again: %v, want ErrRevoked", err)
						}
						if l, err := w.control.Nodes(ctx); err != nil || l.Connected(key) || l.Admits(key) || !slices.Contains(l.Revoked, key) {
							t.Errorf("after the revocation: %v, %v", l, err)
						}
						f.stop()
						f.node.stop()
						mu.Lock()
						revoked, admitted = append(revoked, key), append(admitted, in)
						closed, silenced = append(closed, answered), append(silenced, last)
						mu.Unlock()
					}
				})
			})
		}
	})
	counts := make([]int, len(steady))
	for i, f := range steady {
		counts[i] = f.count()
	}
	var worst time.Duration
	resets := 0
	for i, f := range steady {
		n := counts[i]
		w.until(patience, "every other guest is still served", func() bool { return f.count() > n+2 })
		opens, lost := f.state()
		resets += len(lost)
		if opens != 1 || len(lost) != 0 || n == started[i] {
			t.Errorf("guest %d: %d connections, %v, %d bytes meanwhile; want its first one undisturbed", i, opens, lost, n-started[i])
		}
		worst = max(worst, f.longest())
	}
	if len(closed) == 0 {
		t.Fatal("nobody came and went")
	}
	t.Logf("%d guests with live flows, %d came, %d were revoked: %d resets; longest silence of a flow %v",
		len(steady), len(admitted), len(closed), resets, worst.Round(time.Millisecond))
	for what, took := range map[string][]time.Duration{
		"admitted, to the first byte (with the start of the laptop's node)": admitted,
		"revoked, to the last byte":                                         silenced,
		"revoked, to the confirmation":                                      closed,
	} {
		slices.Sort(took)
		t.Logf("%s: median %v, at most %v", what, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}

	t.Run("filter", func(t *testing.T) {
		counts, err := packetfilter.Counts("veilor_tiers_ygg", nftables.WithNetNSFd(int(w.edge)))
		if err != nil || counts["established over IPv6"] == 0 {
			t.Errorf("the tiers' table does not carry the flows: %v, %v", counts, err)
		}
	})
	// Killed, it forgets nobody: neither whom it admits nor whom it revoked.
	t.Run("kill", func(t *testing.T) {
		w := w.with(t)
		edgeYgg.cmd.Process.Signal(syscall.SIGKILL)
		edgeYgg.stop()
		w.ygg(w.edge, "edge", cfg)
		l, err := w.control.Nodes(ctx)
		if err != nil || len(l.Nodes) != len(steady) || len(l.Revoked) != len(revoked) {
			t.Fatalf("after kill -9: %d admitted, %d revoked, %v", len(l.Nodes), len(l.Revoked), err)
		}
		w.until(patience, "every guest peers again", func() bool {
			l, err := w.control.Nodes(ctx)
			return err == nil && len(l.Links) == len(steady)
		})
		// Peered is not enough: one that kept its place in the tree from before
		// shares it with another, and hears nothing for minutes.
		began := time.Now()
		for i, f := range steady {
			w.until(patience, fmt.Sprintf("guest %d is served again", i), func() bool { return w.dial(f.namespace, 443) == nil })
		}
		t.Logf("after kill -9 of the edge and the new peerings, all guests served again within %v", time.Since(began).Round(time.Millisecond))
	})
}

func (a *answers) first() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at[0]
}
