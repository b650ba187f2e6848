// Package admission lets a laptop prove to an edge, in the request that opens a
// transport, that it has the key with which it then greets.
//
// Yggdrasil's own hello does not: its signature covers nothing but the key, so
// that whoever once received a hello can send it again and is admitted as that
// node. So the request carries a token, signed with the same key:
//
//	version | time of issue | nonce | guest's key | signature
//	   1    |  8, Unix ms   |  16   |     32      |  64 bytes
//
// The signature (Ed25519ctx, RFC 8032 §5.1, with a context that nothing else is
// signed under) also covers the edge's key, so that one edge cannot use at
// another what was shown to it. A token is good once ([Verifier]), for [Life].
//
// # Clocks
//
// A token says when it was made, and the edge believes its own clock. A laptop
// whose clock is wrong is refused; the refusal has the edge's time (the Date of
// HTTP, under the certificate that the laptop has just verified), the laptop
// signs its next token by that ([Skew]), and so pays one more dial. A clock that
// is so wrong that the certificate does not hold either is not helped here:
// then no edge can be reached until the clock is right. Who can answer in an
// edge's name, with a certificate that the laptop accepts, can ask for a token
// of a later time and use it then, once, at that edge, for a peering as that
// laptop; not for its address, which takes its key.
//
// # What it is not
//
// It says who peers, not who sends packets: those are for the packet filter,
// where an address is a key and the network delivers for no other.
package admission

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// Life is how long a token is good: a dial may take 5 s, the rest is for
	// clocks that are a little behind.
	Life = time.Minute
	// ahead is how far the issuer's clock may be ahead of ours. Machines that ask
	// for the time differ by milliseconds; others are told ours.
	ahead = 5 * time.Second
	// maxLive is how many tokens of one guest may be remembered at once, which is
	// also how many it may use in Life. A laptop on a path that dies again and
	// again dials with pauses that grow from 0.5 to 10 s: some 20 in a minute.
	maxLive = 128
	// dateStep is the resolution of HTTP's Date (RFC 9110 §5.6.7).
	dateStep = time.Second
)

// domain separates these signatures from all others of the same key.
const domain = "veilor edge admission 1"

// The parts of a token and where they begin.
const (
	version   = 1
	nonceSize = 16
	timeAt    = 1
	nonceAt   = timeAt + 8
	keyAt     = nonceAt + nonceSize
	signAt    = keyAt + ed25519.PublicKeySize
	tokenSize = signAt + ed25519.SignatureSize
)

// Reasons of a refusal. The one who is refused is not told.
var (
	ErrNoToken   = errors.New("there is no token")
	ErrMalformed = errors.New("it is no token")
	ErrStranger  = errors.New("its key is not admitted")
	ErrForged    = errors.New("its signature is not that of its key for this edge")
	ErrTime      = errors.New("it is too old, or of the future")
	ErrReplayed  = errors.New("it was used before")
	ErrTooMany   = errors.New("too many of this node in a minute")
)

// signed is what the signature is made of.
func signed(edge ed25519.PublicKey, token []byte) []byte {
	return append(slices.Clone(edge), token[:signAt]...)
}

