// Package floors measures what a laptop still reaches, over which layer and
// after how long, in every condition of the network that lab/censor can make: the
// evidence behind the threat floors.
//
// A cell is one condition, one layer and one way to ask: an established
// connection, a new one, or programs that start under the block. Its figure is
// the time from the block (or from the programs' start) until a request that was
// made after it is answered.
package floors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Layers are the columns: the product, which chooses, and what it chooses from.
const (
	Product   = "veilor"
	Tailnet   = "tailnet"
	Yggdrasil = "yggdrasil"
)

// Modes are the ways to ask.
const (
	Established = "established"
	New         = "new"
	Fresh       = "fresh"
)

var (
	layers = []string{Product, Tailnet, Yggdrasil}
	modes  = []string{Established, New, Fresh}
)

// Result of a cell.
type Result string

const (
	Green Result = "green"
	Red   Result = "red"
	NA    Result = "n/a"
	// Flaky: green in some rounds and red in others, which is a bug; but see
	// byChance.
	Flaky Result = "flaky"
)

// Cell is what was measured.
type Cell struct {
	Layer  string `json:"layer"`
	Mode   string `json:"mode"`
	Result Result `json:"result"`
	// Seconds until the first good answer: the worst of the rounds; 0 if red.
	Seconds float64 `json:"seconds,omitempty"`
	// Rounds are the seconds of each round; -1 is no answer.
	Rounds []float64 `json:"rounds,omitempty"`
	// Reason says why a cell is n/a, or what the last error was.
	Reason string `json:"reason,omitempty"`
}

// Row is one condition.
type Row struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Floor string `json:"floor,omitempty"`
	// PeerLost says that the fallback's peer is among what is blocked.
	PeerLost bool   `json:"peer_lost,omitempty"`
	Cells    []Cell `json:"cells"`
	// Admin is the administrator's way to the server's ssh port, on either layer.
	Admin *Cell `json:"admin,omitempty"`
	// Hits are packets that each of the censor's rules acted on, over all rounds.
	Hits map[string]uint64 `json:"hits,omitempty"`
	// Return is how long it took until the tailnet carried the product again after
	// the end of the condition: the worst of the rounds, in seconds.
	Return float64 `json:"return"`
}

// Record is a whole measurement, docs/evidence/floors.json.
type Record struct {
	Date     time.Time         `json:"date"`
	Commit   string            `json:"commit"`
	Versions map[string]string `json:"versions"`
	// Rounds is how often each condition was made, IdleRounds in how many of them
	// the laptop had been silent for Idle seconds before a block that a floor names.
	Rounds     int     `json:"rounds"`
	IdleRounds int     `json:"idle_rounds,omitempty"`
	Idle       float64 `json:"idle,omitempty"`
	Rows       []Row   `json:"rows"`
	// Neighbours are laptops that the censor did not mean.
	Neighbours *Neighbours `json:"neighbours,omitempty"`
	// Gap is what new connections of the product meet right after a block, GapIdle
	// what they meet if there was silence before it, for Idle seconds.
	Gap     *Gap `json:"gap,omitempty"`
	GapIdle *Gap `json:"gap_idle,omitempty"`
}

// Gap is the time from a new connection's first packet to its answer, of
// connections that begin in the second after UDP and the control server are
// dropped.
type Gap struct {
	Blocks      int `json:"blocks"`
	Connections int `json:"connections"`
	// In seconds.
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
	// Downloads were under way when their layer fell; Stalled is how long after that
	// the last of them was told, in seconds.
	Downloads int     `json:"downloads,omitempty"`
	Stalled   float64 `json:"stalled,omitempty"`
}

// String is a sentence or two.
func (g *Gap) String() string {
	text := fmt.Sprintf("%d new connections in the second after %d blocks of Tailscale: median %.2f s, 95 %% within %.2f s, all within %.2f s.",
		g.Connections, g.Blocks, g.Median, g.P95, g.Max)
	if g.Downloads > 0 {
		text += fmt.Sprintf(" %d downloads were told within %.1f s.", g.Downloads, g.Stalled)
	}
	return text
}

// Gaps are sentences about the new connections, busy and idle.
func (r *Record) Gaps() []string {
	var all []string
	if r.Gap != nil {
		all = append(all, r.Gap.String())
	}
	if r.GapIdle != nil {
		all = append(all, fmt.Sprintf("After %.0f s of silence: %v", r.Idle, r.GapIdle))
	}
	return all
}

