package yggdrasil

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

const (
	// sessionTraffic is the first byte of what carries an IPv6 packet; others are
	// questions about this node (yggdrasil-go, src/core/types.go).
	sessionTraffic = 1
	// keyLife is how long a key is remembered after its last packet, and how long
	// a packet waits for the key of its destination: both as in the library
	// (src/ipv6rwc, keyStoreTimeout).
	keyLife = 2 * time.Minute
	// maxWaiting bounds the destinations whose key is being looked for, with one
	// packet each: whoever scans the network from here must not fill the memory.
	maxWaiting = 256
	// minHeader is a header of IPv6 (RFC 8200 §3).
	minHeader = 40
	// quoted is how much of a packet that is too big goes back to its sender.
	quoted = 512
)

// packets are the IPv6 packets between the network and the TUN. It is the
// library's ipv6rwc but for two things. The library answers everybody who asks a
// node for its peers, which on an edge are the guests; here such questions are
// dropped unread. And only addresses of nodes are known, not the subnets behind
// them, of which veilor has none.
type packets struct {
	core *core.Core
	self netip.Addr
	mtu  atomic.Uint64
	now  func() time.Time

	after func(time.Duration) <-chan time.Time
	heard func(ed25519.PublicKey) // if not nil, told whom every packet is from

	mu      sync.Mutex
	known   map[netip.Addr]*route
	waiting map[netip.Addr]parcel
	seeking map[[ed25519.PublicKeySize]byte]chan struct{} // see sought
	held    bool                                          // a peering has just begun, see joined
	swept   time.Time
}

// route is the key behind an address.
type route struct {
	key  ed25519.PublicKey
	used time.Time
}

// parcel is the last packet to a destination without a key.
type parcel struct {
	data []byte
	at   time.Time
}

func newPackets(c *core.Core, now func() time.Time) *packets {
	p := &packets{core: c, self: Address(c.PublicKey()), now: now, after: time.After,
		known: map[netip.Addr]*route{}, waiting: map[netip.Addr]parcel{}, seeking: map[[ed25519.PublicKeySize]byte]chan struct{}{}, swept: now()}
	p.mtu.Store(minMTU)
	c.SetPathNotify(func(key ed25519.PublicKey) {
		p.found([ed25519.PublicKeySize]byte(key))
		p.learn(key)
	})
	return p
}

// Address, Subnet, MaxMTU and SetMTU are for the TUN.
func (p *packets) Address() address.Address { return address.Address(p.self.As16()) }
func (p *packets) Subnet() address.Subnet   { return *address.SubnetForKey(p.core.PublicKey()) }
func (p *packets) MaxMTU() uint64           { return p.core.MTU() }
func (p *packets) SetMTU(mtu uint64)        { p.mtu.Store(max(minMTU, min(mtu, p.core.MTU()))) }

// Close stops the node.
func (p *packets) Close() error {
	err := p.core.Close()
	p.core.Stop()
	return err
}

var errPacket = errors.New("no packet from this node to another")

// Read gives the next packet that is for this node.
func (p *packets) Read(to []byte) (int, error) {
	buf := make([]byte, p.core.PacketConn.MTU())
	for {
		// Not core.ReadFrom, which answers what is not traffic.
		n, from, err := p.core.PacketConn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		if n <= 1+minHeader || buf[0] != sessionTraffic || buf[1]>>4 != 6 {
			continue
		}
		packet := buf[1:n]
		if len(packet) > int(p.mtu.Load()) {
			p.tooBig(packet)
			continue
		}
		src, dst := addresses(packet)
		// Whose key it came from is proven; an address that is not that key's is
		// forged.
		key := ed25519.PublicKey(from.(types.Addr))
		if p.heard != nil {
			p.heard(key)
		}
		if dst != p.self || src != p.learn(key) {
			continue
		}
		return copy(to, packet), nil
	}
}

// addresses are the source and destination of a packet.
func addresses(packet []byte) (src, dst netip.Addr) {
	return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
}

// tooBig tells the sender of a packet how big one may be (RFC 8201).
func (p *packets) tooBig(packet []byte) {
	body := &icmp.PacketTooBig{MTU: int(p.mtu.Load()), Data: packet[:min(len(packet), quoted)]}
	answer, err := ipv6rwc.CreateICMPv6(packet[8:24], packet[24:40], ipv6.ICMPTypePacketTooBig, 0, body)
	if err == nil {
		p.Write(answer)
	}
}

// Write sends a packet on its way, or keeps it until the key of its destination
// is known.
func (p *packets) Write(packet []byte) (int, error) {
	if len(packet) < minHeader || packet[0]>>4 != 6 {
		return 0, errPacket
	}
	src, dst := addresses(packet)
	if a := address.Address(dst.As16()); src != p.self || !a.IsValid() {
		return 0, errPacket // link-local chatter of the kernel
	}
	now := p.now()
	p.mu.Lock()
	r := p.known[dst]
	held := p.held
	if r == nil || held {
		p.sweep(now)
		if _, again := p.waiting[dst]; again || len(p.waiting) < maxWaiting {
			p.waiting[dst] = parcel{append([]byte(nil), packet...), now}
		}
		p.mu.Unlock()
		if !held {
			p.lookUp(dst)
		}
		return len(packet), nil
	}
	r.used = now
	p.mu.Unlock()
	// What the network loses is for the ends to notice.
	p.core.WriteTo(packet, types.Addr(r.key))
	return len(packet), nil
}

// learn notes a key that is in use, sends what waited for it, and says what its
// address is.
func (p *packets) learn(key ed25519.PublicKey) netip.Addr {
	a, now := Address(key), p.now()
	p.mu.Lock()
	if r := p.known[a]; r != nil && r.key.Equal(key) {
		r.used = now
		p.mu.Unlock()
		return a
	}
	p.sweep(now)
	r := &route{key: append(ed25519.PublicKey(nil), key...), used: now}
	p.known[a] = r
	kept, ok := p.waiting[a]
	delete(p.waiting, a)
	p.mu.Unlock()
	if ok {
		p.core.WriteTo(kept.data, types.Addr(r.key))
	}
	return a
}

// refresh asks anew for the way to everybody who was spoken with lately. The
// library keeps a way that leads nowhere for up to a minute (ironwood,
// network/config.go pathTimeout), which is what a restarted edge left its guests
// with (measured); it takes a newer one when it gets one.
func (p *packets) refresh() {
	p.mu.Lock()
	var keys []ed25519.PublicKey
	for _, r := range p.known {
		keys = append(keys, r.key)
	}
	p.mu.Unlock()
	for _, k := range keys {
		p.core.SendLookup(k)
	}
}

// sweep forgets, now and then, what was not used for long. p.mu is held.
func (p *packets) sweep(now time.Time) {
	if now.Sub(p.swept) < keyLife/4 && len(p.waiting) < maxWaiting {
		return
	}
	p.swept = now
	for a, r := range p.known {
		if now.Sub(r.used) >= keyLife {
			delete(p.known, a)
		}
	}
	for a, w := range p.waiting {
		if now.Sub(w.at) >= keyLife {
			delete(p.waiting, a)
		}
	}
}
