package yggdrasil

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/peering"
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
