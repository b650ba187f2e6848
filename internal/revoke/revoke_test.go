package revoke

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/site"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const annKey = site.Key("aa00000000000000000000000000000000000000000000000000000000000001")

func ann() Subject {
	return Subject{Name: "ann", Keys: []site.Key{annKey}, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.9")}}
}

var (
	edge1   = Place{Edge, "unix:///run/edge-1"}
	edge2   = Place{Edge, "unix:///run/edge-2"}
	control = Place{Tailnet, "https://hs.example.org"}
)

// fake is a place that can be down, and remembers who it forgot.
type fake struct {
	place  Place
	events *events
	mu     sync.Mutex
	down   error
	hang   bool
	gone   map[string]bool
	// downOnce is its first answer, after which asked is called.
	downOnce error
	asked    func()
	// knows is what it says of everybody, for as long as they are there.
	knows Subject
}

// events is what happened, in order.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, s)
}

func (f *fake) Close(ctx context.Context, o Order) (string, error) {
	f.events.add(fmt.Sprintf("%s: %s", f.place, o.Subject.Name))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang {
		<-ctx.Done()
		return "", ctx.Err()
	}
	if err := f.downOnce; err != nil {
		f.downOnce = nil
		f.asked()
		return "", err
	}
	if f.down != nil {
		return "", f.down
	}
	f.gone[o.Subject.Name] = true
	return "closed", nil
}

func (f *fake) Learn(_ context.Context, o Order) (Subject, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return Subject{}, f.down
	}
	if f.gone[o.Subject.Name] {
		return Subject{}, nil
	}
	return f.knows, nil
}

func (f *fake) Check(_ context.Context, o Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return f.down
	}
	if !f.gone[o.Subject.Name] {
		return errors.New("it is there")
	}
	return nil
}

// world is some fake places and a queue for them.
type world struct {
	*Queue
	events events
	places map[Place]*fake
}

