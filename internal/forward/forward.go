// Package forward carries TCP connections from a service's loopback address to
// its host over whichever layer answers.
//
// A connection tries the layers in the order and at the times that package mesh
// gives. The first to complete a TCP handshake carries it; no application byte
// is ever sent on two layers. Every dial is bound to its layer's interface, so
// that nothing meant for an overlay leaves by the ISP. The bytes are spliced in
// the kernel. Connections on a layer that mesh declares down are reset, so that
// programs retry at once instead of hanging.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
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
	// opens six to a host, so this is no person; and at six descriptors each
	// (two sockets, two pipes) it stays below half of the unit's LimitNOFILE.
	MaxConns = 4096
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
}

// Forwarder serves a set of services.
type Forwarder struct {
	services []*service
}

// service is one Service at work.
type service struct {
	Service
	log       *slog.Logger
	now       func() time.Time
	listeners map[uint16]*net.TCPListener
	slots     chan struct{} // one token per open connection
	wake      chan struct{} // mesh may want to be asked earlier

	mu      sync.Mutex
	mesh    *mesh.Service
	flows   map[mesh.Layer]map[*flow]bool
	changed chan struct{} // closed and replaced at every observation
	refused time.Time     // when the limit was last complained about
}

// New makes a forwarder. now is the clock; nil means time.Now.
func New(services []Service, log *slog.Logger, now func() time.Time) *Forwarder {
	if now == nil {
		now = time.Now
	}
	f := &Forwarder{}
	for _, v := range services {
		s := &service{
			Service:   v,
			log:       log.With("service", v.Name),
			now:       now,
			listeners: map[uint16]*net.TCPListener{},
			slots:     make(chan struct{}, MaxConns),
			wake:      make(chan struct{}, 1),
			flows:     map[mesh.Layer]map[*flow]bool{},
			changed:   make(chan struct{}),
		}
		var layers []mesh.Layer
		for _, r := range v.Routes {
			layers = append(layers, r.Layer)
			s.flows[r.Layer] = map[*flow]bool{}
		}
		s.mesh = mesh.New(layers, nil)
		f.services = append(f.services, s)
	}
	return f
}

// Listen opens every service's ports, or none.
func (f *Forwarder) Listen(ctx context.Context) error {
	for _, s := range f.services {
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
	for _, s := range f.services {
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
	for _, s := range f.services {
		g.Go(func() error { return s.tend(ctx) })
		for port, l := range s.listeners {
			stop := context.AfterFunc(ctx, func() { l.Close() })
			defer stop()
			g.Go(func() error { return s.accept(ctx, g, l, port) })
		}
	}
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
		probes, changes := s.mesh.Due(s.now())
		next, ok := s.mesh.Next()
		if len(changes) > 0 {
			s.broadcast()
		}
		s.mu.Unlock()
		s.apply(changes)
		for _, l := range probes {
			go s.probe(ctx, l)
		}
		if ok {
			timer.Reset(next.Sub(s.now()))
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
	s.mu.Unlock()
	s.apply(changes)
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

// apply resets what hangs on layers that are gone.
func (s *service) apply(changes []mesh.Change) {
	for _, c := range changes {
		var n int
		if c.To == mesh.Down || c.To == mesh.Off {
			s.mu.Lock()
			n = len(s.flows[c.Layer])
			for fl := range s.flows[c.Layer] {
				fl.reset()
			}
			s.mu.Unlock()
		}
		s.log.Info("layer changed", "layer", c.Layer, "from", c.From.String(), "to", c.To.String(), "reset", n)
	}
}

// attempt dials one layer once and tells mesh how it went.
func (s *service) attempt(ctx context.Context, r Route, port uint16) (*net.TCPConn, error) {
	var (
		start   time.Time
		bindErr error
	)
	d := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepIdle},
		Control: func(_, _ string, raw syscall.RawConn) error {
			if bindErr = bind(raw, r.Interface); bindErr != nil {
				return bindErr
			}
			start = s.now()
			s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Begun, At: start})
			return nil
		},
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(r.Addr, port).String())
	now := s.now()
	switch {
	case err == nil:
		s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Answered, At: now, Start: start})
		return c.(*net.TCPConn), nil
	case errors.Is(bindErr, unix.ENODEV):
		err = fmt.Errorf("%w %s", ErrAbsent, r.Interface)
		s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Absent, At: now, Err: err.Error()})
	case bindErr != nil:
		err = fmt.Errorf("binding to %s: %w", r.Interface, bindErr)
		s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Absent, At: now, Err: err.Error()})
	case start.IsZero():
		// No socket could be had: that says nothing of the layer.
	default:
		s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Failed, At: now, Start: start, Err: reason(err)})
	}
	return nil, err
}

