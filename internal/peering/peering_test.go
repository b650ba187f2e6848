package peering

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// half makes every pause exactly its nominal length.
func half() float64 { return 0.5 }

// step is one event of a script and the actions that it must yield.
type step struct {
	at   time.Duration
	ev   Event
	want string
}

func render(acts []Action) string {
	var out []string
	for _, a := range acts {
		switch a := a.(type) {
		case Dial:
			out = append(out, fmt.Sprintf("dial %d=%d", a.ID, a.Peer))
		case Drop:
			out = append(out, fmt.Sprintf("drop %d", a.ID))
		case Join:
			out = append(out, fmt.Sprintf("join %d", a.ID))
		case Leave:
			out = append(out, fmt.Sprintf("leave %d", a.ID))
		}
	}
	return strings.Join(out, ", ")
}

const ms = time.Millisecond

func TestScripts(t *testing.T) {
	for name, c := range map[string]struct {
		edges, public int
		steps         []step
	}{
		"an edge that answers is joined and the public peer never dialled": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{20 * ms, Opened{1}, "join 1"},
			{10 * time.Minute, Tick{}, ""},
		}},
		"the second edge follows after the stagger, the public peer after the grace": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{149 * ms, Tick{}, ""},
			{150 * ms, Tick{}, "dial 2=1"},
			{300 * ms, Tick{}, "dial 3=2"},
			{340 * ms, Opened{3}, "join 3"},
			{400 * ms, Opened{2}, "leave 3, drop 1, join 2"},
		}},
		"all edges refuse: the public peer is dialled at once": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{1 * ms, Failed{1}, "dial 2=1"},
			{2 * ms, Failed{2}, "dial 3=2"},
			{3 * ms, Opened{3}, "join 3"},
			{10002 * ms, Tick{}, ""},
			{10003 * ms, Tick{}, "dial 4=0, dial 5=1"},
			{10010 * ms, Failed{4}, ""},
			{10020 * ms, Opened{5}, "leave 3, join 5"},
		}},
		"a node that is an edge has only public peers": {0, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{6 * time.Second, Down{ID: 1}, "dial 2=0"},
		}},
		"suspicion that passes changes nothing": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{60 * time.Second, Suspect{1}, "dial 2=0"},
			{60*time.Second + 50*ms, Opened{2}, ""},
			{60*time.Second + 90*ms, Clear{1}, "drop 2"},
		}},
		"the edge answers anew: its dead connection is replaced at the verdict": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{60 * time.Second, Suspect{1}, "dial 2=0"},
			{60*time.Second + 50*ms, Opened{2}, ""},
			{60*time.Second + 400*ms, Tick{}, "leave 1, join 2"},
		}},
		"the edge is gone: the public peer is joined at the verdict": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{60 * time.Second, Suspect{1}, "dial 2=0"},
			{60*time.Second + 150*ms, Tick{}, "dial 3=1"},
			{60*time.Second + 330*ms, Opened{3}, ""},
			{60*time.Second + 400*ms, Tick{}, "leave 1, join 3"},
			{65 * time.Second, Failed{2}, ""},
			{74999 * ms, Tick{}, ""},
			{75 * time.Second, Tick{}, "dial 4=0"},
			{75*time.Second + 9*ms, Opened{4}, "leave 3, join 4"},
		}},
		"the transport dies before the verdict": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{60 * time.Second, Suspect{1}, "dial 2=0"},
			{60*time.Second + 150*ms, Tick{}, "dial 3=1"},
			{60*time.Second + 330*ms, Opened{3}, ""},
			{60*time.Second + 350*ms, Down{ID: 1}, "join 3"},
		}},
		"a peer that refuses us is asked ever more rarely": {1, 0, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{10 * ms, Down{ID: 1}, ""},
			{510 * ms, Tick{}, "dial 2=0"},
			{520 * ms, Opened{2}, "join 2"},
			{530 * ms, Down{ID: 2}, ""},
			{1529 * ms, Tick{}, ""},
			{1530 * ms, Tick{}, "dial 3=0"},
		}},
		"an edge that freezes soon after each return is tried ever more rarely": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{10 * ms, Down{ID: 1}, "dial 2=1"},
			{20 * ms, Opened{2}, "join 2"},
			{20019 * ms, Tick{}, ""},
			{20020 * ms, Tick{}, "dial 3=0"},
			{20025 * ms, Opened{3}, "leave 2, join 3"},
			{20030 * ms, Down{ID: 3}, "dial 4=1"},
			{20040 * ms, Opened{4}, "join 4"},
			{60039 * ms, Tick{}, ""},
			{60040 * ms, Tick{}, "dial 5=0"},
		}},
		"an edge that freezes comes after the other edge": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{8 * time.Second, Suspect{1}, "dial 2=1"},
			{8*time.Second + 150*ms, Tick{}, "dial 3=0, dial 4=2"},
			{8*time.Second + 170*ms, Opened{3}, ""},
			{8*time.Second + 180*ms, Opened{4}, ""},
			{8*time.Second + 390*ms, Opened{2}, ""},
			{8*time.Second + 400*ms, Tick{}, "leave 1, drop 3, drop 4, join 2"},
			{Forget, Down{ID: 2}, "dial 5=1"},
		}},
		"but not for ever": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{8 * time.Second, Down{1, true}, "dial 2=1"},
			{8*time.Second + 20*ms, Opened{2}, "join 2"},
			{Forget + 8*time.Second, Down{ID: 2}, "dial 3=0"},
		}},
		"so does one that was told to be dead before the verdict": {2, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{8 * time.Second, Down{1, true}, "dial 2=1"},
			{8*time.Second + 20*ms, Opened{2}, "join 2"},
		}},
		"the only edge freezes twice: the public peer comes first, the edge ever more rarely": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{60 * time.Second, Suspect{1}, "dial 2=0"},
			{60*time.Second + 20*ms, Opened{2}, ""},
			{60*time.Second + 400*ms, Tick{}, "leave 1, join 2"},
			{70 * time.Second, Suspect{2}, "dial 3=1"},
			{70*time.Second + 50*ms, Opened{3}, ""},
			{70*time.Second + 400*ms, Tick{}, "leave 2, join 3"},
			{90*time.Second + 399*ms, Tick{}, ""},
			{90*time.Second + 400*ms, Tick{}, "dial 4=0"},
			{90*time.Second + 500*ms, Opened{4}, "leave 3, join 4"},
			{98 * time.Second, Down{4, true}, "dial 5=1"},
			{98*time.Second + 20*ms, Opened{5}, "join 5"},
			{138*time.Second + 19*ms, Tick{}, ""},
			{138*time.Second + 20*ms, Tick{}, "dial 6=0"},
		}},
		"a sick edge is better than none": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{2 * time.Second, Down{1, true}, "dial 2=1"},
			{2*time.Second + 10*ms, Failed{2}, ""},
			{2*time.Second + 500*ms, Tick{}, "dial 3=0"},
			{2*time.Second + 520*ms, Opened{3}, "join 3"},
		}},
		"a good life clears": {2, 0, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{2 * time.Second, Down{1, true}, "dial 2=1"},
			{3*time.Second + 1*ms, Tick{}, "dial 3=0"},
			{3*time.Second + 2*ms, Opened{3}, "drop 2, join 3"},
			{3*time.Second + 2*ms + GoodLife, Down{ID: 3}, "dial 4=0"},
		}},
		"no peer is put off for long when there is no other": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{2 * time.Second, Down{1, true}, "dial 2=1"},
			{2*time.Second + 10*ms, Opened{2}, "join 2"},
			{10 * time.Second, Down{ID: 2}, "dial 3=1"},
			{10*time.Second + 5*ms, Failed{3}, ""},
			{10*time.Second + 505*ms, Tick{}, "dial 4=1"},
			{20*time.Second + 5*ms, Tick{}, "dial 5=0"},
		}},
		"news of what was given up is ignored": {1, 1, []step{
			{0, Tick{}, "dial 1=0"},
			{5 * ms, Opened{1}, "join 1"},
			{6 * ms, Opened{7}, ""},
			{6 * ms, Failed{0}, ""},
			{6 * ms, Down{}, ""},
			{6 * ms, Suspect{9}, ""},
			{6 * ms, Clear{1}, ""},
		}},
		"another network: the pauses are over": {2, 0, []step{
			{0, Tick{}, "dial 1=0"},
			{1 * ms, Failed{1}, "dial 2=1"},
			{2 * ms, Failed{2}, ""},
			{501 * ms, Tick{}, "dial 3=0"},
			{502 * ms, Tick{}, "dial 4=1"},
			{510 * ms, Failed{3}, ""},
			{511 * ms, Failed{4}, ""},
			{600 * ms, Changed{}, "dial 5=0, dial 6=1"},
			{700 * ms, Changed{}, ""}, // they may answer yet
		}},
		"after sleep what was begun before is begun anew": {2, 0, []step{
			{0, Tick{}, "dial 1=0"},
			{160 * ms, Tick{}, "dial 2=1"},
			{170 * ms, Changed{Slept: true}, "drop 1, drop 2, dial 3=0"},
			{320 * ms, Tick{}, "dial 4=1"},
			{330 * ms, Opened{4}, "drop 3, join 4"},
			{time.Hour, Changed{Slept: true}, ""}, // the transport itself is asked, not left
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(c.edges, c.public, half)
			for i, s := range c.steps {
				got := render(m.Step(start.Add(s.at), s.ev))
				if diff := cmp.Diff(s.want, got); diff != "" {
					t.Fatalf("step %d, %v after the start, %T%v: -want +got\n%s", i, s.at, s.ev, s.ev, diff)
				}
			}
		})
	}
}