// What the tailnet knows of a machine that is known by name only is written down
// before the machine is deleted there, and this server's sockets with those
// addresses are ended, though it had confirmed without knowing them.
func TestLearns(t *testing.T) {
	here := Place{Here, "sock"}
	w := newWorld(t.TempDir(), edge1, control, here)
	w.places[control].down = errors.New("down")
	put(t, w.Queue, Subject{Name: "ann", Keys: []site.Key{annKey}}, edge1, control, here)
	o, err := w.Once(t.Context())
	if err != nil || len(o) != 1 || len(o[0].Open()) != 1 {
		t.Fatalf("%+v, %v", o, err)
	}
	w.places[control].down = nil
	w.places[control].knows = Subject{Nodes: []string{"7"}, Addresses: ann().Addresses}
	w.places[here].down = errors.New("down")
	o, err = w.Once(t.Context())
	if err != nil || len(o) != 1 {
		t.Fatalf("%+v, %v", o, err)
	}
	if open := o[0].Open(); !slices.Equal(open, []Place{here}) {
		t.Errorf("open: %v", open)
	}
	// Another process, after kill -9.
	pending, err := newWorld(w.Dir).Pending()
	if err != nil || len(pending) != 1 {
		t.Fatalf("%+v, %v", pending, err)
	}
	if diff := cmp.Diff(Subject{Name: "ann", Keys: []site.Key{annKey}, Nodes: []string{"7"}, Addresses: ann().Addresses},
		pending[0].Subject, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	w.places[here].down = nil
	if o, err := w.Once(t.Context()); err != nil || !o[0].Done() {
		t.Errorf("%+v, %v", o, err)
	}
}

// A tailnet that is slow is no reason to leave this server's sockets for the next
// run.
func TestSlowTailnet(t *testing.T) {
	here := Place{Here, "sock"}
	w := newWorld(t.TempDir(), control, here)
	w.After = func(time.Duration) <-chan time.Time { // every lead is over at once
		c := make(chan time.Time)
		close(c)
		return c
	}
	slow := w.places[control]
	slow.mu.Lock() // until here has been asked
	w.places[here].downOnce = errPeer
	w.places[here].asked = slow.mu.Unlock
	put(t, w.Queue, ann(), control, here)
	o, err := w.Once(t.Context())
	if err != nil || len(o) != 1 || !o[0].Done() {
		t.Errorf("%+v, %v", o, err)
	}
}

// never is a clock's alarm that does not ring.
func never(time.Duration) <-chan time.Time { return nil }

func newWorld(dir string, places ...Place) *world {
	w := &world{places: map[Place]*fake{}}
	for _, p := range places {
		w.places[p] = &fake{place: p, events: &w.events, gone: map[string]bool{}}
	}
	w.Queue = &Queue{Dir: dir, Now: func() time.Time { return now }, After: never, Open: func(p Place) (Step, error) {
		if f, ok := w.places[p]; ok {
			return f, nil
		}
		return nil, fmt.Errorf("%s: %w", p, ErrClosed)
	}}
	return w
}

func put(t *testing.T, q *Queue, s Subject, places ...Place) Order {
	t.Helper()
	o, err := q.Put(s, places...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A place that fails is tried again, the others are not, and it does not hold
// them up.
func TestOnce(t *testing.T) {
	w := newWorld(t.TempDir(), edge1, edge2, control)
	w.places[control].down = errors.New("no route to host")
	put(t, w.Queue, ann(), control, edge2, edge1)
	orders, err := w.Once(t.Context())
	if err != nil || len(orders) != 1 || orders[0].Done() || orders[0].Failed[control.String()] != w.places[control].down {
		t.Fatalf("%+v, %v", orders, err)
	}
	if diff := cmp.Diff([]Place{control}, orders[0].Open()); diff != "" {
		t.Error(diff)
	}
	if w.events.list[2] != control.String()+": ann" {
		t.Errorf("the control server was not last: %v", w.events.list)
	}
	w.places[control].down = nil
	if orders, err = w.Once(t.Context()); err != nil || !orders[0].Done() {
		t.Fatalf("%+v, %v", orders, err)
	}
	slices.Sort(w.events.list)
	want := []string{edge1.String() + ": ann", edge2.String() + ": ann", control.String() + ": ann", control.String() + ": ann"}
	if diff := cmp.Diff(want, w.events.list); diff != "" {
		t.Error(diff)
	}
	if left, err := w.Pending(); err != nil || len(left) != 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
	past, err := w.Past()
	if err != nil || len(past) != 1 || past[0].Subject.Name != "ann" {
		t.Errorf("the record is %+v, %v", past, err)
	}
}

// An edge that hangs keeps neither the other edge nor the tailnet open.
func TestHang(t *testing.T) {
	w := newWorld(t.TempDir(), edge1, edge2, control)
	w.places[edge1].hang = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.After = func(d time.Duration) <-chan time.Time {
		c := make(chan time.Time, 1)
		if d == lead {
			c <- now
		}
		return c
	}
	put(t, w.Queue, ann(), edge1, edge2, control)
	put(t, w.Queue, Subject{Name: "bob", NoKey: true}, edge1, control)
	done := make(chan []Order)
	go func() {
		orders, _ := w.Once(ctx)
		done <- orders
	}()
	for _, f := range []*fake{w.places[edge2], w.places[control]} {
		for {
			f.mu.Lock()
			ok := f.gone["ann"]
			f.mu.Unlock()
			if ok {
				break
			}
			select {
			case <-t.Context().Done():
				t.Fatal("the edge that hangs holds the others up")
			default:
			}
		}
	}
	cancel()
	orders := <-done
	if len(orders) != 2 || len(orders[0].Confirmed) != 2 || orders[0].Failed[edge1.String()] == nil {
		t.Errorf("%+v", orders)
	}
}

// What is confirmed is read once more when all is, and a machine that came back
// in between is revoked again.
func TestComesBack(t *testing.T) {
	w := newWorld(t.TempDir(), edge1, control)
	w.places[control].down = errors.New("down")
	put(t, w.Queue, ann(), edge1, control)
	if _, err := w.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.places[control].down = nil
	delete(w.places[edge1].gone, "ann") // somebody put an old list back
	orders, err := w.Once(t.Context())
	if err != nil || orders[0].Done() || !strings.Contains(fmt.Sprint(orders[0].Failed[edge1.String()]), "it is there") {
		t.Fatalf("%+v, %v", orders, err)
	}
	if orders, err = w.Once(t.Context()); err != nil || !orders[0].Done() {
		t.Fatalf("%+v, %v", orders, err)
	}
}

// readsOn is a place that looks at its order while another one fails.
type readsOn struct {
	*fake
	failed <-chan struct{}
}

func (r readsOn) Check(ctx context.Context, o Order) error {
	<-r.failed
	for range 1000 {
		runtime.Gosched()
		if !o.Done() {
			return errors.New("the order is another one now")
		}
	}
	return r.fake.Check(ctx, o)
}

// failsOnce is a place that has the machine again when it is read again.
type failsOnce struct {
	*fake
	failed chan<- struct{}
}

func (f failsOnce) Check(context.Context, Order) error {
	defer close(f.failed)
	return errors.New("it is there")
}

// What one place says when it is read again is no business of the others.
func TestReadAgainAtOnce(t *testing.T) {
	w := newWorld(t.TempDir(), edge1, control)
	failed := make(chan struct{})
	w.Open = func(p Place) (Step, error) {
		if p == edge1 {
			return failsOnce{w.places[p], failed}, nil
		}
		return readsOn{w.places[p], failed}, nil
	}
	put(t, w.Queue, ann(), edge1, control)
	orders, err := w.Once(t.Context())
	if err != nil || len(orders[0].Open()) != 1 || orders[0].Failed[control.String()] != nil {
		t.Errorf("%+v, %v", orders, err)
	}
}

// An order that learns more while it is worked on is not confirmed by what was
// done for less.
func TestExtend(t *testing.T) {
	w := newWorld(t.TempDir(), edge1, control)
	o := put(t, w.Queue, Subject{Name: "ann", Nodes: []string{"7"}}, control)
	put(t, w.Queue, ann(), edge1) // another process, meanwhile
	if _, err := w.Try(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	left, err := w.Pending()
	if err != nil || len(left) != 1 || len(left[0].Open()) != 2 {
		t.Fatalf("%+v, %v", left, err)
	}
	if diff := cmp.Diff(Subject{Name: "ann", Keys: []site.Key{annKey}, Nodes: []string{"7"}, Addresses: ann().Addresses}, left[0].Subject, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	// The same again is the same, and takes back nothing.
	if orders, err := w.Once(t.Context()); err != nil || !orders[0].Done() {
		t.Fatalf("%+v, %v", orders, err)
	}
	o = put(t, w.Queue, ann(), edge1, control)
	o.Confirmed[edge1.String()] = Confirmation{At: now}
	if err := w.note(o); err != nil {
		t.Fatal(err)
	}
	if o = put(t, w.Queue, ann(), control); len(o.Open()) != 1 {
		t.Errorf("%+v", o)
	}
}

func TestRunUntilDone(t *testing.T) {
	w := newWorld(t.TempDir(), control)
	w.places[control].down = errors.New("down")
	var waits []time.Duration
	tick := make(chan time.Time)
	close(tick)
	w.After = func(d time.Duration) <-chan time.Time {
		if d == lead {
			return nil
		}
		if waits = append(waits, d); len(waits) == 7 {
			w.places[control].down = nil
		}
		return tick
	}
	put(t, w.Queue, ann(), control)
	ctx, cancel := context.WithCancel(t.Context())
	w.Run(ctx, nil, func(orders []Order, err error) {
		if err != nil {
			t.Error(err)
		}
		if orders[0].Done() {
			cancel()
		}
	})
	const s = time.Second
	if diff := cmp.Diff([]time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 20 * s, 20 * s}, waits[:7]); diff != "" {
		t.Error(diff)
	}
}

// Nobody is forgotten by kill -9 at any step: a child puts an order and is
// killed within the step, and the next process does what is left.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("VEILOR_TEST_QUEUE"); dir != "" {
		w := newWorld(dir, edge1, edge2, control)
		o, err := w.Put(ann(), edge1, edge2, control)
		if err != nil {
			t.Fatal(err)
		}
		at := os.Getenv("VEILOR_TEST_AT")
		open := w.Open
		w.Open = func(p Place) (Step, error) {
			if p.String() == at {
				os.WriteFile(filepath.Join(dir, "there"), nil, 0o600)
				select {}
			}
			return open(p)
		}
		if at != "" {
			w.Try(t.Context(), o)
		}
		os.WriteFile(filepath.Join(dir, "there"), nil, 0o600)
		select {}
	}
	for at, want := range map[string]int{"": 3, edge1.String(): 2, control.String(): 1} {
		t.Run("at "+at, func(t *testing.T) {
			dir := t.TempDir()
			child := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
			child.Env = append(os.Environ(), "VEILOR_TEST_QUEUE="+dir, "VEILOR_TEST_AT="+at)
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, filepath.Join(dir, "there"))
			if at == edge1.String() {
				// The other edge is closed at the same time.
				awaitContent(t, filepath.Join(dir, "ann.json"), `"closed"`)
			}
			child.Process.Kill()
			child.Wait()

			w := newWorld(dir, edge1, edge2, control)
			for _, f := range w.places {
				f.gone["ann"] = true // what the child's places did outlives it
			}
			orders, err := w.Once(t.Context())
			if err != nil || len(orders) != 1 || !orders[0].Done() || orders[0].Subject.Name != "ann" {
				t.Fatalf("%+v, %v", orders, err)
			}
			if len(w.events.list) != want {
				t.Errorf("the next process did %v, want %d", w.events.list, want)
			}
		})
	}
}

func await(t *testing.T, path string) { t.Helper(); awaitContent(t, path, "") }

func awaitContent(t *testing.T, path, text string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), text) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s does not come", path)
		}
	}
}

