package yggdrasil

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/admission"
	"github.com/veilor/veilor-os/internal/peering"
	"github.com/veilor/veilor-os/internal/wss"
)

// fakeLine is a transport whose time the test makes.
type fakeLine struct {
	mu    sync.Mutex
	now   time.Duration
	last  time.Duration // of anything sent or received
	pings chan time.Duration
	end   bool
}

func (l *fakeLine) Idle() (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end {
		return 0, errors.New("closed")
	}
	return l.now - l.last, nil
}

func (l *fakeLine) Ping(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = l.now
	l.pings <- l.now
	return nil
}

func TestKeepalive(t *testing.T) {
	l := &fakeLine{pings: make(chan time.Duration, 10)}
	waits, wake, done := make(chan time.Duration), make(chan time.Time), make(chan struct{})
	go func() {
		keepalive(t.Context(), l, func() float64 { return 0.5 }, func(d time.Duration) <-chan time.Time { waits <- d; return wake })
		close(done)
	}()
	pass := func(traffic bool) {
		d := <-waits
		l.mu.Lock()
		l.now += d
		if traffic {
			l.last = l.now - time.Second
		}
		l.mu.Unlock()
		wake <- time.Time{}
	}
	pass(true)
	if len(l.pings) > 0 {
		t.Error("it pings a line with traffic")
	}
	pass(false)
	if at := <-l.pings; at != 2*peering.Idle-time.Second {
		t.Errorf("pinged at %v, want %v after the last traffic", at, peering.Idle)
	}
	pass(false)
	<-l.pings
	l.mu.Lock()
	l.end = true
	l.mu.Unlock()
	pass(false)
	<-done
}

// fakeEdge refuses whoever has no good token, by its own clock, and lets nobody
// in otherwise: there is no transport to give.
type fakeEdge struct {
	verify *admission.Verifier
	now    func() time.Time
	asked  int
	good   int
}

var errGood = errors.New("the token is good")

func (e *fakeEdge) Dial(_ context.Context, t wss.Target) (*wss.Conn, error) {
	e.asked++
	token, err := admission.From(&http.Request{Header: t.Header})
	if err == nil {
		_, err = e.verify.Check(token, e.now())
	}
	if err == nil {
		e.good++
		return nil, errGood
	}
	return nil, &wss.RefusedError{Status: http.StatusNotFound, Header: http.Header{"Date": {e.now().UTC().Format(http.TimeFormat)}}}
}

// TestClockOfTheEdge: a laptop whose clock is wrong is refused once, then asks by
// the edge's clock; one that is not admitted does not ask twice.
func TestClockOfTheEdge(t *testing.T) {
	edgeKey, _ := pair(t)
	guest, key := pair(t)
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		ahead              time.Duration
		admitted           bool
		first, again, good int // dials at the first try, at the next, and good tokens
	}{
		"right":        {0, true, 1, 1, 2},
		"behind":       {-72 * time.Hour, true, 2, 1, 2},
		"ahead":        {10 * time.Minute, true, 2, 1, 2},
		"not admitted": {0, false, 1, 1, 0},
		"neither":      {time.Hour, false, 2, 1, 0},
	} {
		e := &fakeEdge{now: func() time.Time { return noon }}
		e.verify = admission.NewVerifier(edgeKey, noon.Add(-time.Hour), func(k ed25519.PublicKey) bool { return c.admitted && k.Equal(guest) })
		s := &supervisor{
			key: key, edges: 1, dial: e, log: slog.New(slog.NewTextHandler(io.Discard, nil)), skews: make([]atomic.Int64, 1),
			peers: []Peer{{Name: "edge-1", URL: &url.URL{Scheme: "wss", Host: "edge.example.org"}, Key: edgeKey}},
			now:   func() time.Time { return noon.Add(c.ahead) },
		}
		_, err := s.reach(t.Context(), 0)
		if e.asked != c.first || errors.Is(err, errGood) != c.admitted {
			t.Errorf("%s: %d dials, %v; want %d", name, e.asked, err, c.first)
		}
		_, err = s.reach(t.Context(), 0)
		if e.asked != c.first+c.again || e.good != c.good || errors.Is(err, errGood) != c.admitted {
			t.Errorf("%s: %d dials and %d good tokens after the next try, %v; want %d and %d", name, e.asked, e.good, err, c.first+c.again, c.good)
		}
	}
}
