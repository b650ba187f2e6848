// Package forward carries TCP connections from a service's loopback address to
// its host over whichever layer answers.
//
// A client of a TLS port must first say whom it wants (SNI): who wants another
// name, or speaks no TLS, is let nowhere. That closes DNS rebinding, by which a
// page of the web would reach the service with the browser's help.
//
// A connection then tries the layers in the order and at the times that package
// mesh gives. The first to complete a TCP handshake carries it; no application
// byte is ever sent on two layers. Every dial is bound to its layer's interface,
// so that nothing meant for an overlay leaves by the ISP. The bytes are spliced
// in the kernel, and what is seen of them moving tells mesh how the layer is.
// Connections on a layer that mesh declares down are reset, so that programs
// retry at once instead of hanging.
package forward

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/listen"
	"github.com/veilor/veilor-os/internal/mesh"
)

const (
	// dialTimeout ends one attempt: Linux has sent SYNs at 0 and 1 s by then
	// and would send the next at 3 s (RFC 6298 with its initial RTO of 1 s).
	dialTimeout = 3 * time.Second
	// round is how long after the last layer was tried all are tried anew. Fresh
	// SYNs find a path that has just come back sooner than retransmitted ones.
	round = time.Second
	// patience is how long a client is kept waiting for any layer. Longer than a
	// switch of the Yggdrasil peer takes, shorter than a browser's own patience.
	patience = 10 * time.Second
	// stall is how long sent bytes may go unacknowledged (TCP_USER_TIMEOUT)
	// before a connection is reset, on a layer that mesh has no reason to doubt.
	stall = 10 * time.Second
	// keepIdle is when an idle connection is first asked whether it lives. It
	// is long because each question is traffic on a laptop that does nothing.
	keepIdle = 5 * time.Minute

	// MaxConns is how many connections one service carries at a time. A browser
	// opens six to a host, so this is no person; and at two descriptors each, and
	// two more in each direction in which bytes move just now, two services stay
	// below the unit's LimitNOFILE.
	MaxConns = 10_000
	// MaxWaiting is how many of them may be without a server yet: saying whom
	// they want, or waiting for a layer. A page that is reloaded in vain makes
	// some tens.
	MaxWaiting = 512
)

// ErrAbsent says that a layer's interface does not exist.
var ErrAbsent = errors.New("no interface")

// Route is how a service is reached on one layer.
type Route struct {
	Layer mesh.Layer
	// Interface is the only one by which packets to Addr may leave.
	Interface string
	Addr      netip.Addr
}

// Service is one name with its loopback address.
type Service struct {
	Name   string
	Listen netip.Addr
	Ports  []uint16
	// TLS are those of Ports on which a client must name the service first.
	TLS    []uint16
	Routes []Route
}

// Status is what is known of one service.
type Status struct {
	Name string
	// Active is the layer a new connection takes; empty if none is known to work.
	Active mesh.Layer
	Since  time.Time
	Layers []mesh.Health
	// Conns is the number of open connections.
	Conns int
	// Refusals are the clients that were let nowhere, by reason.
	Refusals map[string]Refusals
	// Canary is the last trial of the fallback.
	Canary Canary
}

// Refusals counts the clients that were refused for one reason.
type Refusals struct {
	Count int
	Last  time.Time
	// Name is what the last of them asked for, if that is why.
	Name string
}

// Forwarder serves a set of services.
type Forwarder struct {
	log *slog.Logger
	now func() time.Time

	replacing sync.Mutex // held by Replace

	mu       sync.Mutex
	services []*service // see list
	tell     func(News)
	quiet    bool
	start    func(*service) // lets one work; nil before Serve and after
}

// service is one Service at work.
type service struct {
	Service
	log       *slog.Logger
	now       func() time.Time
	listeners map[uint16]*net.TCPListener
	slots     chan struct{} // one token per open connection
	waiting   chan struct{} // one token per connection without a server
	wake      chan struct{} // mesh may want to be asked earlier

	mu      sync.Mutex
	mesh    *mesh.Service
	flows   map[mesh.Layer]map[*flow]bool
	changed chan struct{} // closed and replaced at every observation
	due     time.Time     // when tend wakes by itself; zero for never
	refused map[string]Refusals
	logged  map[string]time.Time // when something was last complained about
	canary  Canary
	quiet   bool
	active  mesh.Layer // as last told
	tell    func(News)
	roots   *x509.CertPool // for checks; nil means the system's
	work    *work          // nil before it is started
}

// New makes a forwarder. now is the clock; nil means time.Now.
func New(services []Service, log *slog.Logger, now func() time.Time) *Forwarder {
	if now == nil {
		now = time.Now
	}
	f := &Forwarder{log: log, now: now, tell: func(News) {}}
	for _, v := range services {
		f.services = append(f.services, newService(v, log, now))
	}
	return f
}