// TestNetworks: after an edge that froze comes one in another network, whatever
// the order of the configuration says, and its neighbour only then.
func TestNetworks(t *testing.T) {
	for name, c := range map[string]struct {
		networks []string
		want     string
	}{
		"three in two networks": {[]string{"AS64501", "AS64501", "AS64502"}, "dial 2=2"},
		"unknown":               {nil, "dial 2=1"},
		"each in its own":       {[]string{"AS64501", "AS64502", "AS64503"}, "dial 2=1"},
	} {
		m := New(3, 1, half).In(c.networks...)
		m.Step(start, Tick{})
		m.Step(start.Add(5*ms), Opened{1})
		if got := render(m.Step(start.Add(8*time.Second), Suspect{1})); got != c.want {
			t.Errorf("%s: %s, want %s first", name, got, c.want)
		}
		m.Step(start.Add(8*time.Second+10*ms), Clear{1})
		if got := render(m.Step(start.Add(9*time.Second), Down{1, true})); !strings.HasPrefix(got, strings.Replace(c.want, "2=", "3=", 1)) {
			t.Errorf("%s, dead: %s, want the same first", name, got)
		}
	}
}

// world answers a machine's dials: each peer has a delay after which a dial
// opens, or never. It checks on the way that there is one peering at most.
type world struct {
	t      testing.TB
	m      *Machine
	now    time.Time
	delay  []time.Duration // <0: no answer, the dial fails after 5 s
	events []timed
	alive  map[ID]int // dials and open transports, by peer
	open   map[ID]bool
	joined ID
	peer   int
	joins  []int
}

