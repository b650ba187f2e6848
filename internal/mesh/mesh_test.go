package mesh

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

func steady() float64 { return 0.5 } // no jitter

func begun(l Layer, ms int) Event { return Event{Layer: l, Kind: Begun, At: at(ms)} }
func answered(l Layer, start, ms int) Event {
	return Event{Layer: l, Kind: Answered, Start: at(start), At: at(ms)}
}
func failed(l Layer, start, ms int) Event {
	return Event{Layer: l, Kind: Failed, Start: at(start), At: at(ms), Err: "i/o timeout"}
}
func heard(l Layer, ms int) Event {
	return Event{Layer: l, Kind: Heard, At: at(ms), RTT: 20 * time.Millisecond}
}
func waits(l Layer, start, ms int) Event {
	return Event{Layer: l, Kind: Silent, Start: at(start), At: at(ms)}
}
func absent(l Layer, ms int) Event {
	return Event{Layer: l, Kind: Absent, At: at(ms), Err: "no interface"}
}

func TestTransitions(t *testing.T) {
	silent := []Event{ // four attempts, nobody answers
		begun(Tailnet, 0), begun(Tailnet, 250), begun(Tailnet, 500), begun(Tailnet, 1250),
	}
	dead := append(silent[:4:4], begun(Tailnet, 2250), begun(Tailnet, 3250))
	for _, tt := range []struct {
		name   string
		events []Event
		want   State
	}{
		{"nothing happened", nil, Untried},
		{"answered", []Event{begun(Tailnet, 0), answered(Tailnet, 0, 20)}, Up},
		{"one lost SYN", []Event{begun(Tailnet, 0), begun(Tailnet, 1300)}, Untried},
		{"many attempts in a moment", []Event{
			begun(Tailnet, 0), begun(Tailnet, 1), begun(Tailnet, 2), begun(Tailnet, 3), begun(Tailnet, 4), begun(Tailnet, 5), begun(Tailnet, 6)}, Untried},
		{"silence", silent, Suspect},
		{"longer silence", dead, Down},
		{"refused again and again", []Event{
			failed(Tailnet, 0, 1), failed(Tailnet, 500, 501), failed(Tailnet, 1000, 1001), failed(Tailnet, 1500, 1501)}, Suspect},
		{"an answer forgives what began before it", append(silent[:3:3],
			answered(Tailnet, 500, 600), begun(Tailnet, 1250), failed(Tailnet, 0, 3000), failed(Tailnet, 250, 3250)), Up},
		{"one answer does not bring it back", append(dead[:6:6], answered(Tailnet, 3250, 3300)), Down},
		{"two answers bring it back", append(dead[:6:6], answered(Tailnet, 3250, 3300), begun(Tailnet, 4250), answered(Tailnet, 4250, 4300)), Up},
		{"two answers at once do not", append(dead[:6:6], answered(Tailnet, 3250, 3300), answered(Tailnet, 3251, 3301)), Down},
		{"a failure between them starts over", append(dead[:6:6], answered(Tailnet, 3250, 3300), failed(Tailnet, 4000, 4001), answered(Tailnet, 4250, 4300)), Down},
		{"bytes that flow keep it from being down", append(dead[:5:5], heard(Tailnet, 3000), begun(Tailnet, 3250)), Suspect},
		{"bytes that flowed do not", append(append([]Event{heard(Tailnet, 0)}, dead...), begun(Tailnet, 4250)), Down},
		{"bytes that flow do not bring it back", append(dead[:6:6], heard(Tailnet, 3300), heard(Tailnet, 9000)), Down},
		{"a connection that waits is no evidence", []Event{
			answered(Tailnet, 0, 10), waits(Tailnet, 10, 1010), waits(Tailnet, 10, 2010), waits(Tailnet, 10, 4010), waits(Tailnet, 10, 8010)}, Up},
		{"no interface", []Event{begun(Tailnet, 0), answered(Tailnet, 0, 20), absent(Tailnet, 30)}, Off},
		{"interface back", []Event{absent(Tailnet, 0), begun(Tailnet, 1000)}, Suspect},
		{"interface back and answering", []Event{
			absent(Tailnet, 0), begun(Tailnet, 1000), answered(Tailnet, 1000, 1010), begun(Tailnet, 2000), answered(Tailnet, 2000, 2010)}, Up},
		{"no route there", []Event{begun(Yggdrasil, 0), answered(Yggdrasil, 0, 1)}, Untried},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New([]Layer{Tailnet}, steady)
			for _, e := range tt.events {
				s.On(e)
			}
			if got := s.State(Tailnet); got != tt.want {
				t.Errorf("state = %v, want %v", got, tt.want)
			}
		})
	}
}

