package yggdrasil

import (
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/admission"
	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
)

func pair(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return pub, key
}

func TestRoster(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes.json")
	fixed, _ := pair(t)
	guest, _ := pair(t)
	open := func() *roster {
		r, err := openRoster(path, []ed25519.PublicKey{fixed})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open()
	if !r.admits(fixed) || r.admits(guest) {
		t.Error("it does not begin with whom the configuration names")
	}
	n := edge.Node{Key: textKey(guest), Name: "anna", Tier: "guest"}
	undo, err := r.add(n)
	if err != nil || undo == nil || !r.admits(guest) || !open().admits(guest) {
		t.Fatalf("adding: %v", err)
	}
	if again, err := r.add(n); err != nil || again != nil {
		t.Errorf("adding again changes something, or %v", err)
	}
	if err := undo(); err != nil || r.admits(guest) || open().admits(guest) {
		t.Errorf("undoing: %v", err)
	}
	if _, err := r.add(n); err != nil {
		t.Fatal(err)
	}
	for _, k := range []ed25519.PublicKey{guest, fixed, guest} {
		if err := r.revoke(textKey(k)); err != nil || r.admits(k) {
			t.Errorf("revoking: %v", err)
		}
	}
	r = open()
	nodes, revoked := r.list()
	want := []site.Key{textKey(guest), textKey(fixed)}
	slices.Sort(want)
	if len(nodes) != 0 || !cmp.Equal(revoked, want) || r.admits(fixed) || r.admits(guest) {
		t.Errorf("after a restart: %v admitted, %v revoked", nodes, revoked)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestRosterWithoutDisk: who is revoked stays out, even if that cannot be
// written down; and whoever ordered it hears so.
func TestRosterWithoutDisk(t *testing.T) {
	fixed, _ := pair(t)
	guest, _ := pair(t)
	r, err := openRoster(filepath.Join(t.TempDir(), "gone", "nodes.json"), []ed25519.PublicKey{fixed})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.revoke(textKey(fixed)); err == nil || r.admits(fixed) {
		t.Errorf("revoking: %v", err)
	}
	if _, err := r.add(edge.Node{Key: textKey(guest)}); err == nil || r.admits(guest) {
		t.Errorf("adding: %v", err)
	}
}

func TestRosterBroken(t *testing.T) {
	key := strings.Repeat("ab", 32)
	for _, text := range []string{
		"", "{", "[]", `{"nodes":[]} x`, `{"nods":[]}`, `{"nodes":[{"key":"ab"}]}`, `{"revoked":["ab"]}`,
		`{"nodes":[{"key":"` + key + `","name":"a\nb"}]}`,
	} {
		path := filepath.Join(t.TempDir(), "nodes.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openRoster(path, nil); err == nil || !strings.Contains(err.Error(), "who was revoked") {
			t.Errorf("%q: %v, want a refusal that says what is at stake", text, err)
		}
	}
}

func FuzzRoster(f *testing.F) {
	key := strings.Repeat("ab", 32)
	f.Add([]byte(`{"nodes":[{"key":"` + key + `","name":"anna","tier":"guest"}],"revoked":["` + strings.ToUpper(key) + `"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &roster{fixed: map[site.Key]bool{}, added: map[site.Key]edge.Node{}, revoked: map[site.Key]bool{}}
		if r.parse(data) != nil {
			return
		}
		nodes, revoked := r.list()
		for _, n := range nodes {
			if slices.Contains(revoked, n.Key) || (edge.Order{Name: n.Name, Tier: n.Tier}).Check() != nil {
				t.Errorf("%v is admitted", n)
			}
		}
		for _, k := range revoked {
			if r.admits(k.Bytes()) {
				t.Errorf("%v is revoked and admitted", k)
			}
		}
	})
}

func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"name":"anna","tier":"guest"}`))
	f.Add([]byte(`{"name":null} {}`))
	key := site.Key(strings.Repeat("ab", 32))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := parseOrder(key, data); err == nil && (n.Key != key || (edge.Order{Name: n.Name, Tier: n.Tier}).Check() != nil) {
			t.Errorf("%q gives %v", data, n)
		}
	})
}

// hello is what the library says first, as node k.
func helloOf(t *testing.T, k ed25519.PrivateKey) []byte {
	t.Helper()
	pub := k.Public().(ed25519.PublicKey)
	h := append([]byte("meta\x00\x00"), 0, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0, 5, 0, 2, 0, 32)
	h = append(append(h, pub...), make([]byte, ed25519.SignatureSize)...)
	h[5] = byte(len(h) - 6)
	return h
}

// TestDoor: a transport gets to the library with a token and a hello of the same
// admitted key, once, and until the key is revoked.
func TestDoor(t *testing.T) {
	self, _ := pair(t)
	guest, guestKey := pair(t)
	_, otherKey := pair(t)
	people, err := openRoster(filepath.Join(t.TempDir(), "nodes.json"), []ed25519.PublicKey{guest})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d := &door{verify: admission.NewVerifier(self, now, people.admits), admits: people.admits, now: func() time.Time { return now }}
	path := filepath.Join(t.TempDir(), "lib.sock")
	library, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer library.Close()
	request := func(k ed25519.PrivateKey) *http.Request {
		token, err := admission.Issue(k, self, now)
		if err != nil {
			t.Fatal(err)
		}
		r := &http.Request{Header: http.Header{}}
		admission.Attach(r.Header, token)
		return r
	}
	admit := d.admit(path)
	if _, err := admit(&http.Request{}); !errors.Is(err, admission.ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
	if _, err := admit(request(otherKey)); !errors.Is(err, admission.ErrStranger) {
		t.Errorf("a stranger: %v", err)
	}
	recorded := request(guestKey)
	// come goes through the door and returns both ends.
	come := func(r *http.Request) (in net.Conn, lib net.Conn) {
		open, err := admit(r)
		if err != nil {
			t.Fatal(err)
		}
		if in, err = open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if lib, err = library.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); lib.Close() })
		return in, lib
	}
	in, lib := come(recorded)
	if _, err := admit(recorded); !errors.Is(err, admission.ErrReplayed) {
		t.Errorf("a recorded request: %v", err)
	}
	hello := helloOf(t, guestKey)
	for _, b := range hello {
		if n, err := in.Write([]byte{b}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := in.Write([]byte("more")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(hello)+4)
	if _, err := io.ReadFull(lib, got); err != nil || string(got) != string(hello)+"more" {
		t.Errorf("the library reads %q, %v", got, err)
	}
	other, _ := come(request(guestKey))
	if _, err := other.Write(helloOf(t, otherKey)); !errors.Is(err, errOtherKey) {
		t.Errorf("the hello of another: %v", err)
	}
	if links := d.links(); len(links) != 1 || links[0].Key != textKey(guest) {
		t.Errorf("links %v, want the one whose hello is through", links)
	}
	noise, _ := come(request(guestKey))
	if _, err := noise.Write([]byte("GET / HTTP/1.1")); err == nil {
		t.Error("no hello at all goes through")
	}

	// Revoked between the token and the transport: still caught.
	late, err := admit(request(guestKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := people.revoke(textKey(guest)); err != nil {
		t.Fatal(err)
	}
	if n := d.turn(textKey(guest)); n != 3 {
		t.Errorf("%d transports closed, want 3", n)
	}
	if _, err := lib.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("the library still hears of it: %v", err)
	}
	if _, err := late(t.Context()); !errors.Is(err, errTurned) {
		t.Errorf("revoked meanwhile: %v", err)
	}
	if len(d.links()) != 0 {
		t.Errorf("links %v", d.links())
	}
}

// TestCompile: who is in which table, with tiers and without.
func TestCompile(t *testing.T) {
	dir := t.TempDir()
	host, _ := pair(t)
	guest, _ := pair(t)
	gone, _ := pair(t)
	stranger, _ := pair(t)
	file := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(townSite, "%s", hexKey(host), 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	nodes := []edge.Node{{Key: textKey(guest), Name: "laptop", Tier: "guest"}, {Key: textKey(stranger), Name: "laptop"}}
	revoked := []site.Key{textKey(gone)}
	plain, err := newWalls(&Config{IfName: "ygg0", Accept: []uint16{443}})
	if err != nil {
		t.Fatal(err)
	}
	f, tiers, err := plain.compile(nodes, revoked)
	if err != nil || tiers != nil || f.AcceptAll || !cmp.Equal(f.From, []netip.Addr{Address(guest), Address(stranger)}, same) || !cmp.Equal(f.Revoked, []netip.Addr{Address(gone)}, same) {
		t.Errorf("without tiers: %+v, %v, %v", f, tiers, err)
	}
	edgeWalls, err := newWalls(&Config{IfName: "ygg0", SitePath: file, Host: "edge"})
	if err != nil {
		t.Fatal(err)
	}
	f, tiers, err = edgeWalls.compile(nodes, revoked)
	if err != nil || tiers == nil || !f.AcceptAll || !cmp.Equal(f.From, []netip.Addr{Address(guest)}, same) || !cmp.Equal(f.Revoked, []netip.Addr{Address(gone)}, same) {
		t.Fatalf("with tiers: %+v, %v", f, err)
	}
	for _, s := range tiers.Sets {
		want := map[string][]netip.Addr{"tier_guest_6": {Address(guest)}, "revoked_6": {Address(gone)}}[s.Name]
		if !cmp.Equal(s.Addresses, want, same) {
			t.Errorf("set %s is %v, want %v", s.Name, s.Addresses, want)
		}
	}
	laptop, err := newWalls(&Config{IfName: "ygg0", SitePath: file, Tier: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	if f, _, err = laptop.compile(nil, nil); err != nil || !cmp.Equal(f.From, []netip.Addr{Address(host)}, same) {
		t.Errorf("a laptop: %+v, %v", f, err)
	}
	if _, _, err := edgeWalls.compile([]edge.Node{{Key: textKey(host), Tier: "guest"}}, nil); err == nil || !strings.Contains(err.Error(), "the key of edge") {
		t.Errorf("a guest with the key of a host: %v", err)
	}
	if f, _, err = edgeWalls.compile(nil, []site.Key{textKey(host)}); err != nil || len(f.From) != 0 {
		t.Errorf("a revoked host: %+v, %v", f, err)
	}
	for _, c := range []*Config{{SitePath: file, Host: "nobody"}, {SitePath: file, Tier: "nobody"}, {SitePath: dir + "/none", Tier: "guest"}} {
		if _, err := newWalls(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

var same = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
