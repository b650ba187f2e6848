package directory

import (
	"crypto"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Two maintainers on two machines sign one draft, each a copy of his own, and a
// third joins them.
func TestJoin(t *testing.T) {
	p, s := newPeople(t), town()
	f := draft(t, Files{}, s, p, start)
	a := sign(t, maps.Clone(f), p.main[0])
	b := sign(t, maps.Clone(f), p.main[2])
	for name, f := range map[string]Files{"a": a, "b": b} {
		if _, err := Verify(f[rootName(1)], nil, f.Get, start); !errors.Is(err, ErrUnsigned) {
			t.Errorf("%s alone: %v", name, err)
		}
	}
	ab, err := Join(a, b)
	if err != nil {
		t.Fatal(err)
	}
	ba, err := Join(b, a)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ab, ba); diff != "" {
		t.Errorf("the order matters:\n%s", diff)
	}
	f = sign(t, ab, p.movers[0])
	if _, err := Verify(f[rootName(1)], nil, f.Get, start); err != nil {
		t.Error(err)
	}
	all, err := f.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if !s.Enough() {
			t.Errorf("%+v", s)
		}
	}
	if _, changes, err := Draft(f, directoryOf(t, s), p.trust, false, start); err != nil || changes != nil {
		t.Errorf("nothing changed: %v, %v", changes, err)
	}
}

func TestJoinRefusesTwoTruths(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	s.Services[0].Ports = []uint16{443, 1}
	a := sign(t, draft(t, f, s, p, start), p.main[0])
	s.Services[0].Ports = []uint16{443, 2}
	b := sign(t, draft(t, f, s, p, start), p.main[1])
	if _, err := Join(a, b); err == nil || !strings.Contains(err.Error(), "different things under one version") {
		t.Errorf("got %v", err)
	}
}

// A signature that was copied under another key's name, or onto another text,
// counts for nothing.
func TestSignaturesAreChecked(t *testing.T) {
	p, s := newPeople(t), town()
	f := sign(t, draft(t, Files{}, s, p, start), p.main[0])
	r, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	forged := r.targets.Signatures[0]
	for _, id := range rootSigners(r.root, "targets").ids {
		if id != forged.KeyID {
			forged.KeyID = id
			break
		}
	}
	r.targets.Signatures = append(r.targets.Signatures, forged)
	if f["1.targets.json"], err = r.targets.ToBytes(false); err != nil {
		t.Fatal(err)
	}
	all, err := f.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Role == "targets" && (len(s.Keys) != 1 || s.Enough()) {
			t.Errorf("%+v", s)
		}
	}
}

func TestStrangerDoesNotSign(t *testing.T) {
	p := newPeople(t)
	f := draft(t, Files{}, town(), p, start)
	if _, _, err := f.Sign(newPeople(t).main[0]); err == nil || !strings.Contains(err.Error(), "none of the directory's") {
		t.Errorf("got %v", err)
	}
	twice := p.trust
	twice.Keys = []crypto.PublicKey{twice.Keys[0], twice.Keys[0]}
	if _, _, err := Draft(Files{}, directoryOf(t, town()), twice, false, start); err == nil || !strings.Contains(err.Error(), "there twice") {
		t.Errorf("got %v", err)
	}
}

// While a change of names waits for its second signature, an edge burns. One
// maintainer of addresses moves it; the change of names goes on waiting, and its
// signature is not lost.
func TestMoveWhileNamesWait(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	waiting := town()
	waiting.Services = waiting.Services[:1]
	f = sign(t, draft(t, f, waiting, p, start), p.main[0])

	s.Yggdrasil.Edges[0].Address = netip.MustParseAddrPort("185.1.1.1:443")
	f, _, err := Draft(f, directoryOf(t, s), p.trust, true, start.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	f = sign(t, f, p.movers[0])
	d, err := st.Take(f.Get, start.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	if d.Edges()[0].Address.String() != "185.1.1.1:443" || len(d.Names.Services) != 2 {
		t.Errorf("%+v", d)
	}
	waiting.Yggdrasil.Edges[0].Address = s.Yggdrasil.Edges[0].Address
	f = sign(t, draft(t, f, waiting, p, start.Add(2*day)), p.main[1], p.movers[1])
	d, err = st.Take(f.Get, start.Add(2*day))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Names.Services) != 1 || d.Edges()[0].Address.String() != "185.1.1.1:443" {
		t.Errorf("%+v", d)
	}
}

// The same while a new root waits: it is dropped, or laptops would stumble over
// it.
func TestMoveWhileRootWaits(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	q := *p
	q.trust.Threshold = 3
	f = sign(t, draft(t, f, s, &q, start), p.main[0])
	s.Yggdrasil.Edges[0].Address = netip.MustParseAddrPort("185.1.1.1:443")
	f, _, err := Draft(f, directoryOf(t, s), p.trust, true, start.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	f = sign(t, f, p.movers[0])
	if _, err := st.Take(f.Get, start.Add(day)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := WriteRepository(dir, publish(t, Files{}, town(), p, start)); err != nil {
		t.Fatal(err)
	}
	if err := WriteRepository(dir, f); err != nil {
		t.Fatal(err)
	}
	again, err := ReadRepository(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again[rootName(2)] != nil {
		t.Error("the dropped root is still there")
	}
}

// What nobody changes is renewed before it ends, each in its own time, and the
// laptop follows for three years.
func TestRenewal(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	for now := start; now.Before(start.AddDate(3, 0, 0)); now = now.Add(26 * day) {
		f = publish(t, f, s, p, now)
		d, err := st.Take(f.Get, now)
		if err != nil && !errors.Is(err, ErrCurrent) {
			t.Fatalf("%v: %v", now, err)
		}
		if d.Freshness(now) != Fresh {
			t.Fatalf("%v: %v, expires %v", now, d.Freshness(now), d.Expires)
		}
	}
	packed, err := Pack(must(st.newest()).Files)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after three years the laptop keeps %d bytes", len(packed))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
