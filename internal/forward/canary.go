package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/veilor/veilor-os/internal/mesh"
)

const (
	// canaryMin and canaryMax bound the time between two trials of a fallback
	// that nobody uses. At random, so that the trials are no beat; hours apart,
	// since each is some 6 kB on a laptop that does nothing.
	canaryMin = 2 * time.Hour
	canaryMax = 10 * time.Hour
	// canaryAgain is when a failed trial is repeated. A peer that is being
	// restarted is no rot.
	canaryAgain = 15 * time.Minute
	// Rotten is how many trials in a row must fail for the fallback to count as
	// gone.
	Rotten = 2
	// checkLimit bounds one trial: a handshake of TCP and one of TLS.
	checkLimit = 5 * time.Second
)

// Canary is the last trial of a service's fallback.
type Canary struct {
	Layer mesh.Layer
	At    time.Time
	Took  time.Duration
	// Failures is how many trials in a row have failed, Err why the last did.
	Failures int
	Err      string
}

// Check is a trial of one layer.
type Check struct {
	Layer mesh.Layer
	// Connect and Handshake are how long TCP and then TLS took; Handshake is 0
	// where the port speaks no TLS or Connect failed.
	Connect, Handshake time.Duration
	Err                error
}

// check tries a route as a browser would, without asking for anything: TCP, and
// where a TLS port is, a handshake in which the server must prove the service's
// name.
func (s *service) check(ctx context.Context, r Route) Check {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	c := Check{Layer: r.Layer}
	if s.isQuiet() {
		c.Err = errors.New(Quiet)
		return c
	}
	began := s.now()
	conn, err := s.attempt(ctx, r, s.Ports[0])
	c.Connect = s.now().Sub(began)
	if err != nil {
		c.Connect, c.Err = 0, err
		return c
	}
	defer conn.Close()
	if !slices.Contains(s.TLS, s.Ports[0]) {
		return c
	}
	began = s.now()
	t := tls.Client(conn, &tls.Config{ServerName: s.Name, RootCAs: s.roots})
	if err := t.HandshakeContext(ctx); err != nil {
		c.Err = err
		return c
	}
	c.Handshake = s.now().Sub(began)
	return c
}

// Check tries every layer of the named service at once and waits for all. ok is
// false if there is no such service.
func (f *Forwarder) Check(ctx context.Context, name string) (checks []Check, ok bool) {
	for _, s := range f.list() {
		if s.Name != name {
			continue
		}
		results := make([]chan Check, len(s.Routes))
		for i, r := range s.Routes {
			results[i] = make(chan Check, 1)
			go func() { results[i] <- s.check(ctx, r) }()
		}
		for _, c := range results {
			checks = append(checks, <-c)
		}
		return checks, true
	}
	return nil, false
}

// keepCanary tries the fallback now and then until ctx ends.
func (s *service) keepCanary(ctx context.Context) {
	timer := time.NewTimer(between(canaryMin, canaryMax))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(s.tryFallback(ctx))
	}
}

func between(least, most time.Duration) time.Duration { return least + rand.N(most-least) }

// tryFallback tries the layer that would replace the one in use, and says when
// to try again. It opens nothing that an observer of the network could count:
// the layer is warm, and what goes over it looks like its other traffic. Where
// its interface is missing there is nothing to try.
func (s *service) tryFallback(ctx context.Context) time.Duration {
	s.mu.Lock()
	active, _ := s.mesh.Active()
	quiet := s.quiet
	s.mu.Unlock()
	for _, r := range s.Routes {
		if quiet || r.Layer == active || r.Layer == mesh.Order[0] {
			continue
		}
		if _, err := net.InterfaceByName(r.Interface); err != nil {
			continue
		}
		c := s.check(ctx, r)
		if ctx.Err() != nil {
			return canaryMax
		}
		return s.judgeCanary(c)
	}
	return between(canaryMin, canaryMax)
}

// judgeCanary takes the outcome of a trial and says when the next is due.
func (s *service) judgeCanary(c Check) time.Duration {
	now, why := s.now(), ""
	s.mu.Lock()
	failures := s.canary.Failures
	if s.canary.Layer != c.Layer || c.Err == nil {
		failures = 0
	}
	if c.Err != nil {
		failures++
		why = c.Err.Error()
	}
	s.canary = Canary{Layer: c.Layer, At: now, Took: c.Connect + c.Handshake, Failures: failures, Err: why}
	s.mu.Unlock()
	s.tell(News{At: now, What: CanaryTold, Service: s.Name, Layer: c.Layer, Why: why})
	if failures > 0 && failures < Rotten {
		return between(canaryAgain, 2*canaryAgain)
	}
	return between(canaryMin, canaryMax)
}
