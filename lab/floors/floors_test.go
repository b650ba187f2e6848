package floors

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// slack is by how much figures may be late on a machine that tests share. What is
// later fails; so does what has no answer at all, after answerLimit or freshLimit,
// which for a start comes first.
const slack = 3

// TestFloors holds the promised floors, each in its clearest condition; `make
// evidence` makes all of them, several times.
func TestFloors(t *testing.T) {
	gate.Root(t, "the floors")
	cache := gate.Cache(t, "the floors")
	f, err := outfit.Make(t.Context(), outfit.Options{Source: "../..", Cache: cache, Wide: true, Log: t.Output(), Progress: func(what string) { t.Log(what) }})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	town, stop, err := Start(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	short := []string{"dns-poisoned", "tailscale", "edges"}
	conditions := slices.DeleteFunc(Conditions(), func(c Condition) bool { return !slices.Contains(short, c.ID) })
	rows, neighbours, err := town.Measure(t.Context(), conditions, Options{Rounds: 1, Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Rows: rows}
	t.Logf("\n%s", Table(&r))
	for _, row := range rows {
		if row.Admin == nil || row.Admin.Result != Green {
			t.Errorf("%s: the administrator: %+v", row.Title, row.Admin)
		}
		for _, c := range row.Cells {
			if c.Layer == Product && c.Result != Green {
				t.Errorf("%s, %s: %s (%s)", row.Title, c.Mode, c.Result, c.Reason)
			}
		}
	}
	late := r.beyond(slack)
	for _, b := range r.BrokenFigures() {
		if !slices.Contains(late, b) {
			t.Log("beyond its figure here: ", b)
		}
	}
	for _, b := range late {
		t.Errorf("not as promised, at %d times the limits: %s", slack, b)
	}
	if neighbours.Ended > 0 {
		t.Errorf("neighbours lost connections: %+v", neighbours)
	}
	// A block that Tailscale lives through is none.
	for _, row := range rows {
		if c := row.cell(Tailnet, New); (row.ID == "tailscale" || row.ID == "edges") && c.Result != Red {
			t.Errorf("%s: the tailnet answers after %.1f s", row.Title, c.Seconds)
		}
	}
}

func TestMerge(t *testing.T) {
	one := func(seconds float64) *Record {
		r := Row{ID: "x", Hits: map[string]uint64{"udp": 2}, Return: seconds}
		r.add(Cell{Layer: Product, Mode: New, Result: Green, Seconds: seconds, Rounds: []float64{seconds}})
		r.add(Cell{Layer: Product, Mode: Fresh, Result: NA, Reason: "it says nothing"})
		r.administer(cell("", New, time.Duration(seconds*float64(time.Second)), nil))
		return &Record{Commit: "c", Rounds: 1, Rows: []Row{r}, Neighbours: &Neighbours{Laptops: 2, Connections: 4, Answers: 10}}
	}
	r := one(1)
	if err := r.Merge(one(2)); err != nil {
		t.Fatal(err)
	}
	if c := r.Rows[0].Cells[0]; r.Rounds != 2 || c.Seconds != 2 || len(c.Rounds) != 2 || r.Rows[0].Hits["udp"] != 4 || r.Rows[0].Return != 2 {
		t.Errorf("%+v", r)
	}
	if a, n := r.Rows[0].Admin, r.Neighbours; a.Seconds != 2 || len(a.Rounds) != 2 || n.Answers != 20 || n.Connections != 4 {
		t.Errorf("the others: %+v, %+v", a, n)
	}
	versioned := one(1)
	versioned.Versions = map[string]string{"tailscaled": "1.90.1"}
	if err := errors.Join(r.Merge(versioned), r.Merge(versioned), r.Merge(one(1))); err != nil || r.Versions["tailscaled"] != "1.90.1" {
		t.Errorf("versions that one record names: %v, %v", r.Versions, err)
	}
	for name, change := range map[string]func(*Record){
		"another commit":     func(r *Record) { r.Commit = "d" },
		"another condition":  func(r *Record) { r.Rows[0].ID = "y" },
		"another tailscaled": func(r *Record) { r.Versions = map[string]string{"tailscaled": "1.90.2"} },
	} {
		other := one(1)
		change(other)
		rounds := r.Rounds
		if err := r.Merge(other); !errors.Is(err, ErrApart) || r.Rounds != rounds {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestByChance: where packets pass by chance a layer is as good as its worst round,
// in whichever order the rounds come; the product has to answer in each.
func TestByChance(t *testing.T) {
	round := func(layer string, seconds float64) Cell {
		if seconds < 0 {
			return Cell{Layer: layer, Mode: New, Result: Red, Rounds: []float64{-1}, Reason: "no answer"}
		}
		return Cell{Layer: layer, Mode: New, Result: Green, Seconds: seconds, Rounds: []float64{seconds}}
	}
	for _, rounds := range [][]float64{{-1, 2, 3}, {2, -1, 3}, {2, 3, -1}} {
		for _, c := range []struct {
			id, layer, reason string
			want              Result
		}{
			{"udp-throttled", Tailnet, "no answer in 1 of 3 rounds: which packets a full limit drops is chance", Red},
			{"udp-throttled", Product, "no answer", Flaky},
			{"udp", Tailnet, "no answer", Flaky},
		} {
			row := Row{ID: c.id}
			for _, seconds := range rounds {
				row.add(round(c.layer, seconds))
			}
			if got := row.Cells[0]; got.Result != c.want || got.Reason != c.reason || (got.Seconds == 0) != (c.want == Red) {
				t.Errorf("%s, %s, %v: %+v", c.id, c.layer, rounds, got)
			}
		}
	}
	for id := range byChance {
		if !slices.ContainsFunc(Conditions(), func(c Condition) bool { return c.ID == id }) {
			t.Errorf("there is no condition %s", id)
		}
	}
}

func TestBroken(t *testing.T) {
	green := func(mode string, seconds float64) Cell {
		return Cell{Layer: Product, Mode: mode, Result: Green, Seconds: seconds, Rounds: []float64{seconds}}
	}
	row := Row{ID: "x", Title: "a block", Floor: "ii"}
	for _, c := range []Cell{green(New, 0.4), green(Established, 3), green(Fresh, 9)} {
		row.add(c)
	}
	good := Record{Rows: []Row{row}}
	if b := good.BrokenFigures(); b != nil {
		t.Errorf("nothing is broken, and it says %q", b)
	}
	for name, change := range map[string]func(*Row){
		"late":       func(r *Row) { r.add(green(New, 2.5)) },
		"red":        func(r *Row) { r.Cells[0].Result = Red },
		"flaky":      func(r *Row) { r.add(Cell{Layer: Product, Mode: Fresh, Result: Red, Rounds: []float64{-1}}) },
		"told late":  func(r *Row) { r.add(green(Established, 6)) },
		"flaky, too": func(r *Row) { r.Floor = ""; r.Cells[1].Result = Flaky },
	} {
		bad := row
		bad.Cells = slices.Clone(row.Cells)
		change(&bad)
		if b := (&Record{Rows: []Row{bad}}).BrokenFigures(); len(b) != 1 {
			t.Errorf("%s: %q", name, b)
		}
	}
	for name, c := range map[string]struct {
		cell Cell
		late bool
	}{
		"late for this machine":     {green(New, 5.9), false},
		"late for any machine":      {green(New, 6.1), true},
		"told late for any machine": {green(Established, 15.1), true},
	} {
		one := Row{Floor: "ii", Cells: []Cell{c.cell}}
		if b := (&Record{Rows: []Row{one}}).beyond(slack); (len(b) == 1) != c.late {
			t.Errorf("%s: %q", name, b)
		}
	}
	row.PeerLost = true
	row.add(green(New, 2.5))
	if b := (&Record{Rows: []Row{row}}).BrokenFigures(); b != nil {
		t.Errorf("a lost peer has 3 s: %q", b)
	}
	if b := (&Record{Neighbours: &Neighbours{Ended: 1}}).BrokenFigures(); len(b) != 1 {
		t.Errorf("a neighbour's connection ended: %q", b)
	}
	row.administer(green(New, 1))
	row.administer(Cell{Result: Red, Rounds: []float64{-1}})
	if b := (&Record{Rows: []Row{row}}).BrokenFigures(); len(b) != 1 || row.Admin.Result != Flaky {
		t.Errorf("an administrator kept out once: %q", b)
	}
	for name, c := range map[string]struct {
		busy, idle *Gap
		broken     int
	}{
		"late":                        {&Gap{P95: 0.6, Max: 1}, nil, 1},
		"one very late":               {&Gap{P95: 0.1, Max: 2.1}, nil, 1},
		"told at once":                {&Gap{P95: 0.1, Max: 1, Downloads: 20, Stalled: 4.9}, nil, 0},
		"told late":                   {&Gap{P95: 0.1, Max: 1, Downloads: 20, Stalled: 5.1}, nil, 1},
		"few out of silence":          {nil, &Gap{Connections: 50, P95: 0.6, Max: 1}, 0},
		"many out of silence":         {nil, &Gap{Connections: 200, P95: 0.6, Max: 1}, 1},
		"one out of silence too late": {&Gap{P95: 0.1, Max: 1}, &Gap{Connections: 50, P95: 0.1, Max: 2.1}, 1},
	} {
		if b := (&Record{Gap: c.busy, GapIdle: c.idle}).BrokenFigures(); len(b) != c.broken {
			t.Errorf("gaps, %s: %q", name, b)
		}
	}
}

// TestBrokenRounds: what was measured too seldom is not what was promised.
func TestBrokenRounds(t *testing.T) {
	busy := Record{Commit: "c", Rounds: 2, Gap: &Gap{Connections: 200, Downloads: 20}}
	idle := Record{Commit: "c", Rounds: 1, IdleRounds: 1, Idle: 65, GapIdle: &Gap{Connections: 50}}
	for name, r := range map[string]Record{"nothing": {}, "busy": busy, "idle": idle} {
		if r.Broken() == nil {
			t.Errorf("%s rounds only, and nothing is broken", name)
		}
		if b := r.BrokenFigures(); b != nil {
			t.Errorf("%s rounds only: %q", name, b)
		}
	}
	whole := busy
	if err := whole.Merge(&idle); err != nil {
		t.Fatal(err)
	}
	if b := whole.Broken(); b != nil {
		t.Errorf("a whole record: %q", b)
	}
	for name, change := range map[string]func(*Record){
		"never idle":                            func(r *Record) { r.IdleRounds = 0 },
		"not for as long as a router remembers": func(r *Record) { r.Idle = 20 },
		"no busy gaps":                          func(r *Record) { r.Gap = nil },
		"few busy gaps":                         func(r *Record) { r.Gap = &Gap{Connections: 199, Downloads: 20} },
		"no downloads":                          func(r *Record) { r.Gap = &Gap{Connections: 200} },
		"no idle gaps":                          func(r *Record) { r.GapIdle = nil },
		"two rounds":                            func(r *Record) { r.Rounds = 2 },
	} {
		bad := whole
		change(&bad)
		if b := bad.Broken(); len(b) != 1 {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// TestGaps: busy and idle stay apart through a merger, and both are shown.
func TestGaps(t *testing.T) {
	r := Record{Commit: "c", Gap: &Gap{Connections: 200, Blocks: 20, Max: 1.25, Downloads: 20, Stalled: 2.5}}
	if err := r.Merge(&Record{Commit: "c", Idle: 65, GapIdle: &Gap{Connections: 50, Blocks: 5, Max: 1.75}}); err != nil {
		t.Fatal(err)
	}
	var picture strings.Builder
	if err := r.SVG(&picture); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"the sentences": strings.Join(r.Gaps(), "\n"), "the picture": picture.String()} {
		for _, want := range []string{"200 new connections", "1.25 s", "20 downloads", "2.5 s", "After 65 s of silence: 50 new connections", "1.75 s"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s say nothing of %q: %s", name, want, text)
			}
		}
	}
}
