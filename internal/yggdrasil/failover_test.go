package yggdrasil

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/yggdrasil-network/yggdrasil-go/src/admin"

	"github.com/veilor/veilor-os/internal/peering"
)

const (
	// gapLimit is the goal for a new connection after the edge's address is
	// blackholed: from the last good answer to the next, through the public peer.
	gapLimit = 3 * time.Second
	// returnLimit is for the edge to be found again: a dial every 10 s, a fifth
	// more for the jitter, 5 s for one that began under the block.
	returnLimit = 18 * time.Second
)

// rounds is how often the edge is blocked; more for tuning.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("VEILOR_YGG_ROUNDS")); err == nil {
		return n
	}
	return 1
}

// idle is for how long nothing is said before the edge is blocked; more than a
// minute and the library has forgotten sessions and ways.
func idle() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("VEILOR_YGG_IDLE")); err == nil {
		return d
	}
	return 4 * time.Second
}

func TestFailover(t *testing.T) {
	w := newWorld(t)
	// The public peer has the lowest key, which makes it the root of the tree.
	// In the public network the root is never a laptop or its edge either.
	nodes := w.keys("a", "b", "c")
	slices.SortFunc(nodes, func(a, b node) int { return bytes.Compare(a.pub, b.pub) })
	pub, edge, laptop := nodes[0], nodes[1], nodes[2]
	w.edgeAddr, w.laptopAddr = Address(edge.pub).String(), Address(laptop.pub).String()
	edgeCert, edgeTLS := w.certificate("edge.lab.test")
	peerCert, peerTLS := w.certificate("peer.lab.test")
	publicPeer := wirePeer{Name: "peer-1", URL: "wss://peer.lab.test/", Address: "10.88.5.10:443", Key: hexKey(pub.pub)}

	w.role(w.peer, "public", pub.path, "10.88.5.10:443", peerCert, peerTLS)
	w.role(w.edge, "front", "10.88.3.20:443", "127.0.0.1:8081", edgeCert, edgeTLS)
	_, edgeConfig := w.ygg(w.edge, "edge", wire{
		PrivateKeyPath: edge.path, Listen: []string{"ws://127.0.0.1:8081"}, AllowedPublicKeys: []string{hexKey(laptop.pub)},
		PublicPeers: []wirePeer{publicPeer}, Accept: []uint16{443},
	})
	laptopYgg, cfg := w.ygg(w.laptop, "laptop", wire{
		PrivateKeyPath: laptop.path, AllowedPublicKeys: []string{hexKey(edge.pub)},
		Edges:       []wirePeer{{Name: "edge-1", URL: "wss://edge.lab.test/", Address: "10.88.3.20:443", Key: hexKey(edge.pub)}},
		PublicPeers: []wirePeer{publicPeer},
	}, "SSL_CERT_FILE="+edgeCert)
	w.role(w.edge, "service", "["+w.edgeAddr+"]:443", "["+w.edgeAddr+"]:22")
	w.role(w.laptop, "service", "["+w.laptopAddr+"]:22")

	peer := func() string {
		s, err := Query(t.Context(), cfg.AdminSocket)
		if err != nil || !s.Up {
			return ""
		}
		return s.Peer
	}
	w.until(patience, "the laptop peers with the edge", func() bool { return peer() == "edge-1" })
	w.until(patience, "the edge peers with the public peer", func() bool {
		s, err := Query(t.Context(), edgeConfig.AdminSocket)
		return err == nil && s.Up && s.Peer == "peer-1"
	})
	stop := w.watchPeers(cfg.AdminSocket)

	answers := w.probe()
	cold := w.until(patience, "a first answer", func() bool { return !answers.last().IsZero() })
	t.Logf("cold: first answer %v after the peerings stood", cold.Round(10*time.Millisecond))
	w.until(patience, "steady answers", func() bool { return answers.count() > 20 })

	var gaps []time.Duration
	for round := range rounds() {
		// An edge that is lost too soon, or silent again and again, is taken for a
		// sick one and tried rarely; blocks come at any phase of the routing's 1 s
		// ticks.
		time.Sleep(peering.ShortLife + time.Duration(rand.IntN(1000))*time.Millisecond)
		seen := answers.count()
		unblock := w.block("10.88.3.20")
		joined := w.until(patience, "the public peer takes over", func() bool { return peer() == "peer-1" })
		gap := answers.gap(w, seen)
		t.Logf("edge blackholed: public peer joined after %v; from the last good answer to the next: %v", joined.Round(10*time.Millisecond), gap.Round(10*time.Millisecond))
		gaps = append(gaps, gap)
		unblock()
		back := w.until(returnLimit<<min(round, 5), "the edge is taken back", func() bool { return peer() == "edge-1" })
		n := answers.count()
		resumed := w.until(patience, "answers through the edge again", func() bool { return answers.count() > n+20 })
		t.Logf("unblocked: edge taken back after %v, 20 answers %v later", back.Round(10*time.Millisecond), resumed.Round(10*time.Millisecond))
	}
	slices.Sort(gaps)
	t.Logf("gaps, least to greatest: %v", gaps)
	if worst := gaps[len(gaps)-1]; worst > gapLimit {
		t.Errorf("the gap is %v, want at most %v", worst, gapLimit)
	}
	if highest := stop(); highest != 1 {
		t.Errorf("the laptop had up to %d peerings, want never more than one", highest)
	}

	t.Run("idle", func(t *testing.T) {
		answers.stop()
		// The silences are what is tested: first the last keepalives and routing
		// messages pass, then nobody writes, so nobody can know of the block.
		time.Sleep(idle() + time.Duration(rand.IntN(1000))*time.Millisecond)
		unblock := w.block("10.88.3.20")
		defer unblock()
		if idle() < peering.Idle/2 { // or it would have said something
			time.Sleep(2 * time.Second)
			if p := peer(); p != "edge-1" {
				t.Fatalf("the idle peering was given up without a sign, the peer is %q", p)
			}
		}
		again := w.probe()
		w.until(patience, "an answer after idling into a block", func() bool { return !again.last().IsZero() })
		first := again.first().Sub(again.asked)
		again.stop()
		t.Logf("blackholed after %v of silence: first answer %v after the first request", idle(), first.Round(10*time.Millisecond))
		if first > gapLimit {
			t.Errorf("the first answer took %v, want at most %v", first, gapLimit)
		}
	})
	t.Run("filter", func(t *testing.T) {
		dial := func(from string, addr string) error {
			ns := w.laptop
			if from == "edge" {
				ns = w.edge
			}
			return within(ns, func() error {
				c, err := net.DialTimeout("tcp", addr, time.Second)
				if err == nil {
					c.Close()
				}
				return err
			})
		}
		w.until(patience, "the service", func() bool { return dial("laptop", "["+w.edgeAddr+"]:443") == nil })
		var ne net.Error
		if err := dial("laptop", "["+w.edgeAddr+"]:22"); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("a port of the edge that Accept does not name: %v, want silence", err)
		}
		if err := dial("edge", "["+w.laptopAddr+"]:22"); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("a port of the laptop: %v, want silence", err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		if err := laptopYgg.stop(); err != nil {
			t.Errorf("SIGTERM: %v\n%s", err, laptopYgg.log)
		}
		c, err := nftables.New(nftables.WithNetNSFd(int(w.laptop)))
		w.must(err)
		if tables, err := c.ListTables(); err != nil || len(tables) != 0 {
			t.Errorf("%d tables left, %v", len(tables), err)
		}
		if key, err := os.ReadFile(laptop.path); err != nil || strings.Contains(laptopYgg.log.String(), strings.Split(string(key), "\n")[1]) {
			t.Errorf("the key is in the log, or %v", err)
		}
	})
}