// Limits of Gap, in seconds.
const (
	gapP95     = 0.5
	gapMax     = 2
	gapStalled = 5
	// gapLeast is of how many connections the first of them is promised: of few, the
	// 95th of 100 is the last.
	gapLeast = 200
)

// Limits of what is promised of the product in the floors' rows, in seconds. An
// established connection is told at the latest when its layer is declared dead.
var limits = map[string]float64{Established: 5, New: 2, Fresh: 30}

// limitPeer is New's where the fallback loses its peer as well.
const limitPeer = 3

// What a whole record has at least; a figure of fewer rounds is no promise's.
const (
	leastRounds     = 3
	leastIdleRounds = 1
	// leastIdle is in seconds: routers forget after a minute.
	leastIdle = 60
)

// Broken lists the promises that a whole record does not hold: those about figures,
// and how much was to be measured.
func (r *Record) Broken() []string {
	return append(r.lacking(), r.BrokenFigures()...)
}

// lacking lists what was promised to be measured and was not.
func (r *Record) lacking() []string {
	var all []string
	if r.Rounds < leastRounds {
		all = append(all, fmt.Sprintf("each condition was made %d times, promised %d; merge more rounds into the record", r.Rounds, leastRounds))
	}
	if r.IdleRounds < leastIdleRounds || r.Idle < leastIdle {
		all = append(all, fmt.Sprintf("in %d rounds the laptop had been silent before the block, for %.0f s; promised %d, for %d s; measure one with --idle and merge it",
			r.IdleRounds, r.Idle, leastIdleRounds, leastIdle))
	}
	if g := r.Gap; g == nil || g.Connections < gapLeast || g.Downloads == 0 {
		all = append(all, fmt.Sprintf("new connections after a block, beside a download, were not watched %d times; measure them with --gaps and merge them", gapLeast))
	}
	if r.GapIdle == nil {
		all = append(all, "new connections after a block out of silence were not watched; measure them with --idle and --gaps and merge them")
	}
	return all
}

// BrokenFigures are the broken promises among what was measured, be it only a part
// of a record.
func (r *Record) BrokenFigures() []string { return r.beyond(1) }

// beyond lists what is not as promised if a figure may be so many times its limit.
func (r *Record) beyond(slack float64) []string {
	var all []string
	if n := r.Neighbours; n != nil && n.Ended > 0 {
		all = append(all, fmt.Sprintf("%d connections of neighbours ended, whom no rule meant", n.Ended))
	}
	for _, row := range r.Rows {
		if a := row.Admin; a != nil && a.Result != Green {
			all = append(all, fmt.Sprintf("%s: the administrator does not reach the ssh port: %v (%s)", row.Title, a.Rounds, a.Reason))
		}
		for _, c := range row.Cells {
			if c.Result == Flaky {
				all = append(all, fmt.Sprintf("%s, %s, %s: green in some rounds and red in others: %v", row.Title, c.Layer, c.Mode, c.Rounds))
			}
			if row.Floor == "" || c.Layer != Product || c.Result == NA {
				continue
			}
			limit := limits[c.Mode]
			if row.PeerLost && c.Mode == New {
				limit = limitPeer
			}
			switch {
			case c.Result == Red:
				all = append(all, fmt.Sprintf("%s, %s: no answer (%s)", row.Title, c.Mode, c.Reason))
			case c.Seconds > slack*limit:
				all = append(all, fmt.Sprintf("%s, %s: an answer after %.1f s, promised within %.0f s", row.Title, c.Mode, c.Seconds, limit))
			}
		}
	}
	return append(append(all, r.Gap.beyond(slack, "after a block", 0)...), r.GapIdle.beyond(slack, "after a block out of silence", gapLeast)...)
}

// beyond is the same of new connections. The first limit counts from so many of
// them on.
func (g *Gap) beyond(slack float64, when string, least int) []string {
	var all []string
	if g == nil {
		return nil
	}
	if g.P95 > slack*gapP95 && g.Connections >= least || g.Max > slack*gapMax {
		all = append(all, fmt.Sprintf("new connections %s: 95 %% answered within %.2f s, all within %.2f s; promised %.1f s and %d s", when, g.P95, g.Max, gapP95, gapMax))
	}
	if g.Stalled > slack*gapStalled {
		all = append(all, fmt.Sprintf("a download %s was told after %.1f s; promised within %d s", when, g.Stalled, gapStalled))
	}
	return all
}

// ErrApart says that two records are not of the same thing.
var ErrApart = errors.New("these are records of different commits, conditions or versions of others' programs")

