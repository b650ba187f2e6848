// Package mesh decides over which layer a service is reached.
//
// It is pure: it dials nothing, sleeps never and reads no clock. Whoever dials
// reports what happened as an [Event] with its time, and asks [Service.Plan] in
// which order to try the layers, [Service.Due] which probes to send now, and
// [Service.Next] when to ask again. Health is kept per service and layer,
// because a policy may allow a host on one layer and not on the other.
//
// TCP takes minutes to find out that a path is dead and the overlays' own
// health reports take longer still; mesh declares a layer dead after seconds of
// expected silence. A single lost packet costs a connection 250 ms, no more.
package mesh

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Layer is an independent overlay network.
type Layer string

// The layers, in the order in which they are preferred.
const (
	Tailnet   Layer = "tailnet"
	Yggdrasil Layer = "yggdrasil"
)

// Order lists every layer, the preferred one first.
var Order = []Layer{Tailnet, Yggdrasil}

const (
	// Stagger is the head start of a healthy layer over the next one. 250 ms is
	// RFC 8305's "Connection Attempt Delay": longer than a round trip on a good
	// path, shorter than what a person notices.
	Stagger = 250 * time.Millisecond

	// suspectSilence and suspectMisses make an up layer suspect: nobody
	// answered for that long, and that many attempts in a row went unanswered.
	// The silence is longer than the first TCP SYN retransmission (1 s, RFC
	// 6298), so that one lost SYN is never enough; at 2 % loss each way four
	// unanswered attempts in a row have a chance of 0.04^4.
	suspectSilence = 1250 * time.Millisecond
	suspectMisses  = 4

	// downSilence and downMisses make a suspect layer down, on which its open
	// connections are reset. It costs people a reload, hence the patience:
	// three seconds hold the second SYN retransmission too.
	downSilence = 3 * time.Second
	downMisses  = 6

	// doubtProbe is the pace of probes while an up layer owes an answer. It
	// brings suspectMisses together within suspectSilence on a quiet machine.
	doubtProbe = Stagger
	// lostProbe is the pace while a layer is suspect or down. It bounds how
	// long a connection stays on the second choice after the first is back.
	lostProbe = time.Second
	// jitter spreads probes by this part either way, so that they are no beat
	// that an observer can key on and laptops do not march in step.
	jitter = 0.25

	// lately is how recent an answer must be to speak for a layer when a
	// connection waits. Shorter than the silence after which one is said to.
	lately = 500 * time.Millisecond

	// demandFor is how long after the last connection probes go on. Nobody
	// waits for an unused service: its layers rest until the next connection.
	demandFor = time.Minute

	// recoverAnswers bring a lost layer back. One could be luck.
	recoverAnswers = 2
	// minHold is the least time between the first of them and the return;
	// it doubles up to maxHold with every fall that comes within calmAfter of
	// a return, so that a flapping path does not take the connections along.
	minHold   = 500 * time.Millisecond
	maxHold   = 30 * time.Second
	calmAfter = 5 * time.Minute
)

// MinSwitch bounds the rate of switching: a layer that fell is not up again
// before minHold, and then does not fall before suspectSilence, unless its
// interface vanishes.
const MinSwitch = minHold

// State is the health of one layer for one service.
//
//	              answered
//	+---------+ -----------> +------+
//	| untried |              |  up  | <-----------------+
//	+---------+ --+      +-- +------+                   |
//	              |      |                              | 2 answers in a row,
//	  1.25 s and 4 attempts without an answer           | at least hold apart
//	              |      |                              |
//	              v      v                              |
//	            +---------+ ----------------------------+
//	            | suspect |                             |
//	            +---------+ <--+                        |
//	              |            | interface is back      |
//	  3 s and 6 attempts       | (any attempt)          |
//	              |          +-----+                    |
//	              |          | off | <-- no interface,  |
//	              v          +-----+     from any state |
//	            +------+                                |
//	            | down | -------------------------------+
//	            +------+
//
// untried and up come first in a connection's plan, suspect and down after
// them. off keeps its place: trying a missing interface costs nothing.
// Connections on a layer that goes down or off are reset. While bytes still
// come over open connections a suspect layer does not go down: who blocks new
// connections and leaves the old ones is not helped by our ending them.
type State int

