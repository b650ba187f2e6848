package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/mesh"
)

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
