package directory

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A list may bring the group's password: what is signed is its digest, what is
// kept is not the password, and one that was exchanged or taken out is refused.
func TestReserveWithPassword(t *testing.T) {
	p, files, _ := packedTown(t)
	st := store(t, files, town())
	secret := []byte("only these machines know it\n")
	made := func(number int64, group []byte) *Packet {
		t.Helper()
		e, err := NewReserve(laptop, number, nil, group, start)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range p.main[:2] {
			if err := e.Sign(k); err != nil {
				t.Fatal(err)
			}
		}
		text, err := e.Pack()
		if err != nil {
			t.Fatal(err)
		}
		packet, err := Unpack(text)
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	if _, err := NewReserve(laptop, 1, nil, nil, start); err == nil {
		t.Error("a list of nothing")
	}
	exchanged, emptied, added := made(1, secret), made(1, secret), made(1, secret)
	exchanged.Reserve.Secret = []byte("another that nobody signed\n")
	emptied.Reserve.Secret = nil
	r, err := NewReserve(laptop, 1, []ReservedEdge{{
		Node: Node{Name: "r", URL: "wss://r.example.org/", Key: hostKey},
	}}, nil, start)
	if err == nil {
		t.Fatalf("an edge without an address: %+v", r)
	}
	added.Reserve.Payload = bytes.Replace(added.Reserve.Payload, []byte(`"group"`), []byte(`"grouq"`), 1)
	for name, c := range map[string]struct {
		packet *Packet
		want   error
	}{"exchanged": {exchanged, ErrUnsigned}, "taken out": {emptied, ErrDamaged}, "changed": {added, ErrUnsigned}} {
		if _, r, err := st.Import(c.packet, laptop, start); !errors.Is(err, c.want) || r != nil {
			t.Errorf("%s: %v, %v; want %v", name, r, err, c.want)
		} else if bytes.Contains([]byte(err.Error()), []byte("machines")) {
			t.Errorf("%s: the error quotes it: %v", name, err)
		}
	}
	packet := made(1, secret)
	for _, want := range []error{nil, ErrCurrent} {
		_, r, err := st.Import(packet, laptop, start)
		if !errors.Is(err, want) || r == nil || !bytes.Equal(r.Secret, secret) {
			t.Errorf("%+v, %v; want the password and %v", r, err, want)
		}
	}
	kept, err := os.ReadFile(filepath.Join(st.Dir, reserveFile))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unpack(kept)
	if err != nil || again.Reserve.Secret != nil || bytes.Contains(again.Reserve.Payload, bytes.TrimSpace(secret)) {
		t.Errorf("what is kept holds the password: %+v, %v", again, err)
	}
	if peers, err := st.Reserve(laptop); err != nil || peers != nil {
		t.Errorf("%v, %v", peers, err)
	}
}
