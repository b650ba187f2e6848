package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/listen"
	"github.com/veilor/veilor-os/internal/mesh"
)

func newService(v Service, log *slog.Logger, now func() time.Time) *service {
	s := &service{
		Service:   v,
		log:       log.With("service", v.Name),
		now:       now,
		listeners: map[uint16]*net.TCPListener{},
		slots:     make(chan struct{}, MaxConns),
		waiting:   make(chan struct{}, MaxWaiting),
		wake:      make(chan struct{}, 1),
		flows:     map[mesh.Layer]map[*flow]bool{},
		changed:   make(chan struct{}),
		refused:   map[string]Refusals{},
		logged:    map[string]time.Time{},
		tell:      func(News) {},
	}
	var layers []mesh.Layer
	for _, r := range v.Routes {
		layers = append(layers, r.Layer)
		s.flows[r.Layer] = map[*flow]bool{}
	}
	s.mesh = mesh.New(layers, nil)
	return s
}

// list is the services at this moment. The slice is replaced and never changed.
func (f *Forwarder) list() []*service {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.services
}

// work is what a service needs while it works.
type work struct {
	stop  context.CancelFunc
	loops sync.WaitGroup // whoever uses its listeners
}

// start lets a service work until ctx ends or stop is called.
func (s *service) start(ctx context.Context, g *errgroup.Group) {
	ctx, cancel := context.WithCancel(ctx)
	s.work = &work{stop: cancel}
	g.Go(func() error { return s.tend(ctx) })
	g.Go(func() error { s.keepCanary(ctx); return nil })
	s.work.loops.Add(1 + len(s.listeners))
	g.Go(func() error {
		defer s.work.loops.Done()
		<-ctx.Done()
		for _, l := range s.listeners {
			// Not closed: whoever comes after this service may want it.
			l.SetDeadline(time.Unix(1, 0))
		}
		return nil
	})
	for port, l := range s.listeners {
		g.Go(func() error {
			defer s.work.loops.Done()
			return s.accept(ctx, g, l, port)
		})
	}
}

// stop ends the work of a service, resets its connections and returns when it
// accepts no more.
func (s *service) stop() {
	if s.work != nil {
		s.work.stop()
		s.work.loops.Wait()
	}
}

// Replace makes the forwarder serve another set of services, at any time. What is
// in both sets goes on untouched, its open connections too. A service that is
// gone, or has other ports or routes, has its connections reset; its new form
// takes over the ports that it had without a moment in which they are closed.
//
// Ports that cannot be had are left out and told in the error; everything else is
// served nevertheless, and the next call tries them again.
func (f *Forwarder) Replace(ctx context.Context, services []Service) error {
	f.replacing.Lock()
	defer f.replacing.Unlock()
	keep := map[string]*service{}
	left := map[netip.AddrPort]*net.TCPListener{}
	for _, s := range f.list() {
		// One that lacks a port is made anew: the port may be free now.
		if len(s.listeners) == len(s.Ports) && slices.ContainsFunc(services, s.Service.equal) {
			keep[s.Name] = s
			continue
		}
		s.stop()
		for port, l := range s.listeners {
			left[netip.AddrPortFrom(s.Service.Listen, port)] = l
		}
	}
	var (
		next, fresh []*service
		errs        []error
	)
	for _, v := range services {
		if s, ok := keep[v.Name]; ok {
			next = append(next, s)
			continue
		}
		s := newService(v, f.log, f.now)
		for _, port := range v.Ports {
			addr := netip.AddrPortFrom(v.Listen, port)
			l, ok := left[addr]
			if ok {
				delete(left, addr)
				l.SetDeadline(time.Time{})
			} else {
				var err error
				if l, err = listen.TCP(ctx, addr, v.Name); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			s.listeners[port] = l
		}
		next, fresh = append(next, s), append(fresh, s)
	}
	for _, l := range left {
		l.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.services = next
	for _, s := range fresh {
		s.tell, s.quiet = f.tell, f.quiet
		if f.start != nil {
			f.start(s)
		}
	}
	return errors.Join(errs...)
}

// equal says whether two services are the same in everything.
func (v Service) equal(o Service) bool {
	return v.Name == o.Name && v.Listen == o.Listen && slices.Equal(v.Ports, o.Ports) &&
		slices.Equal(v.TLS, o.TLS) && slices.Equal(v.Routes, o.Routes)
}
