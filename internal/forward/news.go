package forward

import (
	"context"
	"net"
	"time"

	"github.com/veilor/veilor-os/internal/mesh"
)

// What News is about.
const (
	// LayerChanged: a layer's state for a service went from From to To.
	LayerChanged = "layer"
	// Switched: new connections of a service take layer To instead of From;
	// either may be empty.
	Switched = "switch"
	// CanaryTold: the fallback was tried. Why is empty if it answered.
	CanaryTold = "canary"
	// QuietChanged: To is "on" or "off".
	QuietChanged = "quiet"
	// LinkChanged: an interface or a route came or went.
	LinkChanged = "link"
	// RefusedOne: a client was let nowhere, for the reason in Why. It is told once
	// an hour for each reason, however many there are.
	RefusedOne = "refused"
)

// News is one thing that happened, worth remembering.
type News struct {
	At      time.Time  `json:"at"`
	What    string     `json:"what"`
	Service string     `json:"service,omitempty"`
	Layer   mesh.Layer `json:"layer,omitempty"`
	From    string     `json:"from,omitempty"`
	To      string     `json:"to,omitempty"`
	Why     string     `json:"why,omitempty"`
	// Reset is how many connections were ended.
	Reset int `json:"reset,omitempty"`
}

// Tell makes the forwarder report what happens. Call it before Serve; tell must
// not block.
func (f *Forwarder) Tell(tell func(News)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell = tell
	for _, s := range f.services {
		s.tell = tell
	}
}

// Quiet makes the forwarder silent: it refuses new connections, ends those that
// are open, and sends no probe; or it ends that.
func (f *Forwarder) Quiet(on bool) {
	f.mu.Lock()
	f.quiet = on
	f.mu.Unlock()
	for _, s := range f.list() {
		s.mu.Lock()
		was := s.quiet
		s.quiet = on
		n := 0
		if on {
			for l := range s.flows {
				n += s.resetAll(l)
			}
		} else {
			s.mesh.Changed(s.now())
		}
		s.broadcast()
		s.mu.Unlock()
		s.nudge()
		if was != on {
			to := "off"
			if on {
				to = "on"
			}
			s.tell(News{At: s.now(), What: QuietChanged, Service: s.Name, To: to, Reset: n})
		}
	}
}

func (s *service) isQuiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quiet
}

// Hint says that the daemon of a layer told of a change. Services in use ask the
// layer at once, and believe what they find.
func (f *Forwarder) Hint(l mesh.Layer) {
	for _, s := range f.list() {
		if !s.isQuiet() {
			s.on(mesh.Event{Layer: l, Kind: mesh.Hinted, At: s.now()})
		}
	}
}

// LinkChanged says that an interface or a route came or went. A layer whose
// interface is gone is left at once, instead of at the next connection.
func (f *Forwarder) LinkChanged(ctx context.Context) {
	for _, s := range f.list() {
		for _, r := range s.Routes {
			if _, err := net.InterfaceByName(r.Interface); err != nil && ctx.Err() == nil {
				s.mu.Lock()
				known := s.mesh.State(r.Layer) != mesh.Untried
				s.mu.Unlock()
				if known {
					s.on(mesh.Event{Layer: r.Layer, Kind: mesh.Absent, At: s.now(), Err: ErrAbsent.Error() + " " + r.Interface})
				}
			}
		}
		s.mu.Lock()
		if !s.quiet {
			s.mesh.Changed(s.now())
		}
		s.mu.Unlock()
		s.nudge()
	}
}
