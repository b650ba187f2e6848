// Package peering decides which one Yggdrasil peer a node has.
//
// A node that has two different peers carries strangers' traffic (it was
// measured to); a node with one is a leaf. So there is never more than one: an
// edge, in the order of the configuration, and a public peer only while no edge
// answers.
//
// An edge may answer and be of no use: it refuses us, or the network freezes
// what it carries. So the machine remembers how peerings ended. An edge whose
// last one died in silence comes after the other edges; one of which that is
// known twice, or whose peering ended at once, is sick: it comes after the public
// peers, and while one of those works it is tried ever more rarely. Edges in the
// network of such a one come after those in other networks. All that is forgotten in
// time ([Forget]).
//
// The package is pure. It is told what happened ([Event]) and when, and answers
// with what to do ([Action]); it opens no socket and reads no clock.
//
//	                +---------------------------- Down ----------------------------+
//	                v                                                              |
//	          +---------+  an edge opened: Join                           +--------+---+
//	 start -->| seeking +------------------------------------------------>|  at edge   |
//	          |         |                                     Clear:      +--+------+--+
//	          | races:  |                                     drop all  ^    |      ^
//	          | edges,  |                                               |    |Suspect
//	          | +grace  |                                               |    v      |
//	          | public  |  no longer waiting and something opened:   +--+--------+  |
//	          |         |<----------- Leave, then Join --------------+  suspect  |  |
//	          +--+------+                                            |  (races,  |  |
//	             |   ^                                               |  as when  |  |
//	public opened|   | Down                                          |  seeking) |  |
//	and no edge: |   |                                               +-+---------+  |
//	        Join v   |                             Suspect             |   ^        |
//	          +------+----+<-------------------------Clear-------------+   |        |
//	          | at public +------------------------------------------------+        |
//	          | edges are |                                                         |
//	          | tried each|  an edge opened: Leave, then Join                       |
//	          | ~10 s     +---------------------------------------------------------+
//	          +-----------+
//
// "Opened" is a transport alone (TCP, TLS, WebSocket): it carries nothing until
// it is joined, so a race of transports is not two peerings.
package peering

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// The times of the machine. Those below a second make the gap after a block,
// whose goal is 3 s; see the table in the package's test for how they add up.
const (
	// Grace is what the edges have before the public peer is dialled too, when
	// there is no peering: whoever opens first is joined. Three round trips (TCP,
	// TLS 1.3, WebSocket) of 100 ms fit into it. While a peering is suspect the
	// verdict is awaited anyway, and then an edge comes first whenever it opened:
	// a Stagger is enough there.
	Grace = 300 * time.Millisecond
	// Stagger is between the dials of two peers of the same kind: RFC 8305 §5
	// gives 250 ms for addresses of one host; edges are few and in one's own
	// hands, so a little less.
	Stagger = 150 * time.Millisecond
	// Verdict is how long a peering may be suspect while another transport is
	// open. Together with the 300 ms until suspicion (package wss) it is 0.7 s:
	// three times the 200 ms minimum of Linux's retransmission timer.
	Verdict = 400 * time.Millisecond
	// EdgeRetry is between two tries of an edge while the peer is public.
	EdgeRetry = 10 * time.Second
	// MinBackoff and MaxBackoff bound the pause after a failed dial. The upper
	// bound is what a laptop may wait after its network came back.
	MinBackoff = 500 * time.Millisecond
	MaxBackoff = 10 * time.Second
	// ShortLife is the age below which the end of a peering counts as a failure
	// of the peer: a wrong key, a node that is not on its allow-list, or TLS
	// that the network freezes after some kilobytes.
	ShortLife = 5 * time.Second
	// GoodLife is the age at which the end of a peering no longer speaks against
	// its peer. A network that freezes a connection after some kilobytes lets an
	// idle one live for minutes, and it opens anew each time.
	GoodLife = 5 * time.Minute
	// Forget is when what is known against a peer no longer counts, if it was not
	// tried meanwhile: while another edge works there is no reason to, and a network
	// that freezes connections does so for hours, not for ever.
	Forget = time.Hour
	// Last is how long peers that are not sick have in a race before one that is
	// is dialled too: by then they have opened, or they will not.
	Last = time.Second
	// MaxSick bounds the pause before an edge that keeps ending early is tried
	// again while a public peer works: each such return costs an outage.
	MaxSick = 320 * time.Second
	// jitter is the part of a pause that is random, so that a thousand laptops
	// do not redial an edge in step.
	jitter = 0.2
)

// ID names one dial and the transport, then the peering, that comes of it.
// IDs are never used twice; 0 is none.
type ID uint64