// put brings a layer into a state by events alone.
func put(s *Service, l Layer, to State) {
	switch to {
	case Up:
		s.On(answered(l, 0, 10))
	case Off:
		s.On(absent(l, 0))
	case Suspect, Down:
		for ms := 0; s.State(l) != to; ms += 250 {
			s.On(begun(l, ms))
		}
	}
}

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		tailnet, ygg State
		want         []Step
	}{
		{Untried, Untried, []Step{{Tailnet, 0}, {Yggdrasil, Stagger}}},
		{Up, Up, []Step{{Tailnet, 0}, {Yggdrasil, Stagger}}},
		{Up, Down, []Step{{Tailnet, 0}, {Yggdrasil, Stagger}}},
		{Suspect, Up, []Step{{Yggdrasil, 0}, {Tailnet, Stagger}}},
		{Suspect, Untried, []Step{{Yggdrasil, 0}, {Tailnet, Stagger}}},
		{Down, Up, []Step{{Yggdrasil, 0}, {Tailnet, Stagger}}},
		{Down, Suspect, []Step{{Yggdrasil, 0}, {Tailnet, 0}}},
		{Suspect, Suspect, []Step{{Tailnet, 0}, {Yggdrasil, 0}}},
		{Off, Up, []Step{{Tailnet, 0}, {Yggdrasil, 0}}},
		{Off, Off, []Step{{Tailnet, 0}, {Yggdrasil, 0}}},
	} {
		s := New(Order, steady)
		put(s, Tailnet, tt.tailnet)
		put(s, Yggdrasil, tt.ygg)
		if diff := cmp.Diff(tt.want, s.Plan(at(10_000))); diff != "" {
			t.Errorf("%v/%v (-want +got):\n%s", tt.tailnet, tt.ygg, diff)
		}
	}
}

func TestProbesOnlyWhereNeeded(t *testing.T) {
	s := New(Order, steady)
	if _, ok := s.Next(); ok {
		t.Fatal("an unused service wants a probe")
	}
	s.Plan(at(0))
	s.On(begun(Tailnet, 0))
	s.On(answered(Tailnet, 0, 20))
	if _, ok := s.Next(); ok {
		t.Fatal("a healthy service wants a probe")
	}
	s.On(begun(Tailnet, 1000))
	next, ok := s.Next()
	if !ok || !next.Equal(at(1250)) {
		t.Fatalf("doubt: next = %v, %v; want after 250 ms", next, ok)
	}
	if probes, _ := s.Due(next); len(probes) != 1 || probes[0] != Tailnet {
		t.Fatalf("doubt: probes = %v", probes)
	}
	for ms := 1250; s.State(Tailnet) != Down; ms += 250 {
		s.On(begun(Tailnet, ms))
	}
	var times []time.Duration
	last := at(0)
	for {
		next, ok := s.Next()
		if !ok {
			break
		}
		if probes, _ := s.Due(next); len(probes) == 0 {
			break
		}
		times = append(times, next.Sub(last))
		last = next
	}
	if last.Sub(at(0)) > demandFor {
		t.Errorf("probes went on until %v after the last connection", last.Sub(at(0)))
	}
	if n := len(times); n < 50 || n > 62 {
		t.Errorf("%d probes in the minute after the last connection, want about one a second", n)
	}
	s.Plan(at(200_000))
	if _, ok := s.Next(); !ok {
		t.Error("a new connection does not start the probes again")
	}
}