// Issue makes a token for one request to the edge with that key. now is the
// time by the edge's clock, as well as it is known.
func Issue(key ed25519.PrivateKey, edge ed25519.PublicKey, now time.Time) (string, error) {
	t := make([]byte, signAt, tokenSize)
	t[0] = version
	binary.BigEndian.PutUint64(t[timeAt:], uint64(now.UnixMilli()))
	rand.Read(t[nonceAt:keyAt]) // never fails (crypto/rand)
	copy(t[keyAt:], key.Public().(ed25519.PublicKey))
	s, err := key.Sign(nil, signed(edge, t), &ed25519.Options{Context: domain})
	if err != nil {
		return "", fmt.Errorf("signing a token for the edge: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(append(t, s...)), nil
}

// token is one that is well-formed.
type token struct {
	raw    []byte
	issued time.Time
	nonce  [nonceSize]byte
	key    [ed25519.PublicKeySize]byte
}

// strict refuses the other spellings that base64 has for the same bytes.
var strict = base64.RawURLEncoding.Strict()

func parse(text string) (token, error) {
	if len(text) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return token{}, ErrMalformed
	}
	raw, err := strict.DecodeString(text)
	if err != nil || len(raw) != tokenSize || raw[0] != version {
		return token{}, ErrMalformed
	}
	return token{
		raw: raw, issued: time.UnixMilli(int64(binary.BigEndian.Uint64(raw[timeAt:]))),
		nonce: [nonceSize]byte(raw[nonceAt:]), key: [ed25519.PublicKeySize]byte(raw[keyAt:]),
	}, nil
}

// Verifier takes the tokens that are made for one edge, each once. It forgets
// when it ends, and so takes none that was issued before it began. (One that a
// guest's clock dated ahead could be used on both sides of a restart, within
// the 5 s that a clock may be ahead.)
type Verifier struct {
	edge     ed25519.PublicKey
	admitted func(ed25519.PublicKey) bool
	began    time.Time

	mu    sync.Mutex
	used  map[[ed25519.PublicKeySize]byte]map[[nonceSize]byte]time.Time // until when each is remembered
	swept time.Time
}

// NewVerifier makes the verifier of the edge with that key, which begins now.
// admitted says whose tokens are looked at.
func NewVerifier(edge ed25519.PublicKey, now time.Time, admitted func(ed25519.PublicKey) bool) *Verifier {
	// A token has milliseconds.
	return &Verifier{edge: edge, admitted: admitted, began: now.Truncate(time.Millisecond),
		used: map[[ed25519.PublicKeySize]byte]map[[nonceSize]byte]time.Time{}, swept: now}
}

// Check takes a token and says whose it is, or one of the reasons above. The
// same token is never taken again.
func (v *Verifier) Check(text string, now time.Time) (ed25519.PublicKey, error) {
	t, err := parse(text)
	if err != nil {
		return nil, err
	}
	key := ed25519.PublicKey(t.key[:])
	// First what costs nothing, so that strangers cost little; only what an
	// admitted node has signed is remembered, so that they cannot fill the memory.
	switch {
	case !v.admitted(key):
		return nil, ErrStranger
	case now.Sub(t.issued) >= Life, t.issued.Sub(now) > ahead, t.issued.Before(v.began):
		return nil, ErrTime
	case ed25519.VerifyWithOptions(key, signed(v.edge, t.raw), t.raw[signAt:], &ed25519.Options{Context: domain}) != nil:
		return nil, ErrForged
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sweep(now)
	mine := v.used[t.key]
	if _, ok := mine[t.nonce]; ok {
		return nil, ErrReplayed
	}
	if len(mine) >= maxLive {
		return nil, ErrTooMany
	}
	if mine == nil {
		mine = map[[nonceSize]byte]time.Time{}
		v.used[t.key] = mine
	}
	mine[t.nonce] = t.issued.Add(Life)
	return key, nil
}

// sweep forgets, now and then, what is too old to be taken anyway.
func (v *Verifier) sweep(now time.Time) {
	if now.Sub(v.swept) < Life/4 {
		return
	}
	v.swept = now
	for key, mine := range v.used {
		for nonce, until := range mine {
			if !now.Before(until) {
				delete(mine, nonce)
			}
		}
		if len(mine) == 0 {
			delete(v.used, key)
		}
	}
}

// cookie is where the token is in a request: where the requests of ordinary
// sites have such a string, and where no proxy logs it.
const cookie = "session"

// Attach puts a token into the header of a request.
func Attach(h http.Header, token string) {
	h.Set("Cookie", (&http.Cookie{Name: cookie, Value: token}).String())
}

// From is the token of a request.
func From(r *http.Request) (string, error) {
	c, err := r.Cookie(cookie)
	if err != nil {
		return "", ErrNoToken
	}
	return c.Value, nil
}

// Skew is how far the clock of the server that sent a refusal is ahead of ours;
// negative if it is behind. ok is false if the two agree as well as Date can
// say, or there is none: then the clock was not the reason.
func Skew(h http.Header, now time.Time) (skew time.Duration, ok bool) {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0, false
	}
	skew = date.Add(dateStep / 2).Sub(now)
	return skew, skew.Abs() > ahead/2
}
