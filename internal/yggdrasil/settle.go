package yggdrasil

import (
	"context"
	"crypto/ed25519"
	"net/netip"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
)

// A node that changes its peer is out of the network for one to two seconds, and
// no more can be done about it from here: the new peer says where it is in the
// tree at its next look (once a second, ironwood, network/router.go), and only at
// the look after that, once it has heard that this node hangs below it, does it
// pass on questions about ways. A question that is asked before goes nowhere, and
// the next about the same node may not follow within a second (pathThrottle,
// network/config.go), so asking early made the gap up to a second longer
// (measured). So a leaf keeps what it has to say until it sees that the peer will
// pass questions on.
const (
	// settleLook is the pause between two looks whether the peer is ready. One
	// costs some 10 µs and there are at most settleLimit's worth.
	settleLook = 20 * time.Millisecond
	// settleLimit is when the questions are asked anyway. A peer that is out of
	// the tree itself takes a few looks.
	settleLimit = 4 * time.Second
)

// settles is when, after a peering began, the network has probably found its
// shape: it looks at itself once a second, and one look may be lost or too early.
// Who waited for the peer to be ready has asked besides.
var settles = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second}

// joined is for when a peering with the node peer begins, until which there was
// none, and works until it has settled, or ctx ends. wait says to keep back what
// is written until the peer is ready. That is for a leaf, where nothing else could
// carry it, and only if the last peer was lost: one that goes back to a better
// peer in peace knows its way, and so does that peer.
func (p *packets) joined(ctx context.Context, peer ed25519.PublicKey, wait bool) {
	began := p.now()
	if wait {
		p.hold()
		p.ready(ctx, peer)
		p.release()
		p.refresh()
	}
	for _, d := range settles {
		left := d - p.now().Sub(began)
		if wait && left <= time.Second { // asked just now
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.after(left):
		}
		p.refresh()
	}
}

// ready returns once the peer has said what lies behind it, which it does to
// whom it has accepted in the tree.
func (p *packets) ready(ctx context.Context, peer ed25519.PublicKey) {
	for range settleLimit / settleLook {
		for _, b := range p.core.PacketConn.PacketConn.Debug.GetBlooms() {
			if peer.Equal(b.Key) && b.Recv != [len(b.Recv)]uint64{} {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.after(settleLook):
		}
	}
}

// hold keeps what is written, the newest packet for each node. Also where a way is
// known: the other end, whose own question would come too early, might not ask
// again for a second either.
func (p *packets) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
}

// release sends what was held.
func (p *packets) release() {
	type letter struct {
		key  ed25519.PublicKey
		data []byte
	}
	var send []letter
	var ask []netip.Addr
	p.mu.Lock()
	p.held = false
	for dst, kept := range p.waiting {
		if r := p.known[dst]; r != nil {
			delete(p.waiting, dst)
			send = append(send, letter{r.key, kept.data})
		} else {
			ask = append(ask, dst)
		}
	}
	p.mu.Unlock()
	for _, l := range send {
		p.core.WriteTo(l.data, types.Addr(l.key))
	}
	for _, dst := range ask {
		p.lookUp(dst)
	}
}

// lookUp asks for the key of an address.
func (p *packets) lookUp(dst netip.Addr) {
	a := address.Address(dst.As16())
	p.core.SendLookup(a.GetKey())
}

// Who asks for the way to us is about to open a session, and the library answers
// that once only: if it does not know the way back just then, because the news of
// where the other is now has not come as far (a second for each node on the way),
// the answer waits for a way that nobody asks for any more, and the same request
// again is dropped as known, for a minute (ironwood, encrypted/session.go handleInit;
// measured). So a server asks for the way back until it has it.
var seekPauses = []time.Duration{1100 * time.Millisecond, 1100 * time.Millisecond, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// sought is told who asks for the way to whom. admits says whose questions count:
// those of strangers would cost as many of ours. It returns at once.
func (p *packets) sought(from, target ed25519.PublicKey, admits func(ed25519.PublicKey) bool) {
	if len(target) != ed25519.PublicKeySize || *address.SubnetForKey(target) != p.Subnet() || !admits(from) {
		return
	}
	key := [ed25519.PublicKeySize]byte(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.seeking[key]; ok || len(p.seeking) >= maxWaiting {
		return
	}
	found := make(chan struct{})
	p.seeking[key] = found
	go p.seek(key, found)
}

func (p *packets) seek(key [ed25519.PublicKeySize]byte, found chan struct{}) {
	defer p.found(key)
	for _, d := range seekPauses {
		p.core.SendLookup(key[:])
		select {
		case <-found:
			return
		case <-p.after(d):
		}
	}
}

// found ends the search for a node.
func (p *packets) found(key [ed25519.PublicKeySize]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found, ok := p.seeking[key]; ok {
		delete(p.seeking, key)
		close(found)
	}
}