// TestWaitingAsks: a connection that waits makes its layer be asked at once, and
// only if nothing else has asked already.
func TestWaitingAsks(t *testing.T) {
	s := New(Order, steady)
	s.On(answered(Tailnet, 0, 10))
	s.On(waits(Tailnet, 10, 100_000)) // long after anybody connected
	probes, _ := s.Due(at(100_000))
	if len(probes) != 1 || probes[0] != Tailnet {
		t.Fatalf("probes = %v", probes)
	}
	s.On(begun(Tailnet, 100_000))
	s.On(waits(Tailnet, 10, 100_100))
	if next, ok := s.Next(); !ok || !next.Equal(at(100_250)) {
		t.Errorf("next = %v, %t; want the probe's own pace", next, ok)
	}
	s.On(answered(Tailnet, 100_000, 100_200))
	if _, ok := s.Next(); ok {
		t.Error("it answered, yet is asked again")
	}
	s.On(waits(Tailnet, 10, 100_300))
	if _, ok := s.Next(); ok {
		t.Error("it answered since the connection last heard something, yet is asked again")
	}
}

// TestChanged: in another network a lost layer is asked at once, and the past is
// no reason to hold it off.
func TestChanged(t *testing.T) {
	s := New(Order, steady)
	s.Plan(at(0))
	put(s, Tailnet, Down)
	s.find(Tailnet).hold = maxHold
	s.Changed(at(10_000))
	if next, ok := s.Next(); !ok || next.After(at(10_000)) {
		t.Errorf("next = %v, %t; want now", next, ok)
	}
	for ms := 10_000; ms <= 10_600; ms += 300 {
		s.On(begun(Tailnet, ms))
		s.On(answered(Tailnet, ms, ms+1))
	}
	if st := s.State(Tailnet); st != Up {
		t.Errorf("it answers for half a second and is %v", st)
	}
	idle := New(Order, steady)
	idle.On(answered(Tailnet, 0, 10))
	idle.Changed(at(1_000_000))
	if _, ok := idle.Next(); ok {
		t.Error("nobody uses the service, yet its layers are asked")
	}
}

func TestActive(t *testing.T) {
	s := New(Order, steady)
	if l, _ := s.Active(); l != "" {
		t.Errorf("before anything: %q", l)
	}
	s.On(answered(Tailnet, 0, 10))
	s.On(answered(Yggdrasil, 0, 20))
	if l, since := s.Active(); l != Tailnet || !since.Equal(at(10)) {
		t.Errorf("both up: %q since %v", l, since)
	}
	s.On(absent(Tailnet, 50))
	if l, since := s.Active(); l != Yggdrasil || !since.Equal(at(50)) {
		t.Errorf("tailnet off: %q since %v", l, since)
	}
	s.On(absent(Yggdrasil, 60))
	if l, _ := s.Active(); l != "" {
		t.Errorf("all off: %q", l)
	}
}

// TestHoldGrows checks that a path which falls again and again is left longer.
func TestHoldGrows(t *testing.T) {
	s := New([]Layer{Tailnet}, steady)
	s.On(answered(Tailnet, 0, 10))
	ms, holds := 100, []time.Duration{}
	for range 4 {
		for s.State(Tailnet) == Up {
			s.On(begun(Tailnet, ms))
			ms += 100
		}
		fell := ms
		for s.State(Tailnet) != Up {
			s.On(answered(Tailnet, ms, ms+1))
			ms += 100
		}
		holds = append(holds, time.Duration(ms-fell)*time.Millisecond)
	}
	for i := 1; i < len(holds); i++ {
		if holds[i] < holds[i-1]*3/2 {
			t.Errorf("holds %v do not grow", holds)
		}
	}
}

