package directory

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/veilor/veilor-os/internal/site"
)

// start is when the tests' maintainers begin.
var start = time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC)

// Keys of nodes: any 32 bytes.
const (
	hostKey  = "0000000000000000000000000000000000000000000000000000000000000001"
	edgeKey1 = "00000000000000000000000000000000000000000000000000000000000000e1"
	edgeKey2 = "00000000000000000000000000000000000000000000000000000000000000e2"
	peerKey  = "00000000000000000000000000000000000000000000000000000000000000f1"
	laptop   = "00000000000000000000000000000000000000000000000000000000000000aa"
)

// town is a whole site.
func town() *site.Site {
	return &site.Site{
		Zone: "veilor",
		Control: site.Control{
			URL: "https://hs.example.org", Network: "AS64500",
			Addresses: []netip.Addr{netip.MustParseAddr("5.9.10.10"), netip.MustParseAddr("2a01:4f8:1::10")},
			Relays:    []site.Relay{{Name: "derp.example.org", Addresses: []netip.Addr{netip.MustParseAddr("5.9.10.11")}, Network: "AS64500"}},
		},
		Hosts: []site.Host{{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1"), Yggdrasil: hostKey}},
		Services: []site.Service{
			{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}, Loopback: netip.MustParseAddr("127.83.0.1")},
			{Name: "dl.veilor", Host: "nullstone", Ports: []uint16{443, 80}, Loopback: netip.MustParseAddr("127.83.0.2")},
		},
		Yggdrasil: site.Yggdrasil{
			Edges: []site.Peer{
				{Name: "edge-1", URL: "wss://one.example.net/", Address: netip.MustParseAddrPort("46.4.1.1:443"), Network: "AS64501", Key: edgeKey1},
				{Name: "edge-2", URL: "wss://two.example.com/", Address: netip.MustParseAddrPort("51.15.1.1:443"), Network: "AS64502", Key: edgeKey2},
			},
			Public: []site.Peer{{Name: "public-1", URL: "wss://peer.example.net/", Address: netip.MustParseAddrPort("[2a03:3b40::1]:443"), Key: peerKey}},
		},
	}
}

func directoryOf(t testing.TB, s *site.Site) Directory {
	t.Helper()
	d, err := FromSite(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// people are maintainers: three for everything, of whom two must sign, and two
// for addresses, of whom one is enough.
type people struct {
	main, movers []signature.Signer
	trust        Trust
}

func newPeople(t testing.TB) *people {
	t.Helper()
	p := &people{trust: Trust{Threshold: 2, AddressesThreshold: 1}}
	add := func(n int, keys *[]signature.Signer, public *[]crypto.PublicKey) {
		for range n {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			s, err := signature.LoadECDSASigner(k, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			*keys, *public = append(*keys, s), append(*public, &k.PublicKey)
		}
	}
	add(3, &p.main, &p.trust.Keys)
	add(2, &p.movers, &p.trust.AddressKeys)
	return p
}

func draft(t testing.TB, f Files, s *site.Site, p *people, now time.Time) Files {
	t.Helper()
	f, _, err := Draft(f, directoryOf(t, s), p.trust, false, now)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func sign(t testing.TB, f Files, keys ...signature.Signer) Files {
	t.Helper()
	for _, k := range keys {
		var err error
		if f, _, err = f.Sign(k); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// publish drafts s and has enough people sign it.
func publish(t testing.TB, f Files, s *site.Site, p *people, now time.Time) Files {
	t.Helper()
	return sign(t, draft(t, f, s, p, now), p.main[0], p.main[1], p.movers[0])
}

// store is a laptop whose image carries f.
func store(t testing.TB, f Files, s *site.Site) Store {
	t.Helper()
	c, err := Verify(f[rootName(1)], nil, f.Get, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := Pack(c.Files)
	if err != nil {
		t.Fatal(err)
	}
	image := *s
	image.Directory = &site.Directory{Signed: site.File{Data: packed}}
	return Store{Dir: t.TempDir(), Site: &image}
}

func current(t testing.TB, st Store) Directory {
	t.Helper()
	d, err := Current(st.Dir, st.Site)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
