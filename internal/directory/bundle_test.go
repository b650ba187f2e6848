package directory

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// packedTown is a signed town, as a file.
func packedTown(t testing.TB) (*people, Files, []byte) {
	t.Helper()
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	c, err := Verify(f[rootName(1)], nil, f.Get, start)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := Pack(c.Files)
	if err != nil {
		t.Fatal(err)
	}
	return p, c.Files, packed
}

func TestPackAndQR(t *testing.T) {
	_, files, packed := packedTown(t)
	q, err := Unpack(packed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(files, q.Files); diff != "" {
		t.Error(diff)
	}
	codes, err := QR(packed)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes of PEM are %d QR codes", len(packed), len(codes))
	slices.Reverse(codes) // scanned in any order, and one of them twice
	text := strings.Join(append(codes, codes[0]), "\r\n") + "\n\n"
	for _, c := range text {
		if c != '\n' && c != '\r' && !strings.ContainsRune(alphabet45, c) {
			t.Fatalf("%q is not in QR's alphanumeric mode", c)
		}
	}
	if q, err = Unpack([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(files, q.Files); diff != "" {
		t.Error(diff)
	}
	if _, err := Unpack([]byte(codes[0])); err == nil || !strings.Contains(err.Error(), "is missing; scan it as well") {
		t.Errorf("one code of several: %v", err)
	}
}

func TestBase45(t *testing.T) {
	// RFC 9285 §4.3 and §4.4.
	for plain, want := range map[string]string{"AB": "BB8", "Hello!!": "%69 VD92EX0", "base-45": "UJCLQE7W581", "ietf!": "QED8WEX0", "": ""} {
		if got := base45([]byte(plain)); got != want {
			t.Errorf("%q: %q, want %q", plain, got, want)
		}
		if got, err := unbase45(want); err != nil || string(got) != plain {
			t.Errorf("%q: %q, %v", want, got, err)
		}
	}
	for _, bad := range []string{"GGW", "::", "A", "ABCD", "ab8"} {
		if _, err := unbase45(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	bomb, err := pack(bundleType, map[string]string{"timestamp.json": strings.Repeat("a", 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	alien, err := pack(bundleType, map[string]string{"../../etc/passwd": ""})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		text []byte
		want error
	}{
		{"bomb", bomb, ErrTooLarge},
		{"long", bytes.Repeat([]byte("A"), MaxPacket+1), ErrTooLarge},
		{"path", alien, ErrDamaged},
		{"other PEM", []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), ErrDamaged},
		{"text", []byte("hello"), ErrDamaged},
		{"part 0", []byte("VEILOR:D/0/1:AB"), ErrDamaged},
		{"13 parts", []byte("VEILOR:D/1/13:AB"), ErrDamaged},
		{"other kind", []byte("VEILOR:X/1/1:AB"), ErrDamaged},
		{"two sets", []byte("VEILOR:D/1/2:BB8\nVEILOR:D/2/3:BB8"), ErrDamaged},
		{"two codes 1", []byte("VEILOR:D/1/1:BB8\nVEILOR:D/1/1:BB9"), ErrDamaged},
		{"no zlib", []byte("VEILOR:D/1/1:BB8"), ErrDamaged},
	} {
		if _, err := Unpack(c.text); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := Unpack(nil); err == nil {
		t.Error("nothing was read")
	}
	noise := make([]byte, 64<<10)
	rand.Read(noise) // never fails
	if _, err := QR(pem.EncodeToMemory(&pem.Block{Type: bundleType, Bytes: noise})); !errors.Is(err, ErrTooLarge) {
		t.Errorf("64 KiB as QR codes: %v", err)
	}
}

func TestReserve(t *testing.T) {
	p, files, packed := packedTown(t)
	st := store(t, files, town())
	edge := ReservedEdge{
		Node:        Node{Name: "reserve-1", URL: "wss://shop.example.fi/", Key: "00000000000000000000000000000000000000000000000000000000000000c1"},
		NodeAddress: NodeAddress{Name: "reserve-1", Address: netip.MustParseAddrPort("95.216.1.1:443"), Network: "AS64504"},
	}
	made := func(number int64, keys ...int) *Packet {
		e, err := NewReserve(laptop, number, []ReservedEdge{edge}, nil, start)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if err := e.Sign(p.main[k]); err != nil {
				t.Fatal(err)
			}
		}
		text, err := e.Pack()
		if err != nil {
			t.Fatal(err)
		}
		codes, err := QR(text)
		if err != nil {
			t.Fatal(err)
		}
		packet, err := Unpack([]byte(strings.Join(codes, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	movers := made(1)
	for _, k := range p.movers {
		if err := movers.Reserve.Sign(k); err != nil {
			t.Fatal(err)
		}
	}
	changed := made(1, 0, 1)
	changed.Reserve.Payload = bytes.Replace(changed.Reserve.Payload, []byte("95.216.1.1"), []byte("95.216.1.2"), 1)
	twice := made(1, 0)
	twice.Reserve.Signatures = append(twice.Reserve.Signatures, twice.Reserve.Signatures[0])
	for _, c := range []struct {
		name   string
		packet *Packet
		laptop string
		now    time.Time
		want   error
	}{
		{"one signature of two", made(1, 0), laptop, start, ErrUnsigned},
		{"one signature twice", twice, laptop, start, ErrUnsigned},
		{"those who may only move", movers, laptop, start, ErrUnsigned},
		{"changed", changed, laptop, start, ErrUnsigned},
		{"another laptop", made(1, 0, 1), hostKey, start, ErrStranger},
		{"late", made(1, 0, 1), laptop, start.AddDate(1, 0, 0), ErrExpired},
	} {
		if _, _, err := st.Import(c.packet, c.laptop, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if peers, err := st.Reserve(c.laptop); err != nil || peers != nil {
			t.Errorf("%s: %v, %v", c.name, peers, err)
		}
	}
	if _, r, err := st.Import(made(2, 0, 2), laptop, start); err != nil || r.Number != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	want := []Peer{edge.Peer()}
	if peers, err := st.Reserve(laptop); err != nil || !cmp.Equal(want, peers, addrs) {
		t.Errorf("%v, %v", peers, err)
	}
	if _, _, err := st.Import(made(1, 0, 1), laptop, start); !errors.Is(err, ErrOlder) {
		t.Errorf("an older list: %v", err)
	}
	if _, _, err := st.Import(made(2, 0, 1), laptop, start); !errors.Is(err, ErrCurrent) {
		t.Errorf("the same list: %v", err)
	}
	// A directory by the same way.
	q, err := Unpack(packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.Import(q, laptop, start); !errors.Is(err, ErrCurrent) {
		t.Errorf("the directory that is in force: %v", err)
	}
}

// A repository over HTTP, with a server that fails first, and a laptop that
// follows a change.
func TestRefresh(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	served := make(chan Files, 1)
	served <- f
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := <-served
		defer func() { served <- f }()
		name := strings.TrimPrefix(r.URL.Path, "/directory/")
		asked = append(asked, name)
		switch data, ok := f[name]; {
		case len(asked) == 1:
			http.Redirect(w, r, "/portal", http.StatusFound)
		case len(asked) == 2:
			w.Write(bytes.Repeat([]byte("x"), maxMetadata+1))
		case ok:
			w.Write(data)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL + "/directory")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed, failed, tick := make(chan Directory), make(chan error), make(chan time.Time)
	waits := make(chan time.Duration, 16)
	r := Refresher{
		Store: st, Client: srv.Client(), Base: base,
		Now:     func() time.Time { return start },
		After:   func(d time.Duration) <-chan time.Time { waits <- d; return tick },
		Changed: func(d Directory) { changed <- d },
		Failed:  func(err error) { failed <- err },
	}
	done := make(chan struct{})
	kick := make(chan struct{}, 1)
	go func() { r.Run(ctx, kick); close(done) }()
	if err := <-failed; !strings.Contains(err.Error(), "302") {
		t.Errorf("a portal: %v", err)
	}
	kick <- struct{}{} // a layer comes up: no need to wait
	if err := <-failed; !errors.Is(err, ErrTooLarge) {
		t.Errorf("a huge timestamp: %v", err)
	}
	first, second := <-waits, <-waits
	if first < retryFirst || first > retryFirst*5/4 || second < 2*retryFirst || second > 2*retryFirst*5/4 {
		t.Errorf("waits of %v and %v", first, second)
	}
	tick <- start // nothing new
	if wait := <-waits; wait < refreshEvery || wait > refreshEvery*5/4 {
		t.Errorf("waits %v when all is well", wait)
	}
	kick <- struct{}{} // and where all is well, no reason to ask
	<-served
	asked = []string{"", ""}
	s.Yggdrasil.Edges[0].Address = netip.MustParseAddrPort("185.1.1.1:443")
	served <- sign(t, draft(t, f, s, p, start), p.movers[0])
	tick <- start
	if d := <-changed; d.Edges()[0].Address.String() != "185.1.1.1:443" {
		t.Errorf("%+v", d.Edges())
	}
	cancel()
	<-done
	<-served
	if len(kick) != 1 {
		t.Error("a layer that came up made it ask again though all was well")
	}
	// Only what is new was fetched.
	if got, want := len(asked)-2, 5; got != want {
		t.Errorf("%d files were asked for, want %d: %v", got, want, asked)
	}
}

func FuzzImport(f *testing.F) {
	p, files, packed := packedTown(f)
	f.Add(packed)
	codes, err := QR(packed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(strings.Join(codes, "\n")))
	e, err := NewReserve(laptop, 1, []ReservedEdge{{
		Node:        Node{Name: "r", URL: "wss://r.example.org/", Key: hostKey},
		NodeAddress: NodeAddress{Name: "r", Address: netip.MustParseAddrPort("95.216.1.1:443")},
	}}, []byte("a password of the group"), start)
	if err != nil {
		f.Fatal(err)
	}
	if err := e.Sign(p.main[0]); err != nil {
		f.Fatal(err)
	}
	text, err := e.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	anchor := files[rootName(1)]
	root, err := newestRoot(files)
	if err != nil {
		f.Fatal(err)
	}
	have, err := Verify(anchor, nil, files.Get, start)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		packet, err := Unpack(data)
		if err != nil {
			return
		}
		if packet.Reserve != nil {
			if _, err := packet.Reserve.open(root, laptop, 0, start); err == nil {
				t.Fatal("a list with one signature was taken")
			}
			return
		}
		if _, err := Verify(anchor, have, packet.Files.Get, start); err == nil {
			t.Fatal("something newer was taken, and nobody signed it")
		}
	})
}

// FuzzMetadata changes one file of a signed repository, so that the readers of
// metadata see more than what was packed well.
func FuzzMetadata(f *testing.F) {
	_, files, _ := packedTown(f)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		f.Add(uint8(i), files[name])
	}
	anchor := files[rootName(1)]
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		name := names[int(which)%len(names)]
		changed := Files{}
		for n, d := range files {
			changed[n] = d
		}
		changed[name] = data
		c, err := Verify(anchor, nil, changed.Get, start)
		if err == nil && (c.Directory.Version != 1 || c.Directory.Moves != 1 || c.Directory.Edges()[0].Key != edgeKey1) {
			t.Fatalf("%s: a change was believed: %+v", name, c.Directory)
		}
		changed.Signatures()
		Join(files, changed)
	})
}