// TestLossyDay lives a simulated day at 2 % loss each way and up to 200 ms of
// jitter: no layer may be left, and no connection may cost more than Stagger.
func TestLossyDay(t *testing.T) {
	for _, every := range []int{100, 3_000, 20_000} { // ms between connections
		rng := rand.New(rand.NewPCG(1, uint64(every)))
		s := New(Order, rng.Float64)
		w := newWorld(s, rng)
		w.loss, w.jitter = 0.02, 200
		w.run(every, 24*3600*1000)
		if w.switches != 0 {
			t.Errorf("a connection every %d ms: %d switches in 24 h, want 0", every, w.switches)
		}
	}
}

// TestBlockedSoon checks how fast a blocked tailnet is told, and how fast it
// is taken again.
func TestBlockedSoon(t *testing.T) {
	for _, every := range []int{100, 2_000} {
		rng := rand.New(rand.NewPCG(2, uint64(every)))
		s := New(Order, rng.Float64)
		w := newWorld(s, rng)
		w.run(every, 10_000)
		w.blocked[Tailnet] = true
		w.run(every, 10_000)
		if s.State(Tailnet) != Down {
			t.Errorf("every %d ms: tailnet is %v 10 s after the block", every, s.State(Tailnet))
		}
		if d := w.told.Sub(at(10_000)); d > time.Duration(every)*time.Millisecond+2*time.Second {
			t.Errorf("every %d ms: told after %v", every, d)
		}
		w.blocked[Tailnet] = false
		w.run(every, 4_000)
		if l, _ := s.Active(); l != Tailnet {
			t.Errorf("every %d ms: on %q 4 s after the block ended", every, l)
		}
	}
}

// TestFlowsOnALossyDay is TestLossyDay for connections that live long: of one
// that downloads and one whose server thinks, at the same loss and jitter, none
// may be reset and no layer left.
func TestFlowsOnALossyDay(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	s := New(Order, rng.Float64)
	w := newWorld(s, rng)
	w.loss, w.jitter = 0.02, 200
	w.dial(Tailnet)
	for range 24 * 60 {
		// A minute: bytes that come, and then a server that thinks for 20 s.
		for range 4 {
			w.run(60_000, 10_000)
			w.on(heard(Tailnet, w.now))
		}
		last := w.now
		for _, silence := range []int{1000, 1000, 2000, 4000, 8000} {
			w.run(60_000, silence)
			w.on(waits(Tailnet, last, w.now))
		}
		w.run(60_000, 4000)
	}
	if w.switches != 0 {
		t.Errorf("%d switches in 24 h, want 0", w.switches)
	}
}

// TestStalledDownload: a download that stalls because its layer is dead is ended
// within five seconds of its last byte, with nobody else connecting.
func TestStalledDownload(t *testing.T) {
	worst := 0
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(4, seed))
		s := New(Order, rng.Float64)
		w := newWorld(s, rng)
		w.dial(Tailnet)
		w.run(60_000, 1000)
		w.on(heard(Tailnet, w.now))
		w.blocked[Tailnet] = true
		began := w.now
		w.now += 1000 // internal/forward's watch
		w.on(waits(Tailnet, began, w.now))
		for s.State(Tailnet) != Down && w.now < began+20_000 {
			w.run(1<<30, 10)
		}
		worst = max(worst, w.now-began)
	}
	if worst > 5000 {
		t.Errorf("told after %d ms, want 5 s at most", worst)
	}
}