// The states.
const (
	Untried State = iota
	Up
	Suspect
	Down
	Off
)

func (s State) String() string {
	return [...]string{"untried", "up", "suspect", "down", "off"}[s]
}

// usable says whether a connection may wait Stagger for a layer in this state.
func (s State) usable() bool { return s == Up || s == Untried }

// Kind is what happened to an attempt.
type Kind int

// An attempt begins once, and then is answered, fails or finds no interface.
// A layer without an interface may report Absent without having begun.
//
// Heard and Silent are passive, from the connections that are open anyway: Heard
// says that something came from the other end at At, Silent that a connection
// has waited for an answer since Start in vain. Silence there is no evidence
// yet, since a server may think; it makes the next probe due at once.
//
// Hinted says that the overlay's own daemon told of a change. It is believed
// nothing: it only makes the next probe of a service in use due at once.
const (
	Begun Kind = iota
	Answered
	Failed
	Absent
	Heard
	Silent
	Hinted
)

// Event is one passive or active observation of a layer.
type Event struct {
	Layer Layer
	Kind  Kind
	At    time.Time
	// Start is when the attempt began, or since when a connection waits. Only
	// for Answered, Failed and Silent.
	Start time.Time
	// RTT is what TCP measured on an open connection. Only for Heard.
	RTT time.Duration
	// Err says why it failed, for people. Only for Failed and Absent.
	Err string
}

// Change is a transition of one layer.
type Change struct {
	Layer    Layer
	From, To State
}

// Step is one layer in a connection's plan.
type Step struct {
	Layer Layer
	// After is how long to wait after the previous step began. A previous step
	// that failed ends the wait at once.
	After time.Duration
}

// Health is the record of one layer, as status shows it.
type Health struct {
	Layer Layer
	State State
	// Since is when State began; zero if untried.
	Since time.Time
	// Answer is when the layer last answered; zero if never.
	Answer time.Time
	// RTT is the round trip that the last handshake or open connection had.
	RTT time.Duration
	// Heard is when an open connection last heard something; zero if never.
	Heard time.Time
	// Tried is when an attempt last began, or found no interface.
	Tried time.Time
	// Doubt says that an attempt is unanswered for longer than Stagger.
	Doubt bool
	// Err is why the last failed attempt failed; empty once answered.
	Err string
}

// Service is the health of all layers of one service. It is not safe for
// concurrent use.
type Service struct {
	layers []*layer
	demand time.Time // when it was last wanted
	active Layer
	since  time.Time
	rand   func() float64 // in [0,1)
}

// layer is the record of one layer.
type layer struct {
	Health
	pending []time.Time // starts of attempts that are neither answered nor failed
	failed  []time.Time // starts of attempts that failed since the last answer, at most downMisses
	good    int         // answers in a row while lost
	first   time.Time   // when the first of them came
	hold    time.Duration
	back    time.Time // when it last returned to up
	probe   time.Time // when the next probe is due; zero if none
}

// New makes the record of a service that has routes on the given layers.
// Layers that veilor does not know are ignored. jitterSource returns numbers in
// [0,1); nil means math/rand.
func New(layers []Layer, jitterSource func() float64) *Service {
	if jitterSource == nil {
		jitterSource = rand.Float64
	}
	s := &Service{rand: jitterSource}
	for _, l := range Order {
		if slices.Contains(layers, l) {
			s.layers = append(s.layers, &layer{Health: Health{Layer: l}, hold: minHold})
		}
	}
	return s
}

// Want says that somebody wants to know or use the service now. Probes of lost
// or doubtful layers go on for demandFor after it.
func (s *Service) Want(now time.Time) {
	s.demand = now
	for _, l := range s.layers {
		if !l.State.usable() && l.State != Off && l.probe.IsZero() {
			s.schedule(l, now)
		}
	}
}

// Changed says that the machine may stand in another network now: an interface
// or a route came or went, or it was asleep. What was known of lost layers, and
// how long they are held off for flapping, was about the other network. If the
// service is in use every layer that exists is asked at once.
func (s *Service) Changed(now time.Time) {
	for _, l := range s.layers {
		l.hold = minHold
		if l.State != Off && l.State != Untried && now.Sub(s.demand) <= demandFor {
			l.probe = now
		}
	}
}