// Listen opens every service's ports, or none.
func (f *Forwarder) Listen(ctx context.Context) error {
	for _, s := range f.list() {
		for _, port := range s.Ports {
			l, err := listen.TCP(ctx, netip.AddrPortFrom(s.Service.Listen, port), s.Name)
			if err != nil {
				f.close()
				return err
			}
			s.listeners[port] = l
		}
	}
	return nil
}

func (f *Forwarder) close() {
	for _, s := range f.list() {
		for _, l := range s.listeners {
			l.Close()
		}
	}
}

// Serve carries connections until ctx ends, and then resets those that are
// open. Listen must have succeeded.
func (f *Forwarder) Serve(ctx context.Context) error {
	defer f.close()
	g, ctx := errgroup.WithContext(ctx)
	// As long as it runs others may come.
	g.Go(func() error {
		<-ctx.Done()
		f.mu.Lock()
		f.start = nil
		f.mu.Unlock()
		return nil
	})
	f.mu.Lock()
	f.start = func(s *service) { s.start(ctx, g) }
	for _, s := range f.services {
		f.start(s)
	}
	f.mu.Unlock()
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// tend sends the probes that mesh asks for.
func (s *service) tend(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		s.mu.Lock()
		var (
			probes  []mesh.Layer
			changes []mesh.Change
			next    time.Time
			ok      bool
		)
		if !s.quiet {
			probes, changes = s.mesh.Due(s.now())
			next, ok = s.mesh.Next()
		}
		s.due = next
		if len(changes) > 0 {
			s.broadcast()
		}
		s.mu.Unlock()
		s.apply(changes)
		for _, l := range probes {
			go s.probe(ctx, l)
		}
		if ok {
			timer.Reset(max(next.Sub(s.now()), 0))
		} else {
			timer.Stop()
		}
	}
}

// probe asks a layer for a handshake and hangs up.
func (s *service) probe(ctx context.Context, l mesh.Layer) {
	for _, r := range s.Routes {
		if r.Layer != l {
			continue
		}
		if c, err := s.attempt(ctx, r, s.Ports[0]); err == nil {
			c.Close()
		}
	}
}

// on hands an observation to mesh and does what follows from it.
func (s *service) on(e mesh.Event) {
	s.mu.Lock()
	changes := s.mesh.On(e)
	s.broadcast()
	next, ok := s.mesh.Next()
	early := ok && (s.due.IsZero() || next.Before(s.due))
	s.mu.Unlock()
	s.apply(changes)
	if early { // else every connection would wake tend twice for nothing
		s.nudge()
	}
}

// nudge lets tend ask mesh what is due.
func (s *service) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// broadcast wakes those who wait for an observation. s.mu is held.
func (s *service) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// apply resets what hangs on layers that are gone, and tells what changed.
func (s *service) apply(changes []mesh.Change) {
	for _, c := range changes {
		s.mu.Lock()
		n, why := 0, ""
		if c.To == mesh.Down || c.To == mesh.Off {
			n = s.resetAll(c.Layer)
		}
		for _, h := range s.mesh.Health(s.now()) {
			if h.Layer == c.Layer {
				why = h.Err
			}
		}
		s.mu.Unlock()
		s.log.Info("layer changed", "layer", c.Layer, "from", c.From.String(), "to", c.To.String(), "reset", n)
		s.tell(News{At: s.now(), Service: s.Name, What: LayerChanged, Layer: c.Layer, From: c.From.String(), To: c.To.String(), Why: why, Reset: n})
	}
	s.mu.Lock()
	active, _ := s.mesh.Active()
	was := s.active
	s.active = active
	s.mu.Unlock()
	if active != was {
		s.tell(News{At: s.now(), Service: s.Name, What: Switched, Layer: active, From: string(was), To: string(active)})
	}
}

// resetAll ends the connections on a layer and counts them. s.mu is held.
func (s *service) resetAll(l mesh.Layer) int {
	for fl := range s.flows[l] {
		fl.reset()
	}
	return len(s.flows[l])
}

// accept takes connections off one listener.
func (s *service) accept(ctx context.Context, g *errgroup.Group, l *net.TCPListener, port uint16) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				abort(c)
			}
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ECONNABORTED):
			if s.loud("accept", s.now()) {
				s.log.Warn("a client has to wait: its connection cannot be accepted now", "err", err)
			}
			listen.Pause(ctx.Done())
			continue
		case err != nil:
			return fmt.Errorf("accepting connections for %s: %w", s.Name, err)
		}
		if s.isQuiet() {
			s.refuse(c, &refused{why: Quiet})
			continue
		}
		if !take(s.slots) {
			s.refuse(c, &refused{why: Full})
			continue
		}
		if !take(s.waiting) {
			<-s.slots
			s.refuse(c, &refused{why: Full})
			continue
		}
		g.Go(func() error {
			defer func() { <-s.slots }()
			s.carry(ctx, c, port)
			return nil
		})
	}
}

