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
// (measured). So a leaf keeps what needs a question until it sees that the peer
// will pass it on.
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
// An edge has only these; a leaf asks when its peer is ready besides.
var settles = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second}

// joined is for when a peering with the node peer begins, until which there was
// none, and works until it has settled, or ctx ends. leaf says that this is the
// only link that there is: nothing else could carry what is held back.
func (p *packets) joined(ctx context.Context, peer ed25519.PublicKey, leaf bool) {
	began := p.now()
	if leaf {
		p.hold()
		p.ready(ctx, peer)
		p.release()
		p.refresh()
	}
	for _, d := range settles {
		wait := d - p.now().Sub(began)
		if leaf && wait <= time.Second { // asked just now
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.after(wait):
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

// hold keeps what is written to nodes to whom no way is known, the newest packet
// for each.
func (p *packets) hold() {
	ways := map[netip.Addr]bool{}
	for _, w := range p.core.GetPaths() {
		ways[Address(w.Key)] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = ways
}

// release sends what was held.
func (p *packets) release() {
	p.mu.Lock()
	held := p.held
	p.held = nil
	type letter struct {
		key  ed25519.PublicKey
		data []byte
	}
	var send []letter
	var ask []netip.Addr
	for dst, kept := range p.waiting {
		switch r := p.known[dst]; {
		case held == nil || held[dst]:
		case r == nil:
			ask = append(ask, dst)
		default:
			delete(p.waiting, dst)
			send = append(send, letter{r.key, kept.data})
		}
	}
	p.mu.Unlock()
	for _, l := range send {
		p.core.WriteTo(l.data, types.Addr(l.key))
	}
	for _, dst := range ask {
		a := address.Address(dst.As16())
		p.core.SendLookup(a.GetKey())
	}
}
