package floors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/veilor/veilor-os/lab/censor"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/world"
)

// Condition is one state of the network that a laptop may find itself in.
type Condition struct {
	// ID is short and stable: "dns-poisoned". Title says it to a person.
	ID, Title string
	// Floor is the promise that it belongs to: "i", "ii", or "" for none. Of an open
	// network as much is promised.
	Floor string
	// PeerLost says that the peer of the fallback falls as well.
	PeerLost bool
	// Rules are what the censor does.
	Rules []censor.Rule
	// Hit are the names of the rules that must have acted on something; empty
	// means all of them.
	Hit []string
	// NotReached is an address ("10.88.3.10:443") that the laptop must fail to
	// reach by TCP in spite of the rules being quiet otherwise.
	NotReached string
	// Reached is one that it must reach.
	Reached string

	// Service is whom the cells are about; empty is the site's first service.
	Service string
	// Direct says that the service's host has just started, and that it and the
	// laptop have found each other past any relay before it begins, as machines
	// have that stand side by side for hours.
	Direct bool

	// Begin does what is no rule, after the rules; End undoes it, before they are
	// lifted.
	Begin, End func(context.Context, *Town) error
	// Count, before End, is what there is to count where no rule does.
	Count func(*Town) (name string, n uint64, err error)
	// After says that the clock starts when Begin is undone and the rules are
	// lifted, not when they come: a sleep, a portal that lets one through.
	After bool
	// Since says that it starts when Begin is done.
	Since bool
	// NA names what says nothing here, with the reason: Fresh, or administrator.
	NA map[string]string
}

var (
	home   = network("10.88.3.0")
	far    = network("10.88.4.0")
	router = network("10.88.1.0")
)

// network is one of the world's, in both families.
func network(address string) []netip.Prefix {
	a := netip.MustParseAddr(address)
	return []netip.Prefix{netip.PrefixFrom(a, 24), netip.PrefixFrom(world.Twin(a), 64)}
}

// both are a machine's addresses.
func both(a netip.Addr) []netip.Addr { return []netip.Addr{a, world.Twin(a)} }