func take(tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

// carry finds a layer for one client and splices until both are done.
func (s *service) carry(ctx context.Context, client *net.TCPConn, port uint16) {
	won, hello, err := s.find(ctx, client, port)
	<-s.waiting
	if err != nil {
		var no *refused
		if errors.As(err, &no) {
			s.refuse(client, no)
			return
		}
		if ctx.Err() == nil {
			s.log.Debug("no layer answered", "port", port, "err", err)
		}
		abort(client)
		return
	}
	fl := &flow{client: client, server: won.conn, hello: hello}
	fl.watch = &watch{
		now:  s.now,
		life: lifeOf(won.conn),
		silent: func(since time.Time) {
			s.on(mesh.Event{Layer: won.layer, Kind: mesh.Silent, At: s.now(), Start: since})
		},
		heard: func(at time.Time, rtt time.Duration) {
			s.mu.Lock() // nothing follows from it that anybody waits for
			s.mesh.On(mesh.Event{Layer: won.layer, Kind: mesh.Heard, At: at, RTT: rtt})
			s.mu.Unlock()
		},
	}
	s.mu.Lock()
	lost := s.mesh.State(won.layer) == mesh.Off || s.quiet // between its answer and now
	s.flows[won.layer][fl] = true
	s.mu.Unlock()
	if lost {
		fl.reset()
	}
	stop := context.AfterFunc(ctx, fl.reset)
	err = fl.splice()
	stop()
	s.mu.Lock()
	delete(s.flows[won.layer], fl)
	s.mu.Unlock()
	if errors.Is(err, unix.ETIMEDOUT) {
		now := s.now()
		s.on(mesh.Event{Layer: won.layer, Kind: mesh.Failed, At: now, Start: now, Err: "a connection stalled"})
	}
}

// find reads whom the client wants, if it must say, and returns a connection to
// the server and what the client has said so far.
func (s *service) find(ctx context.Context, client *net.TCPConn, port uint16) (won result, hello []byte, err error) {
	if slices.Contains(s.TLS, port) {
		// A deadline, not a context, ends reading from a socket.
		stop := context.AfterFunc(ctx, func() { client.SetReadDeadline(time.Unix(1, 0)) })
		client.SetReadDeadline(time.Now().Add(helloLimit)) // the kernel's clock
		hello, err = admit(client, s.Name)
		if !stop() {
			return result{}, nil, ctx.Err()
		}
		client.SetReadDeadline(time.Time{})
		if err != nil {
			return result{}, nil, err
		}
	}
	won, err = s.race(ctx, port)
	return won, hello, err
}

// refuse ends a client's connection, counts it, and complains about the first of
// its kind in a while.
func (s *service) refuse(client *net.TCPConn, no *refused) {
	now := s.now()
	s.mu.Lock()
	r := s.refused[no.why]
	r.Count, r.Last, r.Name = r.Count+1, now, clip(no.name)
	s.refused[no.why] = r
	s.mu.Unlock()
	// Only now: who sees its connection end finds it counted.
	if no.why == WrongName || no.why == NoName {
		client.SetWriteDeadline(time.Now().Add(time.Second))
		client.Write(unrecognizedName) // if it still wants to know
		client.Close()
	} else {
		abort(client)
	}
	if no.why == Quiet || !s.loud(no.why, now) {
		return
	}
	switch no.why {
	case Full:
		s.log.Warn("refusing connections: the limit is reached; `ss -tnp` says which program opens so many", "limit", MaxConns, "waiting", MaxWaiting)
	case WrongName:
		s.log.Warn("refusing a connection: its client wants another name; a page of the web may be trying to reach this service", "wants", clip(no.name))
	default:
		s.log.Warn("refusing a connection: its client does not say by TLS whom it wants", "why", no.why)
	}
	s.tell(News{At: now, What: RefusedOne, Service: s.Name, Why: no.why})
}

// loud says whether to complain about what now, or whether that was done lately.
func (s *service) loud(what string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, before := s.logged[what]; before && now.Sub(last) < listen.ComplainEvery {
		return false
	}
	s.logged[what] = now
	return true
}

// clip bounds a name that a stranger chose. A DNS name has at most 253
// characters.
func clip(name string) string {
	const most = 64
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}