// Merge adds the rounds of another measurement of the same commit with the same
// programs. A record that names none says nothing against that.
func (r *Record) Merge(o *Record) error {
	same := func(a, b Row) bool { return a.ID == b.ID }
	// One without rounds is about new connections only.
	if r.Commit != o.Commit || o.Rounds > 0 && !slices.EqualFunc(r.Rows, o.Rows, same) {
		return ErrApart
	}
	if len(r.Versions) == 0 {
		r.Versions = o.Versions
	} else if len(o.Versions) > 0 && !maps.Equal(r.Versions, o.Versions) {
		return ErrApart
	}
	for i, row := range o.Rows {
		if o.Rounds == 0 {
			break
		}
		to := &r.Rows[i]
		for _, c := range row.Cells {
			to.add(c)
		}
		if row.Admin != nil {
			to.administer(*row.Admin)
		}
		to.Return = max(to.Return, row.Return)
		for name, n := range row.Hits {
			to.hit(name, n)
		}
	}
	if n := o.Neighbours; n != nil && r.Neighbours != nil {
		r.Neighbours.Answers += n.Answers
		r.Neighbours.Ended += n.Ended
	} else if n != nil {
		r.Neighbours = n
	}
	r.Rounds += o.Rounds
	r.IdleRounds += o.IdleRounds
	r.Idle = max(r.Idle, o.Idle)
	if o.Gap != nil {
		r.Gap = o.Gap
	}
	if o.GapIdle != nil {
		r.GapIdle = o.GapIdle
	}
	return nil
}

// hit counts packets that a rule acted on.
func (row *Row) hit(name string, n uint64) {
	if row.Hits == nil {
		row.Hits = map[string]uint64{}
	}
	row.Hits[name] += n
}

// add merges one round's cell into what earlier rounds measured.
func (row *Row) add(c Cell) {
	for i := range row.Cells {
		if have := &row.Cells[i]; have.Layer == c.Layer && have.Mode == c.Mode {
			have.add(c)
			if why := byChance[row.ID]; why != "" && have.Result == Flaky && have.Layer != Product {
				have.Result, have.Seconds = Red, 0
				have.Reason = fmt.Sprintf("no answer in %d of %d rounds: %s", have.missed(), len(have.Rounds), why)
			}
			return
		}
	}
	row.Cells = append(row.Cells, c)
}

// administer is add for the administrator's cell.
func (row *Row) administer(c Cell) {
	if row.Admin == nil {
		row.Admin = &c
		return
	}
	row.Admin.add(c)
}

func (have *Cell) add(c Cell) {
	have.Rounds = append(have.Rounds, c.Rounds...)
	if len(have.Rounds) > 0 { // not if it says nothing
		have.Seconds = max(0, slices.Max(have.Rounds))
	}
	if have.Result != c.Result {
		have.Result = Flaky
	}
	if c.Reason != "" {
		have.Reason = c.Reason
	}
}

// missed is in how many rounds there was no answer.
func (have *Cell) missed() int {
	n := 0
	for _, r := range have.Rounds {
		if r < 0 {
			n++
		}
	}
	return n
}

// Read reads a record.
func Read(in io.Reader) (*Record, error) {
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	r := new(Record)
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("reading the record of the floors: %w", err)
	}
	return r, nil
}

// Table is the record for a terminal: a row for each condition, a column for
// each layer and mode.
func Table(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-52s", "seconds to the first good answer")
	for _, l := range layers {
		fmt.Fprintf(&b, "  %-23s", l)
	}
	fmt.Fprintf(&b, "\n%-52s", "")
	for range layers {
		fmt.Fprintf(&b, "  %7s %7s %7s", "kept", "new", "fresh")
	}
	for _, row := range r.Rows {
		floor := ""
		if row.Floor != "" && row.Floor != open {
			floor = " (floor " + row.Floor + ")"
		}
		fmt.Fprintf(&b, "\n%-52s", row.Title+floor)
		for _, l := range layers {
			b.WriteString(" ")
			for _, m := range modes {
				fmt.Fprintf(&b, " %7s", row.word(l, m))
			}
		}
	}
	return b.String()
}

func (row *Row) cell(layer, mode string) *Cell {
	for i, c := range row.Cells {
		if c.Layer == layer && c.Mode == mode {
			return &row.Cells[i]
		}
	}
	return nil
}

func (row *Row) word(layer, mode string) string {
	switch c := row.cell(layer, mode); {
	case c == nil:
		return ""
	case c.Result == Green:
		return fmt.Sprintf("%.2f", c.Seconds)
	case c.Result == Red:
		return "-"
	default:
		return string(c.Result)
	}
}
