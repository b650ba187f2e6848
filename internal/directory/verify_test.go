package directory

import (
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

func TestSignedDirectory(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	d := current(t, st)
	want := directoryOf(t, s)
	want.Origin, want.Version, want.Moves = Signed, 1, 1
	want.Made, want.Expires = start.Truncate(day), start.Truncate(day).Add(timestampLife)
	if diff := cmp.Diff(want, d, addrs); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := st.Take(f.Get, start); !errors.Is(err, ErrCurrent) {
		t.Errorf("the same once more: %v", err)
	}
}

// One maintainer of addresses moves an edge alone; the laptop takes it, and keeps
// it over a reboot.
func TestMoveAnEdge(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	moved := netip.MustParseAddrPort("185.1.1.1:443")
	s.Yggdrasil.Edges[0].Address, s.Yggdrasil.Edges[0].Network = moved, "AS64503"
	f = sign(t, draft(t, f, s, p, start.Add(day)), p.movers[1])
	d, err := st.Take(f.Get, start.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Edges()[0].Address; got != moved {
		t.Errorf("edge at %v", got)
	}
	if d.Version != 1 || d.Moves != 2 {
		t.Errorf("versions %d, %d", d.Version, d.Moves)
	}
	if diff := cmp.Diff(d, current(t, st), addrs); diff != "" {
		t.Errorf("after a reboot, -want +got:\n%s", diff)
	}
}

// The keys for addresses are good for nothing else.
func TestMoversMoveOnly(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)

	t.Run("another key for an edge", func(t *testing.T) {
		s := town()
		s.Yggdrasil.Edges[0].Key = laptop
		f := sign(t, draft(t, f, s, p, start), p.movers...)
		if _, err := st.Take(f.Get, start); err == nil {
			t.Error("taken")
		}
		// Not even with an index that vouches for it.
		f = forceIndex(t, f, p)
		if _, err := st.Take(f.Get, start); !errors.Is(err, ErrUnsigned) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("directory.json in their own role", func(t *testing.T) {
		r, err := open(maps.Clone(f))
		if err != nil {
			t.Fatal(err)
		}
		m := metadata.Targets(start.Add(addressesLife))
		m.Signed.Version = 2
		maps.Copy(m.Signed.Targets, r.addresses.Signed.Targets)
		maps.Copy(m.Signed.Targets, r.targets.Signed.Targets)
		r.addresses = m
		f := indexed(t, r, p)
		if _, err := st.Take(f.Get, start); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "may not change") {
			t.Errorf("got %v", err)
		}
	})
	if d := current(t, st); d.Edges()[0].Key != edgeKey1 {
		t.Errorf("the edge's key is %s", d.Edges()[0].Key)
	}
}

// forceIndex has the movers sign snapshot and timestamp, which Sign refuses while
// the names are not signed.
func forceIndex(t *testing.T, f Files, p *people) Files {
	t.Helper()
	r, err := open(maps.Clone(f))
	if err != nil {
		t.Fatal(err)
	}
	return indexed(t, r, p)
}

// indexed signs what movers can of r, with a new index.
func indexed(t *testing.T, r *repository, p *people) Files {
	t.Helper()
	r.snapshot.Signed.Version++
	r.snapshot.Signed.Meta["targets.json"].Version = r.targets.Signed.Version
	r.snapshot.Signed.Meta["addresses.json"].Version = r.addresses.Signed.Version
	r.timestamp.Signed.Version++
	r.timestamp.Signed.Meta["snapshot.json"].Version = r.snapshot.Signed.Version
	r.addresses.ClearSignatures()
	r.snapshot.ClearSignatures()
	r.timestamp.ClearSignatures()
	for _, sign := range []func() error{
		func() error { _, err := r.addresses.Sign(p.movers[0]); return err },
		func() error { _, err := r.snapshot.Sign(p.movers[0]); return err },
		func() error { _, err := r.timestamp.Sign(p.movers[0]); return err },
	} {
		if err := sign(); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range r.parts() {
		var err error
		if r.files[q.file], err = q.write(); err != nil {
			t.Fatal(err)
		}
	}
	return r.files
}

func TestRefusals(t *testing.T) {
	p, s := newPeople(t), town()
	first := publish(t, Files{}, s, p, start)
	st := store(t, first, s)
	newer := town()
	newer.Services = newer.Services[:1]
	second := publish(t, first, newer, p, start.Add(day))
	if _, err := st.Take(second.Get, start.Add(day)); err != nil {
		t.Fatal(err)
	}
	inForce := current(t, st)
	third := town()
	third.Services[0].Ports = []uint16{443, 8443}

	half := draft(t, second, third, p, start.Add(2*day))
	half = forceIndex(t, sign(t, half, p.main[0]), p)
	stranger := newPeople(t)
	damaged := maps.Clone(publish(t, second, third, p, start.Add(2*day)))
	for name, data := range damaged {
		if strings.HasPrefix(name, "targets/") && strings.Contains(string(data), "8443") {
			damaged[name] = []byte(strings.Replace(string(data), "8443", "8444", 1))
		}
	}
	huge := maps.Clone(publish(t, second, third, p, start.Add(2*day)))
	huge["timestamp.json"] = append(huge["timestamp.json"], make([]byte, maxMetadata)...)
	gone := maps.Clone(publish(t, second, third, p, start.Add(2*day)))
	delete(gone, "3.targets.json")

	for _, c := range []struct {
		name  string
		files Files
		now   time.Time
		want  error
	}{
		{"one signature of two", half, start.Add(2 * day), ErrUnsigned},
		{"strangers'", publish(t, Files{}, third, stranger, start.Add(9*day)), start.Add(9 * day), ErrUnsigned},
		{"rolled back", first, start.Add(2 * day), ErrOlder},
		{"expired", publish(t, second, third, p, start.Add(2*day)), start.Add(90 * day), ErrExpired},
		{"clock a year ahead", publish(t, second, third, p, start.Add(2*day)), start.AddDate(1, 0, 0), ErrExpired},
		{"oversized", huge, start.Add(2 * day), ErrTooLarge},
		{"another target than was signed", damaged, start.Add(2 * day), ErrDamaged},
		{"a file is missing", gone, start.Add(2 * day), fs.ErrNotExist},
		{"nothing", Files{}, start.Add(2 * day), fs.ErrNotExist},
		{"garbage", Files{"timestamp.json": []byte("{}")}, start.Add(2 * day), ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := st.Take(c.files.Get, c.now)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if diff := cmp.Diff(inForce, d, addrs); diff != "" {
				t.Errorf("what Take says is in force, -want +got:\n%s", diff)
			}
			if diff := cmp.Diff(inForce, current(t, st), addrs); diff != "" {
				t.Errorf("what is in force, -want +got:\n%s", diff)
			}
		})
	}
	// A clock that is a year behind takes what is newer, and nothing older.
	behind := start.AddDate(-1, 0, 0)
	if _, err := st.Take(first.Get, behind); !errors.Is(err, ErrOlder) {
		t.Errorf("rolled back, clock behind: %v", err)
	}
	d, err := st.Take(publish(t, second, third, p, start.Add(2*day)).Get, behind)
	if err != nil {
		t.Fatalf("clock behind: %v", err)
	}
	if d.Freshness(behind) != FromTheFuture {
		t.Error("nothing says that the clock is behind")
	}
}

// Somebody goes back to last year's system: its image has an older directory and
// older keys, and the laptop still knows what it has seen. And what is expired
// for years is still in force.
func TestOlderSystemNewerMemory(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	old := store(t, f, s)
	// Two maintainers are replaced, and then the third.
	q := newPeople(t)
	for i, at := range []time.Time{start.Add(day), start.Add(2 * day)} {
		before := *p
		p = &people{main: append(p.main[:0:0], p.main...), movers: q.movers, trust: p.trust}
		p.trust.Keys = append(p.trust.Keys[:0:0], p.trust.Keys...)
		p.trust.AddressKeys = q.trust.AddressKeys
		p.main[i], p.trust.Keys[i] = q.main[i], q.trust.Keys[i]
		s.Services = s.Services[:1]
		s.Services[0].Ports = []uint16{443, uint16(8000 + i)}
		f = draft(t, f, s, p, at)
		f = sign(t, f, before.main[1], before.main[2])
		f = sign(t, f, p.main[0], p.main[1], p.main[2], p.movers[0])
	}
	if _, err := old.Take(f.Get, start.Add(3*day)); err != nil {
		t.Fatal(err)
	}
	want := current(t, old)
	if want.Damage != nil || want.Names.Services[0].Ports[1] != 8001 {
		t.Fatalf("after two changes of keys: %+v", want)
	}
	// The newer system has the newest directory in its image; it takes a change.
	newer := store(t, f, s)
	newer.Dir = old.Dir
	s.Services[0].Ports = []uint16{443}
	f = publish(t, f, s, p, start.Add(4*day))
	if _, err := newer.Take(f.Get, start.Add(4*day)); err != nil {
		t.Fatal(err)
	}
	d := current(t, old) // back again
	if d.Damage != nil || len(d.Names.Services[0].Ports) != 1 {
		t.Errorf("after going back: %v, damage %v", d.Names.Services, d.Damage)
	}
	if got := d.Freshness(start.AddDate(5, 0, 0)); got != Expired {
		t.Errorf("five years on: %v", got)
	}
}

// A memory that was damaged, or cut short by a power cut of a bad disk, is
// replaced by the image's; the next refresh repairs it.
func TestDamagedMemory(t *testing.T) {
	p, s := newPeople(t), town()
	f := publish(t, Files{}, s, p, start)
	st := store(t, f, s)
	s.Services = s.Services[:1]
	f = publish(t, f, s, p, start.Add(day))
	if _, err := st.Take(f.Get, start.Add(day)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(st.Dir, stateFile)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for part := range 7 { // never all but the last line's end, which nobody misses
		n := part * len(data) / 7
		if err := os.WriteFile(file, data[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if d := current(t, st); d.Version != 1 || d.Damage == nil {
			t.Errorf("cut at %d: version %d, damage %v", n, d.Version, d.Damage)
		}
	}
	if _, err := st.Take(f.Get, start.Add(day)); err != nil {
		t.Fatal(err)
	}
	if d := current(t, st); d.Version != 2 || d.Damage != nil {
		t.Errorf("after a refresh: version %d, damage %v", d.Version, d.Damage)
	}
}

// An image without a signed directory routes by its site file, says so, and
// takes nothing: it has no key to check by.
func TestUnsignedImage(t *testing.T) {
	s := town()
	st := Store{Dir: t.TempDir(), Site: s}
	if d := current(t, st); d.Origin != Image || d.Damage != nil || len(d.Edges()) != 2 {
		t.Errorf("%+v", d)
	}
	f := publish(t, Files{}, s, newPeople(t), start)
	if _, err := st.Take(f.Get, start); !errors.Is(err, ErrNoAnchor) {
		t.Errorf("got %v", err)
	}
}