// Event is something that happened: [Opened], [Failed], [Down], [Suspect],
// [Clear], [Changed] or [Tick]. An event about an ID that the machine has given up is
// ignored.
type Event interface{ event() }

type (
	// Opened says that the transport of a dial stands.
	Opened struct{ ID ID }
	// Failed says that a dial failed, or that an open transport died before it
	// was joined.
	Failed struct{ ID ID }
	// Down says that the peering is over, whoever ended it. Silent says that the
	// other side had stopped answering.
	Down struct {
		ID     ID
		Silent bool
	}
	// Suspect says that the peering's transport has waited for an answer for
	// longer than is usual, but not yet long enough to be called dead.
	Suspect struct{ ID ID }
	// Clear takes Suspect back.
	Clear struct{ ID ID }
	// Changed says that the machine may stand in another network now: an
	// interface or a route came or went. Slept says that it was asleep, so that
	// whatever had been begun before goes nowhere.
	Changed struct{ Slept bool }
	// Tick says that time has passed; see [Machine.Next].
	Tick struct{}
)

func (Opened) event()  {}
func (Failed) event()  {}
func (Down) event()    {}
func (Suspect) event() {}
func (Clear) event()   {}
func (Changed) event() {}
func (Tick) event()    {}

// Action is something to do: [Dial], [Drop], [Join] or [Leave]. Actions must be
// carried out in order.
type Action interface{ action() }

type (
	// Dial opens a transport to the peer with that index. The answer is Opened
	// or Failed.
	Dial struct {
		ID   ID
		Peer int
	}
	// Drop gives up a dial or closes a transport that was not joined. There is
	// no answer.
	Drop struct{ ID ID }
	// Join makes an open transport the peering. The answer, some day, is Down.
	Join struct{ ID ID }
	// Leave ends the peering; it must be over before the next action. There is
	// no answer. Silent says that it is left because the other side no longer
	// answers.
	Leave struct {
		ID     ID
		Silent bool
	}
)

func (Dial) action()  {}
func (Drop) action()  {}
func (Join) action()  {}
func (Leave) action() {}

// target is what the machine knows of one peer.
type target struct {
	public   bool
	network  string // where it is; empty if not known
	dial     ID     // in flight; 0 if none
	open     ID     // an open transport; 0 if none
	failures int
	sick     int       // peerings in a row that ended badly, see Machine.ended
	silent   bool      // the last peering died in silence
	blamed   time.Time // when sick or silent last became so
	notUntil time.Time // no dial before
}

func (t *target) idle() bool { return t.dial == 0 && t.open == 0 }

// Machine is the state. Make one with [New].
type Machine struct {
	targets []target
	last    ID
	rand    func() float64

	joined    ID
	peer      int // index of the joined peer
	joinedAt  time.Time
	suspectAt time.Time // zero: not suspect
	raceAt    time.Time // zero: no race
	next      time.Time
}

// New returns a machine for edges peers followed by public ones, which are
// numbered through from 0. rand gives numbers in [0,1) for the jitter.
func New(edges, public int, rand func() float64) *Machine {
	m := &Machine{targets: make([]target, edges+public), rand: rand}
	for i := edges; i < len(m.targets); i++ {
		m.targets[i].public = true
	}
	return m
}

// In says in which networks the peers are, in the order of their numbers; an empty
// text is an unknown one. What a network does to the connections to one edge it most
// likely does to another beside it, so after an edge in one network comes one in
// another. It returns m.
func (m *Machine) In(networks ...string) *Machine {
	for i := range min(len(networks), len(m.targets)) {
		m.targets[i].network = networks[i]
	}
	return m
}

// Joined is the peering's ID and peer; ok is false if there is none.
func (m *Machine) Joined() (id ID, peer int, ok bool) {
	return m.joined, m.peer, m.joined != 0
}

// Next is when the machine wants a Tick at the latest; zero for never.
func (m *Machine) Next() time.Time { return m.next }

// Step takes what happened at now and returns what to do about it. now must not
// go back.
func (m *Machine) Step(now time.Time, e Event) []Action {
	var acts []Action
	m.forget(now)
	switch e := e.(type) {
	case Opened:
		if t := m.dialling(e.ID); t != nil {
			t.dial, t.open = 0, e.ID
		}
	case Failed:
		if t := m.dialling(e.ID); t != nil {
			t.dial = 0
			m.fail(now, t)
		} else if t := m.opened(e.ID); t != nil {
			t.open = 0
			m.fail(now, t)
		}
	case Down:
		if e.ID == m.joined && m.joined != 0 {
			m.ended(now, e.Silent)
		}
	case Suspect:
		if e.ID == m.joined && m.joined != 0 && m.suspectAt.IsZero() {
			m.suspectAt = now
			m.raceAt = now
			// The peer itself is asked again too, after the other edges: if it
			// answers, then the connection is dead and the peer is not.
			m.targets[m.peer].notUntil = time.Time{}
		}
	case Clear:
		if e.ID == m.joined && !m.suspectAt.IsZero() {
			m.suspectAt, m.raceAt = time.Time{}, time.Time{}
			acts = m.dropAll(acts, func(t *target) bool { return t.public || !m.targets[m.peer].public })
		}
	case Changed:
		acts = m.changed(now, e.Slept)
	case Tick:
	}
	return m.plan(now, acts)
}