// TestFirstConnectionAfterTheBlock: whoever connects after the tailnet is blocked
// has a connection over the fallback within half a second, with the constants
// that TestLossyDay keeps calm, whether or not anybody connected before.
func TestFirstConnectionAfterTheBlock(t *testing.T) {
	const rtt = 60 // ms, of the fallback
	var took []int
	for i := range 400 {
		rng := rand.New(rand.NewPCG(5, uint64(i)))
		s := New(Order, rng.Float64)
		w := newWorld(s, rng)
		w.jitter = 30
		w.run(500, 3_000)
		w.run(1<<30, 60_000+rng.IntN(60_000)) // idle
		w.blocked[Tailnet] = true
		w.run(1<<30, rng.IntN(5_000))
		for range 1 + i%4 { // the first, and those after it
			after := 0
			for _, step := range s.Plan(at(w.now)) {
				after += int(step.After / time.Millisecond)
				w.dial(step.Layer)
				if !w.blocked[step.Layer] {
					break
				}
			}
			took = append(took, after+rtt+w.rng.IntN(w.jitter))
			w.run(1<<30, 700)
		}
	}
	slices.Sort(took)
	if p95 := took[len(took)*95/100]; p95 > 500 || took[len(took)-1] > 2000 {
		t.Errorf("of %d connections p95 %d ms, worst %d ms; want 500 and 2000", len(took), p95, took[len(took)-1])
	}
}

// world answers a Service's attempts as a network would, in simulated time.
type world struct {
	s        *Service
	rng      *rand.Rand
	now      int // ms
	loss     float64
	jitter   int
	blocked  map[Layer]bool
	queue    []Event // results to come, unsorted
	switches int
	told     time.Time
}

func newWorld(s *Service, rng *rand.Rand) *world {
	return &world{s: s, rng: rng, blocked: map[Layer]bool{}}
}

// dial begins an attempt and queues its result: SYN at 0, 1 and 3 s as Linux
// sends it, lost or late as the world has it, given up after 3 s.
func (w *world) dial(l Layer) {
	w.on(begun(l, w.now))
	for _, syn := range []int{0, 1000} {
		if w.blocked[l] || w.rng.Float64() < 2*w.loss {
			continue
		}
		w.queue = append(w.queue, answered(l, w.now, w.now+syn+30+w.rng.IntN(w.jitter+1)))
		return
	}
	w.queue = append(w.queue, failed(l, w.now, w.now+3000))
}

func (w *world) on(e Event) { w.count(w.s.On(e)) }

func (w *world) count(changes []Change) {
	for _, c := range changes {
		if c.From.usable() && !c.To.usable() {
			w.switches++
			w.told = at(w.now)
		}
	}
}

func (w *world) run(every, ms int) {
	for end := w.now + ms; w.now < end; w.now += 10 {
		for i := 0; i < len(w.queue); i++ {
			if e := w.queue[i]; !e.At.After(at(w.now)) {
				w.queue = append(w.queue[:i], w.queue[i+1:]...)
				i--
				e.At = at(w.now)
				w.on(e)
			}
		}
		if w.now%every == 0 {
			w.dial(w.s.Plan(at(w.now))[0].Layer)
		}
		if next, ok := w.s.Next(); ok && !next.After(at(w.now)) {
			probes, changes := w.s.Due(at(w.now))
			w.count(changes)
			for _, l := range probes {
				w.dial(l)
			}
		}
	}
}

