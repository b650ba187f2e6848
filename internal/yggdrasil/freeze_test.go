package yggdrasil

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// freezesAfter is how much a connection carries before it freezes, and is what
	// censors were seen to let through.
	freezesAfter = 16 << 10
	// leaveLimit is for a laptop to be at another edge once nothing comes any more
	// over a connection that still is acknowledged: 3 s until the library misses an
	// answer, and the rest for a busy machine.
	leaveLimit = 10 * time.Second
	// stays is how long the laptop must then stay there. Longer than a race, and
	// than the pauses after failures.
	stays = 30 * time.Second
)

func init() { roles["freeze"] = freeze }

// freeze passes connections on and stops in each after so many bytes, both ways
// together: whoever writes is told by TCP that it arrived: LISTEN BACKEND BYTES.
func freeze(ctx context.Context, a []string) error {
	limit, err := strconv.ParseInt(a[2], 10, 64)
	if err != nil {
		return err
	}
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
			b, err := net.Dial("tcp", a[1])
			if err != nil {
				return
			}
			defer b.Close()
			var carried atomic.Int64
			ended := make(chan struct{}, 2)
			pass := func(to io.Writer, from io.Reader) {
				defer func() { ended <- struct{}{} }()
				for buf := make([]byte, 4<<10); ; {
					n, err := from.Read(buf)
					if err != nil {
						return
					}
					if carried.Add(int64(n)) > limit {
						continue
					}
					if _, err := to.Write(buf[:n]); err != nil {
						return
					}
				}
			}
			go pass(b, c)
			go pass(c, b)
			<-ended
		}()
	}
}

// TestFreezingEdge: a laptop leaves an edge whose connections open and then freeze,
// for one in another network, and does not come back to it.
func TestFreezingEdge(t *testing.T) {
	w := newWorld(t)
	t.Parallel()
	nodes := w.keys("a", "b", "c", "d")
	slices.SortFunc(nodes, func(a, b node) int { return bytes.Compare(a.pub, b.pub) })
	public, one, two, laptop := nodes[0], nodes[1], nodes[2], nodes[3] // the root is public, see TestFailover
	cert, key := w.certificate("edge.lab.test")
	peerCert, peerKey := w.certificate("peer.lab.test")
	publicPeer := wirePeer{Name: "peer-1", URL: "wss://peer.lab.test/", Address: "10.88.5.10:443", Key: hexKey(public.pub)}
	w.role(w.peer, "public", public.path, "10.88.5.10:443", peerCert, peerKey)
	second := w.namespace()
	w.cable(second, "10.88.4")
	at := func(k node) wire {
		return wire{
			PrivateKeyPath: k.path, Listen: []string{"ws://127.0.0.1:8081"}, AllowedPublicKeys: []string{hexKey(laptop.pub)},
			PublicPeers: []wirePeer{publicPeer}, Accept: []uint16{443},
		}
	}
	w.ygg(w.edge, "edge-1", at(one))
	w.ygg(second, "edge-2", at(two))
	w.role(w.edge, "front", "127.0.0.1:8443", "127.0.0.1:8081", cert, key)
	w.role(w.edge, "freeze", "10.88.3.20:443", "127.0.0.1:8443", strconv.Itoa(freezesAfter))
	w.role(second, "front", "10.88.4.20:443", "127.0.0.1:8081", cert, key)
	service := "[" + Address(two.pub).String() + "]:443"
	w.role(second, "echo", service)

	for _, front := range []string{"10.88.3.20:443", "10.88.4.20:443"} {
		w.until(patience, "a front at "+front, func() bool {
			return within(w.laptop, func() error {
				c, err := net.DialTimeout("tcp", front, time.Second)
				if err == nil {
					c.Close()
				}
				return err
			}) == nil
		})
	}
	p, cfg := w.ygg(w.laptop, "laptop", wire{
		PrivateKeyPath: laptop.path, AllowedPublicKeys: []string{hexKey(one.pub), hexKey(two.pub)}, PublicPeers: []wirePeer{publicPeer},
		Edges: []wirePeer{
			{Name: "edge-1", URL: "wss://edge.lab.test/", Address: "10.88.3.20:443", Key: hexKey(one.pub), Network: "AS64501"},
			{Name: "edge-2", URL: "wss://edge.lab.test/", Address: "10.88.4.20:443", Key: hexKey(two.pub), Network: "AS64502"},
		},
	}, "SSL_CERT_FILE="+cert)
	peer := func() string {
		s, err := Query(t.Context(), cfg.AdminSocket)
		if err != nil || !s.Up {
			return ""
		}
		return s.Peer
	}
	w.until(patience, "the laptop peers with the first edge", func() bool { return peer() == "edge-1" })
	f := w.hold(w.laptop, service)
	w.until(patience, "a flow through the first edge", func() bool { return f.count() > 2 })
	w.until(patience, "the laptop is at the second edge", func() bool { return peer() == "edge-2" })
	n := f.count()
	w.until(patience, "the flow goes on", func() bool { return f.count() > n+10 })
	silence := f.longest()
	t.Logf("frozen after %d bytes: the flow was silent for %v", freezesAfter, silence.Round(10*time.Millisecond))
	if silence > leaveLimit {
		t.Errorf("silent for %v, want at most %v", silence, leaveLimit)
	}
	for end := time.Now().Add(stays); time.Now().Before(end); {
		n := f.count()
		w.until(patience, "the flow goes on", func() bool { return f.count() > n+10 })
		if now := peer(); now != "edge-2" {
			t.Fatalf("the laptop is at %q, want it to stay at edge-2", now)
		}
	}
	if joined := strings.Count(p.log.String(), "msg=peering peer="); joined != 2 {
		t.Errorf("%d peerings, want two:\n%s", joined, p.log)
	}
}
