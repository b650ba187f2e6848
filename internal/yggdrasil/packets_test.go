package yggdrasil

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
)

// library starts a node of the library alone, which listens at a socket.
func library(t *testing.T, opts ...core.SetupOption) (*core.Core, *url.URL) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	lib := &logger{to: slog.New(slog.NewTextHandler(io.Discard, nil))}
	c, err := core.New(&tls.Certificate{PrivateKey: key}, lib, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	at := &url.URL{Scheme: "unix", Path: filepath.Join(t.TempDir(), "s")}
	if _, err := c.Listen(at, ""); err != nil {
		t.Fatal(err)
	}
	return c, at
}

// questions are the library's ways to ask another node.
type questions map[string]core.AddHandlerFunc

func (q questions) AddHandler(name, _ string, _ []string, f core.AddHandlerFunc) error {
	q[name] = f
	return nil
}

// packet is an IPv6 packet with a text.
func packet(from, to netip.Addr, text string) []byte {
	p := make([]byte, minHeader, minHeader+len(text))
	p[0], p[5], p[6] = 6<<4, byte(len(text)), 59 // no next header
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	return append(p, text...)
}

// read passes the texts of packets on until the node stops.
func read(from io.Reader) <-chan string {
	texts := make(chan string, 100)
	go func() {
		for buf := make([]byte, maxMTU); ; {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case texts <- string(buf[minHeader:n]):
			default:
			}
		}
	}()
	return texts
}

// TestPackets lets a node of the library speak with one of ours: traffic passes
// both ways, but questions for our peers or our nodeinfo get no answer.
func TestPackets(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED in -short: no answer takes 6 s to be none")
	}
	t.Parallel()
	asker, _ := library(t)
	ask := questions{}
	if err := asker.SetAdmin(ask); err != nil {
		t.Fatal(err)
	}
	theirs := ipv6rwc.NewReadWriteCloser(asker)
	stock, stockAt := library(t)
	read(ipv6rwc.NewReadWriteCloser(stock))
	node, nodeAt := library(t)
	ours := newPackets(node, time.Now)
	for _, at := range []*url.URL{stockAt, nodeAt} {
		if err := asker.AddPeer(at, ""); err != nil {
			t.Fatal(err)
		}
	}
	weRead, theyRead := read(ours), read(theirs) // who does not read has no sessions either
	them := Address(asker.PublicKey())
	// The network may lose packets while it finds its shape.
	await := func(texts <-chan string, send func()) string {
		t.Helper()
		late := time.After(30 * time.Second)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for send(); ; {
			select {
			case s := <-texts:
				return s
			case <-tick.C:
				send()
			case <-late:
				t.Fatal("no packet came")
			}
		}
	}
	if s := await(weRead, func() { theirs.Write(packet(them, ours.self, "there")) }); s != "there" {
		t.Errorf("we read %q", s)
	}
	if s := await(theyRead, func() { ours.Write(packet(ours.self, them, "back")) }); s != "back" {
		t.Errorf("they read %q", s)
	}
	for name, p := range map[string][]byte{
		"of another": packet(them, ours.self, "x"), "to nobody": packet(ours.self, netip.MustParseAddr("fe80::1"), "x"),
		"to a subnet": packet(ours.self, netip.MustParseAddr("300::1"), "x"), "cut": {6 << 4}, "of IPv4": make([]byte, 60), "empty": nil,
	} {
		if _, err := ours.Write(p); err == nil {
			t.Errorf("a packet %s is sent", name)
		}
	}
	// Forged: the key is the asker's, the address is not. asker.WriteTo does not
	// look at addresses, as a hostile node would not.
	asker.WriteTo(packet(Address(stock.PublicKey()), ours.self, "forged"), types.Addr(node.PublicKey()))
	for s := ""; s != "honest"; {
		if s = await(weRead, func() { theirs.Write(packet(them, ours.self, "honest")) }); s == "forged" {
			t.Error("a forged source was believed")
		}
	}

	for name, f := range ask {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			about := func(c *core.Core) error {
				in, err := json.Marshal(map[string]string{"key": hexKey(c.PublicKey())})
				if err != nil {
					t.Fatal(err)
				}
				_, err = f(in)
				return err
			}
			late := time.Now().Add(30 * time.Second)
			for err := about(stock); err != nil; err = about(stock) {
				if time.Now().After(late) {
					t.Fatalf("the library does not answer either, so this proves nothing: %v", err)
				}
			}
			if err := about(node); err == nil {
				t.Error("our node answers")
			}
		})
	}
}

// TestPacketsBounded: a scan does not fill the memory, and what is not used is
// forgotten.
func TestPacketsBounded(t *testing.T) {
	node, _ := library(t)
	now := time.Unix(1e9, 0)
	p := newPackets(node, func() time.Time { return now })
	for i := range 2 * maxWaiting {
		to := netip.AddrFrom16([16]byte{2, 15: byte(i), 14: byte(i >> 8)})
		if _, err := p.Write(packet(p.self, to, "x")); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.waiting) != maxWaiting {
		t.Errorf("%d packets wait, want %d", len(p.waiting), maxWaiting)
	}
	key, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.learn(key)
	now = now.Add(keyLife)
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.learn(other)
	if len(p.waiting) != 0 || len(p.known) != 1 {
		t.Errorf("after %v: %d wait, %d are known", keyLife, len(p.waiting), len(p.known))
	}
}