// exactly are prefixes of machines' addresses and nothing else.
func exactly(machines ...netip.Addr) []netip.Prefix {
	var all []netip.Prefix
	for _, m := range machines {
		for _, a := range both(m) {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return all
}

// open is the floor on which everybody stands.
const open = "open"

const (
	// liarPort and portalPort are the ISP's, on its router.
	liarPort   = 5354
	portalPort = 8080
	// throttled is what a throttling ISP leaves of UDP, in bytes per second.
	throttled = 16_000
	// frozenAfter is what was seen of censors in 2025: 16 KB of a TLS connection
	// pass.
	frozenAfter = 16 << 10
	// asleep is how long the laptop sleeps: beyond the timers of every layer that
	// are about connections.
	asleep = 20 * time.Second
)

// Conditions are all that there are, in the order of the matrix.
func Conditions() []Condition {
	control := censor.Host("control", both(world.Control)...)
	controlPort := netip.AddrPortFrom(world.Control, 443).String()
	peerPort := netip.AddrPortFrom(world.PeerAddress, 443).String()
	edgePort := netip.AddrPortFrom(world.EdgeAddress, 443).String()
	edges := censor.Hosts("edges", "every edge dropped", exactly(world.EdgeAddress, world.FarEdgeAddress)...)
	peer := censor.Hosts("peer", "one public peer dropped", exactly(world.PeerAddress)...)
	control6 := netip.AddrPortFrom(world.Twin(world.Control), 443).String()
	lossy := func(percent uint32, most time.Duration) []censor.Rule {
		return []censor.Rule{censor.Loss("loss", percent), censor.Jitter("jitter", 0, most)}
	}
	return []Condition{
		{ID: "none", Floor: open, Title: "nothing is blocked"},
		{ID: "control-dns", Floor: "i", Title: "DNS of the control server dropped",
			Rules: []censor.Rule{censor.Question("dns", "hs.lab.test")}, Begin: ask, End: nothing},
		{ID: "dns-poisoned", Floor: "i", Title: "every DNS answer a lie",
			Rules: []censor.Rule{censor.Resolver("lie", liarPort)}, Begin: askLiar, End: silenceLiar},
		{ID: "udp", Floor: "ii", Title: "UDP dropped", Rules: []censor.Rule{censor.UDP()}},
		{ID: "udp-throttled", Floor: "ii", Title: fmt.Sprintf("UDP throttled to %d KB/s", throttled/1000), Rules: []censor.Rule{censor.UDPAbove("throttle", throttled)}, Begin: flood, End: nothing},
		{ID: "wireguard", Floor: "ii", Title: "WireGuard and its discovery dropped by signature", Rules: []censor.Rule{censor.WireGuard("wireguard")}},
		{ID: "control", Floor: "ii", Title: "control server and relay dropped", Rules: []censor.Rule{control}, NotReached: controlPort},
		{ID: "control-rst", Floor: "ii", Title: "control server and relay reset", Rules: []censor.Rule{censor.Reset(control)}, NotReached: controlPort},
		{ID: "tailscale", Floor: "ii", Title: "UDP, control server and relay dropped", Rules: []censor.Rule{censor.UDP(), control}, NotReached: controlPort},
		{ID: "sni", Floor: "ii", Title: "control server reset by its name in TLS", Rules: []censor.Rule{censor.UDP(), censor.ServerName("sni", "hs.lab.test")}, Begin: knock, End: nothing},
		{ID: "go-tls", Title: "Go's TLS reset by its fingerprint", Rules: []censor.Rule{censor.GoTLS("go-tls")}, Begin: knock, End: nothing},
		{ID: "quic", Title: "QUIC dropped", Rules: []censor.Rule{censor.QUIC("quic")}, Begin: quic, End: nothing},
		{ID: "frozen", Title: "connections with home frozen after 16 KB", Rules: []censor.Rule{censor.UDP(), censor.Frozen("frozen", frozenAfter, home...)}, Hit: []string{"udp"}},
		{ID: "home", PeerLost: true, Floor: "ii", Title: "the operator's whole network dropped", Rules: []censor.Rule{censor.Hosts("home", "home dropped", home...)}, NotReached: edgePort},
		{ID: "edges", PeerLost: true, Floor: "ii", Title: "Tailscale and every edge dropped: public peers are left", Rules: []censor.Rule{censor.UDP(), control, edges}, NotReached: edgePort},
		{ID: "public", PeerLost: true, Title: "Tailscale, every edge and one public peer dropped", Rules: []censor.Rule{censor.UDP(), control, edges, peer}, NotReached: peerPort},
		{ID: "allow-list", PeerLost: true, Title: "an allow-list with one edge on it", Rules: []censor.Rule{censor.Only("list", "all but the listed dropped", append(router, far...)...)}, NotReached: controlPort},
		{ID: "ipv4", PeerLost: true, Title: "IPv4 gone, IPv6 left", Rules: []censor.Rule{censor.Family4("ipv4")}, NotReached: controlPort, Reached: control6},
		{ID: "ipv6", Title: "IPv6 silently dropped", Rules: []censor.Rule{censor.Family6("ipv6")}, NotReached: control6, Reached: controlPort},
		{ID: "loss-2", Title: "2 % loss, up to 200 ms of jitter", Rules: lossy(2, 200*time.Millisecond)},
		{ID: "loss-20", Title: "20 % loss, up to 200 ms of jitter", Rules: lossy(20, 200*time.Millisecond)},
		{ID: "portal", Title: "captive portal, then released", Rules: censor.Portal("portal", portalPort), Hit: []string{"portal-wall"}, After: true, Begin: wait, End: nothing},
		{ID: "control-down", Title: "control server down", Begin: stopControl, End: startControl},
		{ID: "control-gone", Title: "control server gone, laptop rebooted; clock not moved",
			Begin: loseControl, End: regainControl, Since: true, NotReached: controlPort},
		{ID: "moved", Floor: open, Title: "another network: new address, router and NAT", Begin: goOut, End: goHome, Count: outside,
			NA: map[string]string{administrator: "the administrator's laptop stays where it is"}},
		{ID: "sleep", Title: "sleep and resume", Begin: sleep, End: wake, After: true,
			NA: map[string]string{"fresh": "a machine that sleeps does not start its programs"}},
		{ID: "lan", Title: "no Internet, LAN alive: a service of the same LAN", Service: labsite.AtticService, Direct: true,
			Rules: []censor.Rule{censor.Offline("offline")}, NotReached: controlPort},
		{ID: "offline", Title: "no Internet", Rules: []censor.Rule{censor.Offline("offline")}, NotReached: controlPort},
	}
}

// byChance are conditions in which it is the luck of a few packets whether a layer
// by itself answers in time, and why: one that does not in every round is red. Of
// the product more is asked.
var byChance = map[string]string{
	"udp-throttled": "which packets a full limit drops is chance",
	"loss-20":       "which packets are lost is chance",
}

func nothing(context.Context, *Town) error { return nil }

// ask puts one question, so that the rule has something to drop: the laptop's
// own programs keep what they know.
func ask(_ context.Context, t *Town) error {
	return t.question("hs.lab.test", false)
}

func askLiar(_ context.Context, t *Town) (err error) {
	if t.liar, err = t.World.Lie(liarPort); err != nil {
		return err
	}
	return t.question("hs.lab.test", true)
}

func silenceLiar(_ context.Context, t *Town) error { return t.liar.Close() }

// knock does a TLS handshake of Go's with the control server, which must fail.
func knock(ctx context.Context, t *Town) error { return t.handshake(ctx, "hs.lab.test", world.Control) }

// quic sends what a browser would.
func quic(_ context.Context, t *Town) error {
	return t.datagrams(netip.AddrPortFrom(world.Control, 443), 1, 1200)
}

// flood fills the UDP that is left, as other programs of the laptop do.
func flood(_ context.Context, t *Town) error {
	return t.datagrams(netip.AddrPortFrom(world.Control, 9), 100, 1200)
}

func wait(ctx context.Context, t *Town) error { return pause(ctx, asleep/2) }

// stopControl stops the control server where it is: its connections stand and
// carry nothing, as of a machine that hangs.
func stopControl(_ context.Context, t *Town) error {
	return syscall.Kill(t.World.Headscale.PID(), syscall.SIGSTOP)
}

func startControl(_ context.Context, t *Town) error {
	return syscall.Kill(t.World.Headscale.PID(), syscall.SIGCONT)
}

// loseControl ends the control server with its relay, and then starts the laptop
// anew: a reboot that meets nobody. It is what there is of "for days". The clock
// of a machine that others use is not for us to move; what else a day does, which
// is to end every connection and to make every router forget, a reboot does too.
func loseControl(ctx context.Context, t *Town) error {
	t.World.StopControl()
	return t.Laptop.Restart(ctx)
}

func regainControl(ctx context.Context, t *Town) error { return t.World.StartControl(ctx) }

// goOut takes the laptop to the café. A connection that it had must be dead
// there, and a new one live.
func goOut(ctx context.Context, t *Town) (err error) {
	if t.kept, err = t.keep(ctx); err != nil {
		return fmt.Errorf("before leaving: %w", err)
	}
	if t.sent, err = t.World.CafeSent(); err != nil {
		return err
	}
	return t.World.GoOut()
}

func goHome(ctx context.Context, t *Town) error {
	defer t.kept.Close()
	if t.kept.ask() == nil {
		return errors.New("a connection has survived the change of address")
	}
	c, err := t.keep(ctx)
	if err != nil {
		return fmt.Errorf("in the other network: %w", err)
	}
	c.Close()
	return t.World.GoHome()
}

func outside(t *Town) (string, uint64, error) {
	n, err := t.World.CafeSent()
	return "cafe", n - t.sent, err
}

func sleep(ctx context.Context, t *Town) error {
	if err := t.Laptop.Sleep(); err != nil {
		return err
	}
	return pause(ctx, asleep)
}

func wake(_ context.Context, t *Town) error { return t.Laptop.Wake() }
