package admission

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func keyOf(seed string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte(seed), ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var guest, other, edgeA, edgeB = keyOf("g"), keyOf("o"), keyOf("A"), keyOf("B")

// verifier is that of edge A, which admits the guest.
func verifier() *Verifier {
	return NewVerifier(public(edgeA), noon, func(k ed25519.PublicKey) bool { return k.Equal(public(guest)) })
}

func issue(t testing.TB, k, edge ed25519.PrivateKey, at time.Time) string {
	t.Helper()
	s, err := Issue(k, public(edge), at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheck(t *testing.T) {
	at := noon.Add(time.Hour)
	good := issue(t, guest, edgeA, at)
	flip := func(i int) string {
		raw, err := strict.DecodeString(good)
		if err != nil {
			t.Fatal(err)
		}
		raw[i] ^= 1
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	for _, c := range []struct {
		name, token string
		now         time.Time
		want        error
	}{
		{"good", good, at, nil},
		{"on the way for 59 s", good, at.Add(Life - time.Second), nil},
		{"issuer 5 s ahead", good, at.Add(-ahead), nil},
		{"too old", good, at.Add(Life), ErrTime},
		{"of the future", good, at.Add(-ahead - time.Second), ErrTime},
		{"clock a year behind", issue(t, guest, edgeA, at.AddDate(-1, 0, 0)), at, ErrTime},
		{"clock a year ahead", issue(t, guest, edgeA, at.AddDate(1, 0, 0)), at, ErrTime},
		{"of before the edge began", issue(t, guest, edgeA, noon.Add(-time.Second)), noon, ErrTime},
		{"of another node", issue(t, other, edgeA, at), at, ErrStranger},
		{"for another edge", issue(t, guest, edgeB, at), at, ErrForged},
		{"another version", flip(0), at, ErrMalformed},
		{"another time", flip(nonceAt - 1), at, ErrForged},
		{"another nonce", flip(nonceAt), at, ErrForged},
		{"another key", flip(keyAt), at, ErrStranger},
		{"another signature", flip(signAt), at, ErrForged},
		{"nothing", "", at, ErrMalformed},
		{"cut", good[:len(good)-1], at, ErrMalformed},
		{"with a tail", good + "A", at, ErrMalformed},
		{"not base64", strings.Repeat("!", len(good)), at, ErrMalformed},
		{"a line break within", good[:80] + "\n" + good[81:], at, ErrMalformed},
	} {
		key, err := verifier().Check(c.token, c.now)
		if !errors.Is(err, c.want) || (err == nil && !key.Equal(public(guest))) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestSpelling: base64 has several spellings of a length that is no multiple of
// three; only one may be a token, or a replay would only need respelling.
func TestSpelling(t *testing.T) {
	good := issue(t, guest, edgeA, noon)
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	taken := 0
	for i := range 4 {
		v := verifier()
		if _, err := v.Check(good[:len(good)-1]+string(digits[last&^3|i]), noon); err == nil {
			taken++
		}
	}
	if taken != 1 {
		t.Errorf("%d spellings are taken, want 1", taken)
	}
}

func TestOnce(t *testing.T) {
	v := verifier()
	token := issue(t, guest, edgeA, noon)
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := v.Check(token, noon); err == nil {
				taken.Add(1)
			} else if !errors.Is(err, ErrReplayed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1 {
		t.Errorf("taken %d times", taken.Load())
	}
	// For as long as it could be taken, it is remembered; after a restart it is
	// too old.
	for s := range int(Life/time.Second) + 2 {
		if _, err := v.Check(token, noon.Add(time.Duration(s)*time.Second)); err == nil {
			t.Fatalf("taken again after %d s", s)
		}
	}
	again := NewVerifier(public(edgeA), noon.Add(time.Second), v.admitted)
	if _, err := again.Check(token, noon.Add(2*time.Second)); !errors.Is(err, ErrTime) {
		t.Errorf("after a restart: %v", err)
	}
}

// TestBounded: what is remembered has a bound, and it is forgotten.
func TestBounded(t *testing.T) {
	v := verifier()
	count := func() (n int) {
		for _, mine := range v.used {
			n += len(mine)
		}
		return n
	}
	for range 2 * maxLive {
		v.Check(issue(t, guest, edgeA, noon), noon)
	}
	if _, err := v.Check(issue(t, guest, edgeA, noon), noon); !errors.Is(err, ErrTooMany) {
		t.Errorf("%v, want ErrTooMany", err)
	}
	if n := count(); n != maxLive {
		t.Errorf("%d remembered, want %d", n, maxLive)
	}
	later := noon.Add(Life)
	if _, err := v.Check(issue(t, guest, edgeA, later), later); err != nil {
		t.Errorf("a minute later: %v", err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d remembered a minute later, want 1", n)
	}
	for range maxLive {
		v.Check(issue(t, other, edgeA, later), later)
	}
	if n := count(); n != 1 {
		t.Errorf("strangers are remembered: %d", n)
	}
}

func TestRequest(t *testing.T) {
	token := issue(t, guest, edgeA, noon)
	r := &http.Request{Header: http.Header{}}
	if _, err := From(r); !errors.Is(err, ErrNoToken) {
		t.Errorf("%v, want ErrNoToken", err)
	}
	Attach(r.Header, token)
	if got, err := From(r); err != nil || got != token {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSkew(t *testing.T) {
	for _, c := range []struct {
		date string
		want time.Duration
		ok   bool
	}{
		{"", 0, false},
		{"yesterday", 0, false},
		{noon.Format(http.TimeFormat), 500 * time.Millisecond, false},
		{noon.Add(time.Hour).Format(http.TimeFormat), time.Hour + 500*time.Millisecond, true},
		{noon.Add(-time.Minute).Format(http.TimeFormat), -time.Minute + 500*time.Millisecond, true},
	} {
		got, ok := Skew(http.Header{"Date": {c.date}}, noon)
		if got != c.want || ok != c.ok {
			t.Errorf("%q: %v, %v", c.date, got, ok)
		}
	}
	// Signed by the edge's time, the token of a wrong clock is good.
	wrong := noon.AddDate(0, 0, -3)
	skew, _ := Skew(http.Header{"Date": {noon.Format(http.TimeFormat)}}, wrong)
	if _, err := verifier().Check(issue(t, guest, edgeA, wrong.Add(skew)), noon); err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	// The fuzzer's processes must agree on it, so its nonce is fixed.
	raw := make([]byte, signAt)
	raw[0] = version
	binary.BigEndian.PutUint64(raw[timeAt:], uint64(noon.UnixMilli()))
	copy(raw[keyAt:], public(guest))
	s, err := guest.Sign(nil, signed(public(edgeA), raw), &ed25519.Options{Context: domain})
	if err != nil {
		f.Fatal(err)
	}
	good := base64.RawURLEncoding.EncodeToString(append(raw, s...))
	f.Add(good)
	f.Add(issue(f, guest, edgeB, noon))
	f.Add(strings.Repeat("A", len(good)))
	f.Fuzz(func(t *testing.T, text string) {
		key, err := verifier().Check(text, noon)
		if err == nil && (text != good || !key.Equal(public(guest))) {
			t.Errorf("%q is taken", text)
		}
	})
}

// hello makes one as the library does.
func hello(fields ...[]byte) []byte {
	body := slices.Concat(fields...)
	body = append(body, make([]byte, ed25519.SignatureSize)...)
	return slices.Concat([]byte("meta"), []byte{byte(len(body) >> 8), byte(len(body))}, body)
}

func field(what byte, data []byte) []byte {
	return slices.Concat([]byte{0, what, 0, byte(len(data))}, data)
}

func TestHelloKey(t *testing.T) {
	key := public(guest)
	whole := hello(field(0, []byte{0, 0}), field(1, []byte{0, 5}), field(2, key), field(3, []byte{0}))
	got, n, err := HelloKey(append(slices.Clone(whole), "more"...))
	if err != nil || !got.Equal(key) || n != len(whole) {
		t.Fatalf("%x, %d, %v", got, n, err)
	}
	for i := range whole {
		if _, _, err := HelloKey(whole[:i]); !errors.Is(err, ErrShort) {
			t.Errorf("%d bytes of it: %v, want ErrShort", i, err)
		}
	}
	for name, b := range map[string][]byte{
		"a request":    []byte("GET / HTTP/1.1\r\n"),
		"no key":       hello(field(0, []byte{0, 0})),
		"two keys":     hello(field(2, key), field(2, public(other))),
		"a short key":  hello(field(2, key[:31])),
		"half a field": hello([]byte{0, 2, 0}),
		"a long field": hello([]byte{0, 9, 0, 9}),
		"no signature": {'m', 'e', 't', 'a', 0, 63},
		"huge":         {'m', 'e', 't', 'a', 255, 255},
	} {
		if _, _, err := HelloKey(b); err == nil || errors.Is(err, ErrShort) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzHelloKey(f *testing.F) {
	f.Add(hello(field(0, []byte{0, 0}), field(2, public(guest))))
	f.Add([]byte("meta"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, n, err := HelloKey(b)
		switch {
		case err == nil && (len(key) != ed25519.PublicKeySize || n > len(b) || n > MaxHello || !bytes.Contains(b[:n], key)):
			t.Errorf("%x, %d of %x", key, n, b)
		case errors.Is(err, ErrShort) && len(b) >= MaxHello:
			t.Errorf("%d bytes are not enough", len(b))
		}
	})
}
