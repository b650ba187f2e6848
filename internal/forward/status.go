package forward

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/veilor/veilor-os/internal/mesh"
)

const (
	// fresh is how old an answer may be to count as present knowledge.
	fresh = 10 * time.Second
	// watched is how recently a lost layer must have been tried for its loss to
	// count as present knowledge: it is probed once a second while in use.
	watched = 3 * time.Second
	// askLost is how long a lost layer gets to answer, about the silence that
	// makes mesh doubt one that is up.
	askLost = time.Second
	// askLimit bounds the whole question: two answers a second apart bring a
	// lost layer back.
	askLimit = 2500 * time.Millisecond
)

// Status says how each service is reached now. Layers that nobody has used
// lately are tried first, so the answer is knowledge and not memory; that takes
// a round trip, or up to 2.5 s where a layer is silent.
func (f *Forwarder) Status(ctx context.Context) []Status {
	services := f.list()
	out := make([]Status, len(services))
	var wg sync.WaitGroup
	for i, s := range services {
		wg.Go(func() {
			s.ask(ctx)
			out[i] = s.status()
		})
	}
	wg.Wait()
	return out
}

func (s *service) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Name: s.Name, Layers: s.mesh.Health(s.now())}
	st.Active, st.Since = s.mesh.Active()
	st.Refusals, st.Canary = maps.Clone(s.refused), s.canary
	for _, flows := range s.flows {
		st.Conns += len(flows)
	}
	return st
}

// ask tries every layer whose state is not known freshly and waits until it is.
func (s *service) ask(ctx context.Context) {
	if s.isQuiet() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	asked := s.now()
	s.mu.Lock()
	s.mesh.Want(asked)
	for _, h := range s.mesh.Health(asked) {
		if !settled(h, asked, asked) {
			// The attempt outlives this question: it measures.
			go s.probe(context.WithoutCancel(ctx), h.Layer)
		}
	}
	s.mu.Unlock()
	lost := time.NewTimer(askLost)
	defer lost.Stop()
	for {
		s.mu.Lock()
		now, done := s.now(), true
		for _, h := range s.mesh.Health(now) {
			done = done && settled(h, asked, now)
		}
		changed := s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-lost.C:
		case <-ctx.Done():
			return
		}
	}
}

// settled says whether h is known, for a question asked at asked.
func settled(h mesh.Health, asked, now time.Time) bool {
	switch h.State {
	case mesh.Off:
		return !h.Tried.Before(asked)
	case mesh.Up:
		return asked.Sub(h.Answer) < fresh && !h.Doubt
	case mesh.Suspect, mesh.Down:
		if h.Answer.After(asked) {
			return false // it may be coming back
		}
		return asked.Sub(h.Tried) < watched && asked.After(h.Tried) || now.Sub(asked) >= askLost
	}
	return false
}

// Explanation is what decides how a service is reached.
type Explanation struct {
	Status  Status
	Service Service
	// Plan is what a connection would do now.
	Plan []mesh.Step
}

// Explain says what is known of the named service, without asking any layer. ok
// is false if there is no such service.
func (f *Forwarder) Explain(name string) (e Explanation, ok bool) {
	for _, s := range f.list() {
		if s.Name == name {
			e.Status, e.Service = s.status(), s.Service
			s.mu.Lock()
			e.Plan = s.mesh.Order()
			s.mu.Unlock()
			return e, true
		}
	}
	return e, false
}

// Names are the names of the services.
func (f *Forwarder) Names() []string {
	var names []string
	for _, s := range f.list() {
		names = append(names, s.Name)
	}
	return names
}
