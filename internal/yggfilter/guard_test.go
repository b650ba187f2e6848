package yggfilter

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/nftguard"
)

var guarded = nftguard.Table{Family: nftables.TableFamilyINet, Name: Table}

// guard keeps tables in ns until the test ends. calm makes it forget that it has
// just restored one.
func guard(t *testing.T, ns netns.NsHandle) (g *nftguard.Guard, calm func()) {
	t.Helper()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	must(t, within(t, ns, func() (err error) {
		g, err = nftguard.Open(slog.New(slog.NewTextHandler(t.Output(), nil)), now)
		return err
	}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g, func() { ahead.Add(int64(time.Hour)) }
}

// until waits for a condition of the world that nothing announces.
func until(t *testing.T, what string, is func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waiting until %s: in vain", what)
		}
	}
	return time.Since(start)
}

func nft(t *testing.T, ns netns.NsHandle, command string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("NOT TESTED without nft: apt install nftables")
	}
	must(t, within(t, ns, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(command)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("nft: %s", out)
		}
		return err
	}))
}

// TestGuardTampering changes the table in every way that opens something.
func TestGuardTampering(t *testing.T) {
	ns := namespace(t)
	opt := nftables.WithNetNSFd(int(ns))
	g, calm := guard(t, ns)
	f := Filter{Interface: "ygg0", Accept: []uint16{443}, From: []netip.Addr{netip.MustParseAddr("200::2")}}
	must(t, g.Put(guarded, func() error { return f.Load(opt) }))
	list := func() (out string) {
		must(t, within(t, ns, func() error {
			b, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
			out = string(b)
			return err
		}))
		return out
	}
	nft(t, ns, "") // or skip
	want := list()
	restored := 0
	for _, how := range []string{
		"flush ruleset",
		"delete table inet veilor_ygg",
		"flush table inet veilor_ygg",
		"flush chain inet veilor_ygg from",
		"insert rule inet veilor_ygg from accept",
		"add element inet veilor_ygg admitted { 200::3 }",
		"delete element inet veilor_ygg admitted { 200::2 }",
		"add table inet veilor_ygg { flags dormant; }",
		"flush ruleset; table inet veilor_ygg { chain input { type filter hook input priority 0; policy accept; }; }",
	} {
		calm()
		nft(t, ns, how)
		restored++
		until(t, "it is restored after "+how, func() bool { return g.Tally().Restored == restored })
		if got := list(); got != want {
			t.Errorf("%s: afterwards it is\n%s\nwant\n%s", how, got, want)
		}
	}
	// What is not ours is left alone, and a load of ours is no tampering.
	nft(t, ns, "table inet other { chain input { type filter hook input priority 0; policy accept; }; }")
	f.Accept = append(f.Accept, 80)
	must(t, g.Put(guarded, func() error { return f.Load(opt) }))
	nft(t, ns, "delete table inet other")
	calm()
	nft(t, ns, "flush table inet veilor_ygg")
	until(t, "it is restored", func() bool { return g.Tally().Restored > restored })
	if got := g.Tally(); got.Restored != restored+1 || got.By != "nft" || got.Table != Table || got.Missing {
		t.Errorf("%+v; want %d, the last because of nft", got, restored+1)
	}
	if !strings.Contains(list(), "dport 80 accept") {
		t.Error("an older table was restored")
	}
}

// TestGuardFight: somebody empties the ruleset as fast as he can.
func TestGuardFight(t *testing.T) {
	ns := namespace(t)
	opt := nftables.WithNetNSFd(int(ns))
	g, _ := guard(t, ns)
	f := Filter{Interface: "ygg0"}
	must(t, g.Put(guarded, func() error { return f.Load(opt) }))
	foe, err := nftables.New(opt)
	must(t, err)
	start := time.Now()
	for time.Since(start) < 2*time.Second {
		foe.FlushRuleset()
		must(t, foe.Flush())
	}
	took := time.Since(start)
	// 50 ms, 100 ms, 200 ms … fit into the time, and the first.
	most := 2
	for gap, sum := 50*time.Millisecond, time.Duration(0); sum < took; gap *= 2 {
		sum += gap
		most++
	}
	got := g.Tally()
	if got.Restored > most {
		t.Errorf("restored %d times in %v, want at most %d", got.Restored, took, most)
	}
	until(t, "the table is back", func() bool {
		tables, err := foe.ListTables()
		return err == nil && len(tables) == 1 && !g.Tally().Missing
	})
	t.Logf("%d restorations in a fight of %v", got.Restored, took)
}

// TestGuardAdopt keeps a table that another program loads.
func TestGuardAdopt(t *testing.T) {
	ns := namespace(t)
	opt := nftables.WithNetNSFd(int(ns))
	g, _ := guard(t, ns)
	loads := make(chan string, 100)
	f := Filter{Interface: "ygg0"}
	must(t, g.Adopt(guarded, "its-owner", func() error { loads <- "restored"; return f.Load(opt) }))
	nft(t, ns, "table inet other { }") // nothing to keep yet
	must(t, f.Load(opt))               // by this test's program: it is there now
	foe, err := nftables.New(opt)
	must(t, err)
	until(t, "it is noticed and restored", func() bool {
		// The first of these may come before the guard has seen the table.
		foe.FlushRuleset()
		must(t, foe.Flush())
		select {
		case <-loads:
			return true
		default:
			must(t, f.Load(opt))
			return false
		}
	})
}

// TestGuardGap floods a closed port and says what comes through while the table
// is away.
func TestGuardGap(t *testing.T) {
	node, stranger := namespace(t), namespace(t)
	opt := nftables.WithNetNSFd(int(node))
	must(t, within(t, node, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ygg0"}, PeerName: "far", PeerNamespace: netlink.NsFd(stranger)})
	}))
	for _, end := range []struct {
		ns         netns.NsHandle
		link, addr string
	}{{node, "ygg0", "200::1/7"}, {stranger, "far", "200::2/7"}} {
		must(t, within(t, end.ns, func() error {
			l, err := netlink.LinkByName(end.link)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(end.addr)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}))
	}
	neighbours(t, node, "ygg0", stranger, "far")
	var closed, from net.PacketConn
	must(t, within(t, node, func() (err error) { closed, err = net.ListenPacket("udp6", "[::]:5000"); return err }))
	defer closed.Close()
	must(t, within(t, stranger, func() (err error) { from, err = net.ListenPacket("udp6", "[200::2]:5000"); return err }))
	defer from.Close()

	g, _ := guard(t, node)
	f := Filter{Interface: "ygg0"}
	must(t, g.Put(guarded, func() error { return f.Load(opt) }))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sent := make(chan int, 1)
	go func() {
		to, n := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("[200::1]:5000")), 0
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				sent <- n
				return
			case <-tick.C:
				if _, err := from.WriteTo([]byte("x"), to); err == nil {
					n++
				}
			}
		}
	}()
	foe, err := nftables.New(opt)
	must(t, err)
	count := func() (n int) {
		buf := make([]byte, 9)
		for {
			closed.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, _, err := closed.ReadFrom(buf); err != nil {
				return n
			}
			n++
		}
	}
	if n := count(); n != 0 {
		t.Fatalf("%d packets before the flush, want none", n)
	}
	foe.FlushRuleset()
	must(t, foe.Flush())
	gap := until(t, "the table is back", func() bool { return g.Tally().Restored == 1 })
	through := count()
	if again := count(); again != 0 {
		t.Errorf("%d packets after it was restored, want none", again)
	}
	stop()
	t.Logf("restored after %v; %d of %d packets came through", gap, through, <-sent)
}