// changed ends the pauses after failures: they were about another network. A peer
// whose peerings end badly keeps its own, since many a change is none of the
// network outside.
func (m *Machine) changed(now time.Time, slept bool) (acts []Action) {
	if slept {
		acts = m.dropAll(nil, func(*target) bool { return true })
		if !m.raceAt.IsZero() {
			m.raceAt = now
		}
	}
	for i := range m.targets {
		if t := &m.targets[i]; t.sick == 0 {
			t.failures, t.notUntil = 0, time.Time{}
		}
	}
	return acts
}

// plan brings what goes on into line with what the state asks for.
func (m *Machine) plan(now time.Time, acts []Action) []Action {
	best := m.best()
	switch {
	case m.joined == 0:
		if m.raceAt.IsZero() {
			m.raceAt = now
		}
		if best >= 0 {
			acts = m.join(now, best, acts)
		}
	case best < 0:
	case !m.suspectAt.IsZero() && now.Sub(m.suspectAt) >= Verdict,
		m.suspectAt.IsZero() && m.targets[m.peer].public && !m.targets[best].public:
		acts = append(acts, Leave{m.joined, !m.suspectAt.IsZero()})
		if !m.suspectAt.IsZero() {
			m.ended(now, true)
			best = m.best() // it may have turned out to be sick
		}
		acts = m.join(now, best, acts)
	}
	return m.dials(now, acts)
}

// best is the index of the most wanted peer with an open transport, or -1.
func (m *Machine) best() int {
	for _, i := range m.order() {
		if m.targets[i].open != 0 {
			return i
		}
	}
	return -1
}

// order is the peers, the most wanted first: edges, public peers, and then
// whatever is sick.
func (m *Machine) order() []int {
	order := make([]int, len(m.targets))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(m.class(a), m.class(b)), cmp.Compare(m.blame(a), m.blame(b)), cmp.Compare(m.beside(a), m.beside(b)))
	})
	return order
}

const (
	anEdge = iota
	aPublic
	aSick
)

// class is the first thing that the order asks for.
func (m *Machine) class(i int) int {
	t := &m.targets[i]
	switch {
	case t.sick > 0, t.silent && m.suspected(i):
		return aSick
	case t.public:
		return aPublic
	}
	return anEdge
}

// blame is the second: how often in a row peer i failed us.
func (m *Machine) blame(i int) int {
	n := m.targets[i].sick
	if m.targets[i].silent {
		n++
	}
	if m.suspected(i) {
		n++
	}
	return n
}

// beside is the third: how many edges in the network of i failed us.
func (m *Machine) beside(i int) (n int) {
	for j := range m.targets {
		if t := &m.targets[j]; j != i && !t.public && t.network != "" && t.network == m.targets[i].network && m.blame(j) > 0 {
			n++
		}
	}
	return n
}

// forget forgives whoever was not blamed for long.
func (m *Machine) forget(now time.Time) {
	for i := range m.targets {
		t := &m.targets[i]
		if (t.sick > 0 || t.silent) && now.Sub(t.blamed) >= Forget && (m.joined == 0 || m.peer != i) {
			t.sick, t.silent, t.failures = 0, false, 0
		}
	}
}

// suspected says whether i is the joined peer, and suspect.
func (m *Machine) suspected(i int) bool {
	return m.joined != 0 && m.peer == i && !m.suspectAt.IsZero()
}

// join makes peer i the peering and drops what it makes needless.
func (m *Machine) join(now time.Time, i int, acts []Action) []Action {
	t := &m.targets[i]
	m.joined, m.peer, m.joinedAt = t.open, i, now
	m.suspectAt, m.raceAt = time.Time{}, time.Time{}
	t.open = 0
	// At a public peer the dials of the edges go on: whichever answers late is
	// still better, unless it is sick.
	acts = m.dropAll(acts, func(o *target) bool { return o.public || !t.public || o.sick > 0 })
	acts = append(acts, Join{m.joined})
	if t.public {
		for j := range m.targets {
			if e := &m.targets[j]; !e.public && e.idle() {
				m.away(now, e)
			}
		}
	}
	return acts
}