type timed struct {
	at time.Time
	ev Event
}

func newWorld(t testing.TB, edges int, delay ...time.Duration) *world {
	return &world{t: t, m: New(edges, len(delay)-edges, half), now: start, delay: delay,
		alive: map[ID]int{}, open: map[ID]bool{}}
}

func (w *world) step(ev Event) {
	switch e := ev.(type) {
	case Opened:
		if _, ok := w.alive[e.ID]; !ok {
			break
		}
		w.open[e.ID] = true
	case Failed:
		delete(w.alive, e.ID)
		delete(w.open, e.ID)
	case Down:
		if w.joined == e.ID {
			w.joined = 0
		}
	}
	for _, a := range w.m.Step(w.now, ev) {
		switch a := a.(type) {
		case Dial:
			if a.Peer < 0 || a.Peer >= len(w.delay) {
				w.t.Fatalf("dial of peer %d of %d", a.Peer, len(w.delay))
			}
			if _, ok := w.alive[a.ID]; ok || a.ID == 0 {
				w.t.Fatalf("ID %d used twice", a.ID)
			}
			w.alive[a.ID] = a.Peer
			if d := w.delay[a.Peer]; d >= 0 {
				w.events = append(w.events, timed{w.now.Add(d), Opened{a.ID}})
			} else {
				w.events = append(w.events, timed{w.now.Add(5 * time.Second), Failed{a.ID}})
			}
		case Drop:
			if _, ok := w.alive[a.ID]; !ok {
				w.t.Fatalf("drop of %d, which is neither a dial nor open", a.ID)
			}
			delete(w.alive, a.ID)
			delete(w.open, a.ID)
		case Join:
			if w.joined != 0 {
				w.t.Fatalf("join of %d while %d is the peering: two peers at once", a.ID, w.joined)
			}
			if !w.open[a.ID] {
				w.t.Fatalf("join of %d, which is not open", a.ID)
			}
			w.joined, w.peer = a.ID, w.alive[a.ID]
			w.joins = append(w.joins, w.peer)
			delete(w.alive, a.ID)
			delete(w.open, a.ID)
			for id, p := range w.alive {
				if e := w.m.targets[p]; w.open[id] && p < w.peer && !e.public && e.sick == 0 && !e.silent {
					w.t.Fatalf("joined peer %d although the transport to edge %d was open", w.peer, p)
				}
			}
		case Leave:
			if w.joined != a.ID || a.ID == 0 {
				w.t.Fatalf("leave of %d, the peering is %d", a.ID, w.joined)
			}
			w.joined = 0
		}
	}
	id, peer, ok := w.m.Joined()
	if ok != (w.joined != 0) || (ok && (id != w.joined || peer != w.peer)) {
		w.t.Fatalf("the machine believes in peering %d, carried out was %d", id, w.joined)
	}
	if w.joined == 0 && len(w.alive) == 0 && w.m.Next().IsZero() && len(w.delay) > 0 {
		w.t.Fatal("no peering, no dial and no time at which to try again")
	}
	if n := w.m.Next(); !n.IsZero() && !n.After(w.now) {
		w.t.Fatalf("asks for a tick in the past: %v at %v", n, w.now)
	}
}