// TestHint: what a daemon says makes a layer in use be asked, and nothing else.
func TestHint(t *testing.T) {
	hint := func(ms int) Event { return Event{Layer: Tailnet, Kind: Hinted, At: at(ms)} }
	s := New(Order, steady)
	s.Plan(at(0))
	s.On(begun(Tailnet, 0))
	s.On(answered(Tailnet, 0, 20))
	due := func(ms int) int {
		probes, changes := s.Due(at(ms))
		if len(changes) > 0 {
			t.Errorf("at %d ms a hint changed %v", ms, changes)
		}
		return len(probes)
	}
	s.On(hint(100))
	if n := due(100); n != 0 {
		t.Error("a layer that has just answered is asked")
	}
	s.On(hint(5000))
	if n := due(5000); n != 1 {
		t.Errorf("%d probes after a hint, want 1", n)
	}
	s.On(begun(Tailnet, 5000))
	for ms := 5010; ms < 5200; ms += 10 { // it chatters
		s.On(hint(ms))
		if n := due(ms); n != 0 {
			t.Fatalf("asked again %d ms later", ms-5000)
		}
	}
	s.On(answered(Tailnet, 5000, 5220))
	if l, _ := s.Active(); l != Tailnet || s.State(Yggdrasil) != Untried {
		t.Errorf("%s in use, yggdrasil %v; a hint decides nothing", l, s.State(Yggdrasil))
	}
	late := int((demandFor + time.Second) / time.Millisecond)
	s.On(hint(late))
	if n := due(late); n != 0 {
		t.Error("asked although nobody uses the service")
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte{0, 10, 1, 20, 2, 30, 3, 40}, uint8(3))
	f.Add([]byte{0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 1, 1}, uint8(1))
	f.Fuzz(func(t *testing.T, script []byte, which uint8) {
		var layers []Layer
		for i, l := range Order {
			if which&(1<<i) != 0 {
				layers = append(layers, l)
			}
		}
		s := New(layers, steady)
		ms := 0
		back := map[Layer]time.Time{}
		check := func(changes []Change) {
			for _, c := range changes {
				if c.From == c.To {
					t.Fatalf("a change from %v to itself", c.From)
				}
				if c.To == Up {
					if last, ok := back[c.Layer]; ok && at(ms).Sub(last) < MinSwitch {
						t.Fatalf("%s up twice within %v", c.Layer, at(ms).Sub(last))
					}
					back[c.Layer] = at(ms)
				}
			}
		}
		for i := 0; i+1 < len(script) && i < 2000; i += 2 {
			ms += int(script[i+1]) * 4
			l := Order[int(script[i]>>4)%len(Order)]
			start := max(0, ms-int(script[i]>>5)*100)
			switch script[i] % 10 {
			case 0:
				check(s.On(begun(l, ms)))
			case 1:
				check(s.On(answered(l, start, ms)))
			case 2:
				check(s.On(failed(l, start, ms)))
			case 3:
				check(s.On(absent(l, ms)))
			case 4:
				s.Plan(at(ms))
			case 5:
				probes, changes := s.Due(at(ms))
				check(changes)
				for _, l := range probes {
					check(s.On(begun(l, ms)))
				}
			case 6:
				check(s.On(heard(l, ms)))
			case 7:
				check(s.On(waits(l, start, ms)))
			case 8:
				s.Changed(at(ms))
			case 9:
				check(s.On(Event{Layer: l, Kind: Hinted, At: at(ms)}))
			}
			plan := s.Plan(at(ms))
			if len(plan) != len(layers) {
				t.Fatalf("plan %v for layers %v", plan, layers)
			}
			seen := map[Layer]bool{}
			for _, step := range plan {
				if s.find(step.Layer) == nil || seen[step.Layer] {
					t.Fatalf("plan %v for layers %v", plan, layers)
				}
				seen[step.Layer] = true
				if step.After != 0 && step.After != Stagger {
					t.Fatalf("plan waits %v", step.After)
				}
			}
			for _, l := range s.layers {
				if len(l.pending) > maxPending || len(l.failed) > downMisses {
					t.Fatal("memory grows")
				}
			}
		}
		// Converges: once every layer answers, the preferred one is in use.
		for end := ms + int((maxHold+10*time.Second)/time.Millisecond); ms < end; ms += 500 {
			for _, l := range layers {
				check(s.On(begun(l, ms)))
				check(s.On(answered(l, ms, ms)))
			}
		}
		if len(layers) > 0 {
			if l, _ := s.Active(); l != layers[0] {
				t.Fatalf("all layers answer for 40 s, yet %q is in use", l)
			}
			if _, ok := s.Next(); ok {
				t.Fatal("all layers answer, yet probes go on")
			}
		}
	})
}