// ended notes the end of the peering in the record of its peer. Only a peering
// that lasted wipes out earlier failures: a peer that opens and then refuses us
// must not be dialled for ever at the shortest pause, nor one that opens and then
// falls silent be taken for the best each time.
func (m *Machine) ended(now time.Time, silent bool) {
	t := &m.targets[m.peer]
	life := now.Sub(m.joinedAt)
	m.joined, m.suspectAt = 0, time.Time{}
	if life < ShortLife || silent && t.silent && life < GoodLife {
		t.sick++
		if t.idle() {
			m.fail(now, t)
		}
	} else {
		t.failures, t.notUntil = 0, time.Time{}
		if !silent || life >= GoodLife {
			t.sick = 0
		}
	}
	t.silent, t.blamed = silent, now
	for i := range m.targets { // nobody is spared while there is no peering
		if o := &m.targets[i]; o != t && o.notUntil.Sub(now) > MaxBackoff {
			o.notUntil = now.Add(m.shake(MaxBackoff))
		}
	}
	if m.raceAt.IsZero() {
		m.raceAt = now
	}
}

// fail puts off the next dial of t.
func (m *Machine) fail(now time.Time, t *target) {
	t.failures++
	if m.joined != 0 && m.suspectAt.IsZero() && !t.public {
		m.away(now, t)
		return
	}
	d := MinBackoff * time.Duration(math.Exp2(float64(min(t.failures-1, 10))))
	t.notUntil = now.Add(m.shake(min(d, MaxBackoff)))
}

// away puts off the next dial of an edge while a public peer works.
func (m *Machine) away(now time.Time, t *target) {
	d := EdgeRetry * time.Duration(math.Exp2(float64(min(t.sick, 10))))
	t.notUntil = now.Add(m.shake(min(d, MaxSick)))
}

// shake makes d random within jitter of itself.
func (m *Machine) shake(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*jitter*(2*m.rand()-1))
}

// dials starts the dials that are due and notes when the next one is.
func (m *Machine) dials(now time.Time, acts []Action) []Action {
	m.next = time.Time{}
	racing := !m.raceAt.IsZero()
	if !racing && !m.targets[m.peer].public {
		return acts // at an edge, and content
	}
	if !m.suspectAt.IsZero() && m.best() >= 0 {
		m.at(m.suspectAt.Add(Verdict))
	}
	var ahead [aSick + 1]int // dialled or still to be dialled without a pause, by class
	for _, i := range m.order() {
		t, class := &m.targets[i], m.class(i)
		if t.public && !racing {
			continue // at a public peer only edges are of interest
		}
		if t.open != 0 {
			return acts // nothing below it is wanted
		}
		if t.dial != 0 {
			ahead[class]++
			continue
		}
		due := t.notUntil
		if racing {
			slot := m.raceAt.Add(Stagger * time.Duration(ahead[class]))
			switch {
			case class == aPublic && ahead[anEdge] > 0 && !m.suspectAt.IsZero():
				slot = slot.Add(Stagger)
			case class == aPublic && ahead[anEdge] > 0:
				slot = slot.Add(Grace)
			case class == aSick && ahead[anEdge]+ahead[aPublic] > 0:
				slot = slot.Add(Last)
			}
			if slot.After(due) {
				due = slot
			}
		}
		if due.After(now) {
			m.at(due)
			if !t.notUntil.After(now) {
				ahead[class]++
			}
			continue
		}
		m.last++
		t.dial = m.last
		ahead[class]++
		acts = append(acts, Dial{ID: t.dial, Peer: i})
	}
	return acts
}

// at lowers next to t.
func (m *Machine) at(t time.Time) {
	if m.next.IsZero() || t.Before(m.next) {
		m.next = t
	}
}

// dropAll drops the dials and open transports of all targets that which picks.
func (m *Machine) dropAll(acts []Action, which func(*target) bool) []Action {
	for i := range m.targets {
		t := &m.targets[i]
		if !which(t) {
			continue
		}
		for _, id := range []*ID{&t.dial, &t.open} {
			if *id != 0 {
				acts = append(acts, Drop{*id})
				*id = 0
			}
		}
	}
	return acts
}

func (m *Machine) dialling(id ID) *target {
	for i := range m.targets {
		if id != 0 && m.targets[i].dial == id {
			return &m.targets[i]
		}
	}
	return nil
}

func (m *Machine) opened(id ID) *target {
	for i := range m.targets {
		if id != 0 && m.targets[i].open == id {
			return &m.targets[i]
		}
	}
	return nil
}