// run lets the world go on until the time d after the start.
func (w *world) run(d time.Duration) {
	w.step(Tick{})
	end := start.Add(d)
	for {
		best := -1
		for i := range w.events {
			if best < 0 || w.events[i].at.Before(w.events[best].at) {
				best = i
			}
		}
		next := w.m.Next()
		switch {
		case best >= 0 && (next.IsZero() || !w.events[best].at.After(next)) && !w.events[best].at.After(end):
			e := w.events[best]
			w.events = append(w.events[:best], w.events[best+1:]...)
			if e.at.After(w.now) {
				w.now = e.at
			}
			w.step(e.ev)
		case !next.IsZero() && !next.After(end):
			w.now = next
			w.step(Tick{})
		default:
			w.now = end
			return
		}
	}
}

// TestGap shows what the machine itself costs after a block: from the moment
// that the last byte was acknowledged (suspicion is 300 ms later) to the join
// of a peer that answers. The rest of the 3 s is Yggdrasil's own routing.
func TestGap(t *testing.T) {
	const suspicion = 300 * ms
	for _, c := range []struct {
		name  string
		rtt   time.Duration // three of them open a transport
		limit time.Duration
	}{
		{"lab", 0, 700 * ms},
		{"town", 30 * ms, 700 * ms},
		{"continent", 100 * ms, 760 * ms},
		{"far", 250 * ms, 1210 * ms},
	} {
		w := newWorld(t, 1, 3*c.rtt, 3*c.rtt)
		w.run(time.Minute)
		if w.joined == 0 || w.peer != 0 {
			t.Fatalf("%s: not at the edge after a minute", c.name)
		}
		blocked := w.now
		w.delay[0] = -1
		w.events = append(w.events, timed{blocked.Add(suspicion), Suspect{w.joined}}, timed{blocked.Add(1000 * ms), Down{w.joined, true}})
		var gap time.Duration
		for w.peer == 0 {
			gap += 10 * ms
			w.run(time.Minute + gap)
			if gap > 10*time.Second {
				t.Fatalf("%s: never joined the public peer", c.name)
			}
		}
		t.Logf("%-9s edge blackholed to public peer joined: %v", c.name, gap)
		if gap > c.limit {
			t.Errorf("%s: %v, want at most %v", c.name, gap, c.limit)
		}
	}
}

// TestReturn says how long after the unblocking the edge is joined again.
func TestReturn(t *testing.T) {
	w := newWorld(t, 1, -1, 10*ms)
	w.run(time.Minute)
	if w.joined == 0 || w.peer != 1 {
		t.Fatal("not at the public peer though the edge never answers")
	}
	w.delay[0] = 10 * ms
	w.run(time.Minute + 17*time.Second)
	if w.peer != 0 {
		t.Errorf("still at the public peer 17 s after the edge came back, joins %v", w.joins)
	}
	if len(w.joins) != 2 {
		t.Errorf("joins %v, want public then edge and nothing else", w.joins)
	}
}