// watchPeers looks at the peerings of a node all the time; the function ends
// that and says how many there were at most.
func (w *world) watchPeers(socket string) func() int {
	done, highest := make(chan struct{}), 0
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer conn.Close()
		enc, dec := json.NewEncoder(conn), json.NewDecoder(conn)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			var r peersReply
			if err := enc.Encode(admin.AdminSocketRequest{Name: "getPeers", KeepAlive: true}); err != nil {
				w.t.Error(err)
				return
			}
			if err := readReply(dec, &r); err != nil {
				w.t.Error(err)
				return
			}
			highest = max(highest, len(r.Peers))
		}
	})
	return func() int { close(done); wg.Wait(); return highest }
}

// answers are when good answers came.
type answers struct {
	mu    sync.Mutex
	asked time.Time // the first time
	at    []time.Time
	stop  func() error
}

// probe asks the service ten times a second.
func (w *world) probe() *answers {
	p := w.role(w.laptop, "probe", "["+w.edgeAddr+"]:443")
	a := &answers{stop: p.stop}
	go func() {
		for p.out.Scan() {
			text, begins := strings.CutPrefix(p.out.Text(), "asks ")
			n, err := strconv.ParseInt(text, 10, 64)
			a.mu.Lock()
			switch {
			case err != nil:
			case begins:
				a.asked = time.Unix(0, n)
			default:
				a.at = append(a.at, time.Unix(0, n))
			}
			a.mu.Unlock()
		}
	}()
	return a
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at)
}

func (a *answers) last() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.at) == 0 {
		return time.Time{}
	}
	return a.at[len(a.at)-1]
}

// gap waits until answers come again and returns the longest silence since
// answer number n.
func (a *answers) gap(w *world, n int) (longest time.Duration) {
	now := a.count()
	w.until(patience, "answers through the public peer", func() bool { return a.count() > now+5 })
	a.mu.Lock()
	defer a.mu.Unlock()
	at := slices.Clone(a.at[n-1:])
	slices.SortFunc(at, time.Time.Compare)
	for i := 1; i < len(at); i++ {
		longest = max(longest, at[i].Sub(at[i-1]))
	}
	return longest
}