// bind ties a socket to an interface. Linux lets any user do that to a socket
// that is tied to none, since 5.7.
func bind(raw syscall.RawConn, iface string) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		if err = unix.BindToDevice(int(fd), iface); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stall.Milliseconds()))
		}
	}); e != nil {
		return e
	}
	return err
}

// reason is err without the addresses that net puts around it.
func reason(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &op) && op.Timeout():
		return "no answer"
	case errors.As(err, &op):
		var no syscall.Errno
		if errors.As(op.Err, &no) {
			return no.Error()
		}
		return op.Err.Error()
	}
	return err.Error()
}

// result is the end of one attempt.
type result struct {
	conn  *net.TCPConn
	layer mesh.Layer
	err   error
}

// race returns a connection over the first layer that answers. Attempts that
// lose run to their own end, since they measure; their connections are closed
// without a byte.
func (s *service) race(ctx context.Context, port uint16) (result, error) {
	results, done := make(chan result), make(chan struct{})
	defer close(done)
	try := func(r Route) {
		c, err := s.attempt(ctx, r, port)
		select {
		case results <- result{c, r.Layer, err}:
		case <-done:
			if c != nil {
				c.Close()
			}
		}
	}
	var (
		plan    []mesh.Step
		next    int // in plan
		running int
		failed  []error
		start   = time.NewTimer(0)
		giveUp  = time.NewTimer(patience)
	)
	defer start.Stop()
	defer giveUp.Stop()
	for {
		select {
		case <-ctx.Done():
			return result{}, ctx.Err()
		case <-giveUp.C:
			return result{}, fmt.Errorf("no layer answered within %v", patience)
		case <-start.C:
			if next == len(plan) {
				s.mu.Lock()
				plan, next, failed = s.mesh.Plan(s.now()), 0, nil
				s.mu.Unlock()
				if len(plan) == 0 {
					return result{}, errors.New("no layer has a route")
				}
			}
			for _, r := range s.Routes {
				if r.Layer == plan[next].Layer {
					running++
					go try(r)
				}
			}
			if next++; next < len(plan) {
				start.Reset(plan[next].After)
			} else {
				start.Reset(round)
			}
		case r := <-results:
			if r.err == nil {
				return r, nil
			}
			running--
			failed = append(failed, fmt.Errorf("%s: %w", r.layer, r.err))
			if next < len(plan) {
				start.Reset(0)
			} else if running == 0 {
				return result{}, errors.Join(failed...)
			}
		}
	}
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
			s.log.Warn("accepting a connection", "err", err)
			select { // closing connections is what helps, and it takes a moment
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accepting connections for %s: %w", s.Name, err)
		}
		select {
		case s.slots <- struct{}{}:
			g.Go(func() error {
				defer func() { <-s.slots }()
				s.carry(ctx, c, port)
				return nil
			})
		default:
			abort(c)
			s.full()
		}
	}
}

// full complains about the limit at most once a minute.
func (s *service) full() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); now.Sub(s.refused) > time.Minute {
		s.refused = now
		s.log.Warn("refusing connections: the limit is reached; `ss -tnp` says which program opens so many", "limit", MaxConns)
	}
}

// carry finds a layer for one client and splices until both are done.
func (s *service) carry(ctx context.Context, client *net.TCPConn, port uint16) {
	won, err := s.race(ctx, port)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Debug("no layer answered", "port", port, "err", err)
		}
		abort(client)
		return
	}
	fl := &flow{client: client, server: won.conn}
	s.mu.Lock()
	lost := s.mesh.State(won.layer) == mesh.Off // between its answer and now
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

// flow is a pair of connections that carry each other's bytes.
type flow struct {
	client, server *net.TCPConn
}

// splice copies both ways until both sides have ended or one has failed. The
// end of one direction is passed on and leaves the other open. io.Copy between
// two TCPConns uses splice(2), whose pipe is the only buffer: a slow reader
// slows the writer.
func (f *flow) splice() error {
	errs := make(chan error, 2)
	one := func(dst, src *net.TCPConn) {
		_, err := io.Copy(dst, src)
		if err == nil {
			err = dst.CloseWrite()
		}
		if err != nil {
			f.reset()
		}
		errs <- err
	}
	go one(f.server, f.client)
	one(f.client, f.server)
	err := errors.Join(<-errs, <-errs)
	f.client.Close()
	f.server.Close()
	return err
}

// reset ends both connections with RST. It may be called at any time.
func (f *flow) reset() {
	abort(f.client)
	abort(f.server)
}

// abort ends a connection with RST, so that the other side knows at once.
func abort(c *net.TCPConn) {
	c.SetLinger(0) // fails only on a closed connection
	c.Close()
}