func TestBadOrders(t *testing.T) {
	w := newWorld(t.TempDir(), edge1)
	for what, s := range map[string]Subject{
		"no name":   {},
		"a newline": {Name: "a\nb"},
		"no key":    {Name: "bob", Keys: []site.Key{"abc"}},
		"no id":     {Name: "bob", Nodes: []string{"../1"}},
		"an ISP's":  {Name: "bob", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		"nothing":   {Name: "bob", NoKey: true, NoNode: true},
	} {
		if _, err := w.Put(s, edge1); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if _, err := w.Put(ann()); err == nil {
		t.Error("an order for no place was taken")
	}
	if _, err := w.Put(ann(), Place{Kind: "moon"}); err == nil {
		t.Error("an order for the moon was taken")
	}
	put(t, w.Queue, ann(), edge1)
	for _, text := range []string{"{", `{"subject": {"name": "bob"}, "places": []}`, `{"subject": {"name": "bob"}, "places": [{"kind": "moon"}]}`} {
		if err := os.WriteFile(filepath.Join(w.Dir, "bob.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		orders, err := w.Pending()
		if err == nil || !strings.Contains(err.Error(), "order bob") || len(orders) != 1 {
			t.Errorf("%+v, %v: want ann's order, and an error that names bob's", orders, err)
		}
	}
	// Ordering bob anew does not wipe out what could not be read.
	put(t, w.Queue, Subject{Name: "bob", NoKey: true}, edge1)
	orders, err := w.Once(t.Context())
	if err == nil || !strings.Contains(err.Error(), "bob.json.unreadable") || len(orders) != 2 {
		t.Errorf("%+v, %v", orders, err)
	}
}

// A disk that is full keeps no door open, and is said.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(filepath.Join(dir, "queue"), edge1, control)
	// A file where the directory should be fails as a full disk does, as root
	// too: nothing can be written.
	if err := os.WriteFile(w.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := w.Put(ann(), edge1, control)
	if err == nil || o.ID != "ann" {
		t.Fatalf("%+v, %v", o, err)
	}
	orders, err := w.Try(t.Context(), o)
	if err == nil || !orders[0].Done() || !w.places[edge1].gone["ann"] || !w.places[control].gone["ann"] {
		t.Errorf("%+v, %v", orders, err)
	}
}

func TestID(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"ann", "a n n", "ann-", "../../etc", "日本", strings.Repeat("x", 200), "."} {
		id := ID(name)
		if !idRe.MatchString(id) {
			t.Errorf("%q: %q can be no file's name", name, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%q and %q have the same order", name, other)
		}
		seen[id] = name
	}
	if ID("ann") != "ann" || ID("Ann") != "ann" {
		t.Error(ID("ann"), ID("Ann"))
	}
}

// Addresses and names pass on to the next machine; ids and keys do not.
func TestMatches(t *testing.T) {
	a := netip.MustParseAddr("100.64.0.9")
	old := headscale.Node{ID: "7", Name: "ann", MachineKey: "mkey:aa", CreatedAt: now.Add(-time.Hour), Addresses: []netip.Addr{a}}
	next := headscale.Node{ID: "8", Name: "ann", MachineKey: "mkey:bb", CreatedAt: now.Add(time.Hour), Addresses: []netip.Addr{a}}
	again := headscale.Node{ID: "9", Name: "x", MachineKey: "mkey:aa", CreatedAt: now.Add(time.Hour)}
	for name, c := range map[string]struct {
		s    Subject
		want []string
	}{
		"by name":            {Subject{Name: "Ann"}, []string{"7"}},
		"by address":         {Subject{Name: "anna", Addresses: []netip.Addr{a}}, []string{"7"}},
		"by id":              {Subject{Name: "ann", Nodes: []string{"7"}, Addresses: []netip.Addr{a}}, []string{"7"}},
		"by id and key":      {Subject{Name: "ann", Nodes: []string{"7"}, MachineKeys: []string{"mkey:aa"}}, []string{"7", "9"}},
		"not in the tailnet": {Subject{Name: "ann", NoNode: true}, nil},
	} {
		var got []string
		for _, n := range []headscale.Node{old, next, again} {
			if (Order{At: now, Subject: c.s}).matches(n) {
				got = append(got, n.ID)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"at": "2026-11-23T12:00:00Z", "subject": {"name": "ann", "addresses": ["100.64.0.9"]}, "places": [{"kind": "edge", "at": "unix:///run/e"}], "confirmed": {"edge unix:///run/e": {"at": "2026-11-23T12:00:01Z", "what": "key refused"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parse("ann", data)
		if err != nil {
			return
		}
		if o.ID != "ann" || o.Confirmed == nil || len(o.Places) == 0 || o.Subject.check() != nil {
			t.Errorf("%+v", o)
		}
		for _, p := range o.Places {
			if p.rank() < 0 {
				t.Errorf("place %+v", p)
			}
		}
	})
}