// TestFreeze lives an hour in a network that lets every connection to the first
// edge open and carry for two seconds, and then drops its packets.
func TestFreeze(t *testing.T) {
	for _, c := range []struct {
		name  string
		edges int
		delay []time.Duration
		joins int           // of the first edge, at most
		lost  time.Duration // without a peering that carries, at most
	}{
		{"two edges", 2, []time.Duration{20 * ms, 60 * ms, 60 * ms}, 1, 2 * time.Second},
		{"an edge and a public peer", 1, []time.Duration{20 * ms, 60 * ms}, 17, 20 * time.Second},
		{"a far public peer", 1, []time.Duration{20 * ms, 750 * ms}, 17, 35 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.edges, c.delay...)
			var seen int
			var lost time.Duration
			for at := 10 * ms; at <= time.Hour; at += 10 * ms {
				w.run(at)
				if len(w.joins) > seen {
					if seen = len(w.joins); w.joins[seen-1] == 0 {
						w.events = append(w.events, timed{w.now.Add(2300 * ms), Suspect{w.joined}}, timed{w.now.Add(3000 * ms), Down{w.joined, true}})
					}
				}
				if w.joined == 0 || w.peer == 0 && w.now.Sub(w.m.joinedAt) > 2*time.Second {
					lost += 10 * ms
				}
			}
			first := 0
			for _, p := range w.joins {
				if p == 0 {
					first++
				}
			}
			t.Logf("in an hour: %d peerings with the edge that freezes, %v without a peering that carries", first, lost)
			if first > c.joins || lost > c.lost {
				t.Errorf("want at most %d and %v", c.joins, c.lost)
			}
		})
	}
}

// FuzzMachine throws events at the machine in any order and holds it to the
// rules that the world checks, then lets the first edge answer and wants it
// joined.
func FuzzMachine(f *testing.F) {
	f.Add(uint8(1), uint8(1), []byte{0, 1, 0, 9, 1, 1, 200, 2, 1})
	f.Add(uint8(2), uint8(2), []byte{3, 4, 5, 9, 3, 1, 3, 5, 200, 3, 3, 9, 100})
	f.Add(uint8(0), uint8(1), []byte{9, 9, 2, 0})
	f.Fuzz(func(t *testing.T, edges, public uint8, script []byte) {
		edges, public = edges%4, public%4
		if edges+public == 0 || len(script) > 1000 {
			return
		}
		delay := make([]time.Duration, edges+public)
		for i := range delay {
			delay[i] = -1
		}
		w := newWorld(t, int(edges), delay...)
		w.step(Tick{})
		for i := 0; i+1 < len(script); i += 2 {
			id := ID(script[i+1])
			if script[i+1] > 200 {
				id = w.joined
			}
			switch script[i] % 8 {
			case 0:
				w.step(Opened{id})
			case 1:
				w.step(Failed{id})
			case 2:
				w.step(Down{id, script[i]&8 != 0})
			case 3:
				w.step(Suspect{id})
			case 4:
				w.step(Clear{id})
			case 5:
				w.step(Tick{})
			case 6:
				w.step(Changed{Slept: id%2 == 1})
			default:
				w.now = w.now.Add(time.Duration(script[i+1]) * 10 * ms)
				w.step(Tick{})
			}
		}
		// Now the first peer answers, every earlier dial fails, and nobody lies.
		w.events = nil
		for id := range w.alive {
			w.events = append(w.events, timed{w.now, Failed{id}})
		}
		w.delay[0] = 0
		if w.joined != 0 {
			w.events = append(w.events, timed{w.now, Clear{w.joined}})
		}
		before := len(w.joins)
		w.run(w.now.Sub(start) + 2*MaxSick)
		if w.joined == 0 || (edges > 0 && w.m.targets[w.peer].public) {
			t.Fatalf("%v after the first peer came back the peering is %d with peer %d", 2*MaxSick, w.joined, w.peer)
		}
		if n := len(w.joins) - before; n > 2 {
			t.Fatalf("%d changes of peer in a world that does not change", n)
		}
	})
}