// Plan says in which order a new connection tries the layers.
func (s *Service) Plan(now time.Time) []Step {
	s.Want(now)
	return s.Order()
}

// Order is the plan that a connection would get, without wanting one.
func (s *Service) Order() []Step {
	ranked := slices.Clone(s.layers)
	slices.SortStableFunc(ranked, func(a, b *layer) int { return rank(a.State) - rank(b.State) })
	steps := make([]Step, len(ranked))
	for i, l := range ranked {
		steps[i].Layer = l.Layer
		if i > 0 && ranked[i-1].State.usable() {
			steps[i].After = Stagger
		}
	}
	return steps
}

func rank(s State) int {
	switch s {
	case Suspect:
		return 1
	case Down:
		return 2
	}
	return 0
}

// On takes an observation and returns the transitions that follow from it.
// An event about a layer that the service does not have is ignored.
func (s *Service) On(e Event) []Change {
	l := s.find(e.Layer)
	if l == nil {
		return nil
	}
	before := l.State
	switch e.Kind {
	case Begun:
		l.Tried = e.At
		if l.State == Off {
			l.lose(Suspect, e.At)
		}
		if len(l.pending) < maxPending {
			l.pending = append(l.pending, e.At)
		}
	case Answered:
		l.answered(e)
	case Failed:
		l.drop(e.Start)
		l.Err = e.Err
		if l.good = 0; e.Start.After(l.Answer) && len(l.failed) < downMisses {
			l.failed = append(l.failed, e.Start)
		}
	case Absent:
		l.pending, l.failed = nil, nil
		l.Err, l.Tried = e.Err, e.At
		l.lose(Off, e.At)
	case Heard:
		l.heard(e)
		return nil
	case Silent:
		s.demand = later(s.demand, e.At)
		if l.State.usable() && e.At.Sub(l.Answer) >= lately && len(l.pending) == 0 {
			l.probe = e.At
		}
	case Hinted:
		// A daemon that tells much must not make us ask much.
		if l.State != Off && l.State != Untried && e.At.Sub(s.demand) <= demandFor && e.At.Sub(later(l.Answer, l.Tried)) >= lately {
			l.probe = e.At
		}
		return nil
	}
	if l.State == Off {
		l.probe = time.Time{}
	} else if e.Kind == Begun || e.Kind == Failed {
		l.judge(e.At)
		s.schedule(l, e.At)
	}
	s.choose(e.At)
	if l.State == before {
		return nil
	}
	return []Change{{Layer: l.Layer, From: before, To: l.State}}
}

// maxPending bounds the memory of unanswered attempts; mesh needs no more than
// downMisses of them to decide.
const maxPending = 64

func (l *layer) answered(e Event) {
	if e.At.Before(l.Answer) {
		e.At = l.Answer
	}
	l.Answer, l.RTT, l.Err = e.At, e.At.Sub(e.Start), ""
	// Whatever began before this answer is no evidence of silence any more.
	l.failed = nil
	l.pending = slices.DeleteFunc(l.pending, func(t time.Time) bool { return !t.After(e.At) })
	if l.State == Untried {
		l.set(Up, e.At)
	}
	if l.State == Up {
		l.probe = time.Time{}
		return
	}
	if l.good++; l.good == 1 {
		l.first = e.At
	}
	if l.good >= recoverAnswers && e.At.Sub(l.first) >= l.hold {
		l.set(Up, e.At)
		l.back = e.At
		l.probe = time.Time{}
	}
}

