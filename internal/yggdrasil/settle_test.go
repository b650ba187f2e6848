package yggdrasil

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Arceliar/ironwood/network"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
)

// TestHeldUntilReady: a leaf that has just joined asks for no way before its peer
// can pass the question on, and then at once.
func TestHeldUntilReady(t *testing.T) {
	t.Parallel()
	them, at := library(t)
	texts := read(ipv6rwc.NewReadWriteCloser(them))
	node, _ := library(t)
	p := newPackets(node, time.Now)
	read(p)
	var asked atomic.Int32
	node.PacketConn.PacketConn.Debug.SetDebugLookupLogger(func(network.DebugLookupInfo) { asked.Add(1) })
	send := func() {
		t.Helper()
		if _, err := p.Write(packet(p.self, Address(them.PublicKey()), "held")); err != nil {
			t.Fatal(err)
		}
		node.GetSelf() // after what the router still has to do
	}

	p.hold()
	send()
	send()
	if n := asked.Load(); n != 0 || len(p.waiting) != 1 {
		t.Fatalf("%d questions and %d packets kept, want none and one", n, len(p.waiting))
	}
	// Given up before it was ready: all is as if it never had begun.
	ended, end := context.WithCancel(t.Context())
	end()
	p.joined(ended, them.PublicKey(), true)
	if p.held {
		t.Error("still held after the end")
	}

	ctx, part := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.joined(ctx, them.PublicKey(), true) }()
	if err := node.AddPeer(at, ""); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for got := false; !got; {
		select {
		case s := <-texts:
			if got = true; s != "held" {
				t.Errorf("they read %q", s)
			}
		case <-tick.C:
			send()
		case <-late:
			t.Fatal("no packet came")
		}
	}
	part()
	<-done
	if p.held {
		t.Error("still held after the end")
	}
}