// heard takes note of a sign of life that no attempt asked for. It forgives no
// attempt: what is open may go on while new connections are blocked.
func (l *layer) heard(e Event) {
	l.Health.Heard = later(l.Health.Heard, e.At)
	if e.RTT > 0 && l.State == Up {
		l.RTT = e.RTT
	}
	if _, misses := l.silence(); misses == 0 && l.State == Up {
		l.Answer = later(l.Answer, e.At)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// drop forgets the pending attempt that began at start.
func (l *layer) drop(start time.Time) {
	if i := slices.Index(l.pending, start); i >= 0 {
		l.pending = slices.Delete(l.pending, i, i+1)
	}
}

// silence is since when the layer owes an answer, and to how many attempts.
func (l *layer) silence() (since time.Time, misses int) {
	for _, starts := range [][]time.Time{l.pending, l.failed} {
		for _, t := range starts {
			if since.IsZero() || t.Before(since) {
				since = t
			}
		}
	}
	return since, len(l.pending) + len(l.failed)
}

// judge moves a silent layer towards down.
func (l *layer) judge(now time.Time) {
	since, misses := l.silence()
	if misses == 0 {
		return
	}
	silent := now.Sub(since)
	if l.State.usable() && silent >= suspectSilence && misses >= suspectMisses {
		l.lose(Suspect, now)
	}
	if l.State == Suspect && silent >= downSilence && misses >= downMisses && now.Sub(l.Health.Heard) >= downSilence {
		l.lose(Down, now)
	}
}

// lose leaves up (or goes deeper), and remembers a relapse.
func (l *layer) lose(to State, now time.Time) {
	if l.State == to {
		return
	}
	if l.State == Up && !l.back.IsZero() {
		if now.Sub(l.back) < calmAfter {
			l.hold = min(2*l.hold, maxHold)
		} else {
			l.hold = minHold
		}
	}
	l.good = 0
	l.set(to, now)
}

func (l *layer) set(to State, now time.Time) { l.State, l.Health.Since = to, now }

// schedule sets the next probe of l if it owes an answer or is lost.
func (s *Service) schedule(l *layer, now time.Time) {
	if !l.probe.IsZero() && l.probe.After(now) {
		return
	}
	pace := lostProbe
	if l.State.usable() {
		if _, misses := l.silence(); misses == 0 {
			l.probe = time.Time{}
			return
		}
		pace = doubtProbe
	}
	l.probe = now.Add(time.Duration(float64(pace) * (1 + jitter*(2*s.rand()-1))))
}

// Due returns the layers that want a probe now, and the transitions that the
// mere passing of time brought. A probe is an attempt like any other: report
// it as Begun, then Answered, Failed or Absent.
func (s *Service) Due(now time.Time) (probes []Layer, changes []Change) {
	for _, l := range s.layers {
		before := l.State
		l.judge(now)
		if l.State != before {
			changes = append(changes, Change{Layer: l.Layer, From: before, To: l.State})
		}
		if l.probe.IsZero() || l.probe.After(now) {
			continue
		}
		if now.Sub(s.demand) > demandFor {
			l.probe = time.Time{} // nobody waits
			continue
		}
		probes = append(probes, l.Layer)
		s.schedule(l, now)
	}
	s.choose(now)
	return probes, changes
}

// Next says when Due must be called again; ok is false if never.
func (s *Service) Next() (at time.Time, ok bool) {
	for _, l := range s.layers {
		if !l.probe.IsZero() && (!ok || l.probe.Before(at)) {
			at, ok = l.probe, true
		}
	}
	return at, ok
}

// choose keeps track of the layer in use: the first that is up.
func (s *Service) choose(now time.Time) {
	var active Layer
	for _, l := range s.layers {
		if l.State == Up {
			active = l.Layer
			break
		}
	}
	if active != s.active {
		s.active, s.since = active, now
	}
}

// Active is the layer that a new connection takes, and since when; empty if
// none is known to work.
func (s *Service) Active() (l Layer, since time.Time) { return s.active, s.since }

// Health returns the records, preferred layer first.
func (s *Service) Health(now time.Time) []Health {
	hs := make([]Health, len(s.layers))
	for i, l := range s.layers {
		hs[i] = l.Health
		since, misses := l.silence()
		hs[i].Doubt = misses > 0 && now.Sub(since) > Stagger
	}
	return hs
}

// State is the state of one layer; Off for a layer the service does not have.
func (s *Service) State(l Layer) State {
	if r := s.find(l); r != nil {
		return r.State
	}
	return Off
}

func (s *Service) find(l Layer) *layer {
	for _, r := range s.layers {
		if r.Layer == l {
			return r
		}
	}
	return nil
}
