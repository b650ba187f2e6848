// Package cost measures what a laptop pays for being reachable: memory, time of
// a processor and bytes on the wire while nobody uses it, what the forwarder
// takes from a connection on each layer, and how long `veilor status` takes. The
// programs are the real ones, behind an address translation that forgets, and
// tailscaled's figures stand beside ours.
package cost

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// MB is 10^6 bytes, as in the limits.
const MB = 1e6

// The limits that veilor promises.
const (
	MaxMemory    = 40 * MB // resident, all of our daemons together
	MaxWire      = 5 * MB  // a day, all of our daemons together, idle
	MaxCore      = 0.2     // percent of one core, likewise
	MaxStatus    = 50.0    // milliseconds, median
	MinRatio     = 0.95    // throughput through the forwarder, against the same layer without
	MaxAdded     = 100.0   // microseconds, median, that an answer on an open connection is later
	LeastCarried = 10_000  // connections of a service at a time
)

// Record is a whole measurement, docs/evidence/bench.json.
type Record struct {
	Date   time.Time `json:"date"`
	Commit string    `json:"commit"`
	// Machine and Versions say on what and of what.
	Machine  Machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Idle     Idle              `json:"idle"`
	Status   Status            `json:"status"`
	Paths    []Path            `json:"paths"`
	// Benchmarks are those of the Go packages, as they report themselves.
	Benchmarks []Benchmark `json:"benchmarks"`
	Promises   []Promise   `json:"promises"`
}

// Machine is what was measured on.
type Machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	Kernel    string `json:"kernel"`
}

// Idle is what the daemons of a laptop cost that nobody uses.
type Idle struct {
	// Seconds is how long they were watched.
	Seconds float64  `json:"seconds"`
	Daemons []Daemon `json:"daemons"`
	// Names are the bytes a day of questions to the ISP's resolver, whoever
	// asked.
	Names Wire `json:"names"`
	// Tunnels are bytes inside the overlays, by interface, in the whole time:
	// those of veilor-mesh, which sends nowhere else. On the wire they are
	// among the bytes of the layer's daemon.
	Tunnels map[string]Wire `json:"tunnels"`
	// Request is what one page over a new connection costs on the wire, and Rare
	// what those cost a day that are too rare to be seen in Seconds: a question
	// for the directory every 25 minutes, the canary every six hours.
	Request Wire `json:"request"`
	Rare    Wire `json:"rare"`
}

// Daemon is one program that runs all the time.
type Daemon struct {
	Name string `json:"name"`
	Ours bool   `json:"ours"`
	Memory
	// CPU is seconds of a processor in the whole time, Core the same as a
	// percentage of one core.
	CPU  float64 `json:"cpu_seconds"`
	Core float64 `json:"core_percent"`
	// Day is what it has on the wire in a day, at this pace.
	Day Wire `json:"day"`
}

// Memory of a process, in bytes (proc_pid_smaps(5), proc_pid_status(5)).
type Memory struct {
	// Resident is what it has in memory, the text of the program included;
	// Anonymous is the part of it that is in no file, and so cannot be dropped;
	// Peak what it had at most, which is at the start.
	Resident  int64 `json:"rss"`
	Anonymous int64 `json:"anonymous"`
	Peak      int64 `json:"peak_rss"`
}

// Wire is bytes of IP packets, seen from the laptop.
type Wire struct {
	Up   int64 `json:"up"`
	Down int64 `json:"down"`
}

// Sum is in both directions.
func (w Wire) Sum() int64 { return w.Up + w.Down }

func (w Wire) minus(o Wire) Wire { return Wire{w.Up - o.Up, w.Down - o.Down} }

func (w Wire) times(f float64) Wire {
	return Wire{int64(float64(w.Up) * f), int64(float64(w.Down) * f)}
}

// Status is how long `veilor status` takes, from starting the program to its
// end, in milliseconds.
type Status struct {
	// Warm runs follow each other; before each Cold one nobody had used a layer
	// for so long that both are asked anew.
	Warm Times `json:"warm"`
	Cold Times `json:"cold"`
}

// Times are of several runs.
type Times struct {
	Runs   int     `json:"runs"`
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
}

// timesOf sums up durations, in the given unit.
func timesOf(all []time.Duration, unit time.Duration) Times {
	if len(all) == 0 {
		return Times{}
	}
	all = slices.Sorted(slices.Values(all))
	at := func(part float64) float64 {
		d := all[min(int(part*float64(len(all))), len(all)-1)]
		return round(float64(d) / float64(unit))
	}
	return Times{len(all), at(0.5), at(0.95), at(1)}
}

// round keeps three digits after the point.
func round(f float64) float64 { return float64(int64(f*1000+0.5)) / 1000 }

// Path is a layer without anything in between, with a relay that does nothing but
// copy, and with the forwarder, measured in turn.
type Path struct {
	Layer string `json:"layer"`
	// Gigabit is a download where the network carries 1 Gbit/s, Unlimited one where
	// nothing but this machine is in the way, which carries both ends.
	Gigabit   Download `json:"gigabit"`
	Unlimited Download `json:"unlimited"`
	Rounds    int      `json:"rounds"`
	// Work is the processor time that 1 GB of an unlimited download takes, on both
	// ends of the overlay; ForwardWork what of it is the forwarder's. In seconds.
	Work        float64 `json:"work_s_gb"`
	ForwardWork float64 `json:"forward_work_s_gb"`
	// Asleep is with processors that sleep between packets, Awake with such as are
	// kept from it; Unmeasured says why that cannot be done here.
	Asleep     Latency `json:"asleep"`
	Awake      Latency `json:"awake"`
	Unmeasured string  `json:"unmeasured,omitempty"`
}

// Latency is of small questions: Answer is the time of one and its answer on an
// open connection, Connect that of a new one: TCP, TLS, question and answer. In
// microseconds, medians.
type Latency struct {
	Answer  Added `json:"answer"`
	Connect Added `json:"connect"`
}

// Download is how fast each way is, in MB/s; the ratios are medians of the ratios to
// a direct one of the same round.
type Download struct {
	Direct     float64 `json:"direct_mb_s"`
	Relay      float64 `json:"relay_mb_s"`
	Forward    float64 `json:"forward_mb_s"`
	RelayRatio float64 `json:"relay_ratio"`
	Ratio      float64 `json:"ratio"`
}

// Added is what the forwarder, and such a relay, add to a time.
type Added struct {
	Rounds  int     `json:"rounds"`
	Direct  float64 `json:"direct_us"`
	Forward float64 `json:"forward_us"`
	// Added and RelayAdded are medians of the differences within a round.
	Added      float64 `json:"added_us"`
	RelayAdded float64 `json:"relay_added_us"`
}

// Promise is one limit and what was measured.
type Promise struct {
	Text  string  `json:"text"`
	Got   float64 `json:"got"`
	Limit float64 `json:"limit"`
	Unit  string  `json:"unit"`
	Holds bool    `json:"holds"`
	// Unmeasured says why this machine cannot tell; then nothing is known to be
	// broken, and nothing holds.
	Unmeasured string `json:"unmeasured,omitempty"`
}

// word is how it stands with the promise.
func (p *Promise) word() string {
	switch {
	case p.Unmeasured != "":
		return "not measured: " + p.Unmeasured
	case p.Holds:
		return "holds"
	}
	return "does not hold"
}

// Judge fills in the promises.
func (r *Record) Judge() {
	r.Promises = nil
	most := func(text string, got, limit float64, unit string) {
		r.Promises = append(r.Promises, Promise{Text: text, Got: round(got), Limit: limit, Unit: unit, Holds: got <= limit})
	}
	least := func(text string, got, limit float64, unit string) {
		r.Promises = append(r.Promises, Promise{Text: text, Got: round(got), Limit: limit, Unit: unit, Holds: got >= limit})
	}
	var ours Daemon
	wire := r.Idle.Rare.Sum()
	for _, d := range r.Idle.Daemons {
		if d.Ours {
			ours.Resident += d.Resident
			ours.Core += d.Core
			wire += d.Day.Sum()
		}
	}
	if len(r.Idle.Daemons) > 0 {
		most("memory of our daemons, resident", float64(ours.Resident)/MB, MaxMemory/MB, "MB")
		most("time of our daemons, idle", ours.Core, MaxCore, "% of a core")
		most("bytes of our daemons on the wire, idle", float64(wire)/MB, MaxWire/MB, "MB/day")
		most("`veilor status`, median", r.Status.Warm.Median, MaxStatus, "ms")
		most("`veilor status` after a rest, median", r.Status.Cold.Median, MaxStatus, "ms")
	}
	for _, p := range r.Paths {
		// Faster than any network that a laptop is plugged into, a program in between
		// takes from the processors that both ends share here, whatever it does.
		least("throughput through the forwarder at 1 Gbit/s, "+p.Layer, p.Gigabit.Ratio, MinRatio, "of direct")
		// Likewise what a sleeping processor takes to wake is whatever the machine
		// says, and a relay has to be woken twice.
		most("an answer is later by, "+p.Layer, p.Awake.Answer.Added, MaxAdded, "µs")
		last := &r.Promises[len(r.Promises)-1]
		last.Unmeasured = p.Unmeasured
		last.Holds = last.Holds && p.Unmeasured == ""
	}
	for _, b := range r.Benchmarks {
		switch b.Name {
		case "ForwardThroughputTUN", "ForwardThroughputLink":
			least(b.Name, b.Metrics["ratio"], MinRatio, "of direct")
		case "ForwardEcho":
			most(b.Name+", median added", b.Metrics["added-µs"], MaxAdded, "µs")
		case "ForwardConnections":
			carried, allowed := b.Metrics["conns"], b.Metrics["allowed-conns"]
			least(b.Name+", carried at a time", carried, LeastCarried, "connections")
			if allowed < LeastCarried && carried >= allowed {
				r.Promises[len(r.Promises)-1].Unmeasured = fmt.Sprintf("the machine allows files for %.0f; see ulimit -n", allowed)
			}
		}
	}
}

// Broken are the promises that do not hold.
func (r *Record) Broken() []string {
	var broken []string
	for _, p := range r.Promises {
		if !p.Holds && p.Unmeasured == "" {
			broken = append(broken, fmt.Sprintf("%s: %v %s, promised %v", p.Text, p.Got, p.Unit, p.Limit))
		}
	}
	return broken
}

// Unmeasured are the promises that this machine cannot tell anything about.
func (r *Record) Unmeasured() []string {
	var all []string
	for _, p := range r.Promises {
		if p.Unmeasured != "" {
			all = append(all, p.Text+": "+p.Unmeasured)
		}
	}
	return all
}

// Markdown is the record for people, docs/evidence/bench.md.
func (r *Record) Markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# What it costs\n")
	line("%s, commit %s; %s, %d cores, Linux %s.", r.Date.UTC().Format(time.DateOnly), r.Commit, r.Machine.Processor, r.Machine.Cores, r.Machine.Kernel)
	var versions []string
	for name, v := range r.Versions {
		versions = append(versions, name+" "+v)
	}
	if slices.Sort(versions); len(versions) > 0 {
		line("%s.", strings.Join(versions, ", "))
	}
	line("`make bench` measures it anew.\n")
	line("| what | measured | promised | |\n| --- | ---: | ---: | --- |")
	for _, p := range r.Promises {
		line("| %s | %v %s | %v | %s |", p.Text, p.Got, p.Unit, p.Limit, p.word())
	}
	if len(r.Idle.Daemons) > 0 {
		line("\n## Idle for %.0f s, joined, behind an address translation\n", r.Idle.Seconds)
		line("| daemon | resident | of it in no file | at the start | %% of a core | MB a day on the wire |\n| --- | ---: | ---: | ---: | ---: | ---: |")
		for _, d := range r.Idle.Daemons {
			line("| %s | %.1f MB | %.1f MB | %.1f MB | %.3f | %.2f |", d.Name, float64(d.Resident)/MB, float64(d.Anonymous)/MB,
				float64(d.Peak)/MB, d.Core, float64(d.Day.Sum())/MB)
		}
		line("\nRarer than that, and so computed: questions for the directory and the canary, %.2f MB a day at %d bytes each.",
			float64(r.Idle.Rare.Sum())/MB, r.Idle.Request.Sum())
		line("\n`veilor status`: median %.1f ms of %d runs, 95 %% within %.1f ms; after a rest, when both layers are asked anew, %.1f ms.",
			r.Status.Warm.Median, r.Status.Warm.Runs, r.Status.Warm.P95, r.Status.Cold.Median)
	}
	if len(r.Paths) > 0 {
		line("\n## The forwarder on each layer\n")
		line("Beside it, in the same rounds, a relay that does nothing but accept, dial and copy: what it costs to be in between at all.\n")
		line("| layer | | direct | through a relay | through the forwarder |\n| --- | --- | ---: | ---: | ---: |")
		for _, p := range r.Paths {
			line("| %s | download, 1 Gbit/s | %.0f MB/s | %.3f of it | %.3f of it |", p.Layer, p.Gigabit.Direct, p.Gigabit.RelayRatio, p.Gigabit.Ratio)
			line("| | download, unlimited | %.0f MB/s | %.3f of it | %.3f of it |", p.Unlimited.Direct, p.Unlimited.RelayRatio, p.Unlimited.Ratio)
			added := func(what string, a Added) {
				line("| | %s | %.0f µs | + %.0f µs | + %.0f µs |", what, a.Direct, a.RelayAdded, a.Added)
			}
			if p.Unmeasured == "" {
				added("answer", p.Awake.Answer)
				added("new connection", p.Awake.Connect)
			}
			added("answer, processors asleep between", p.Asleep.Answer)
			added("new connection, processors asleep between", p.Asleep.Connect)
		}
		line("\nAn answer is to a small question on an open connection; a new connection is TCP, TLS, question and answer.")
		line("Who is in between has to be woken twice for it. From sleep that takes what the machine takes: where it is a guest, its host has to run it again first, and that differs from hour to hour. So the promise is of processors kept awake (`%s`), and the others stand beside it.", wakeups)
		for _, p := range r.Paths {
			line("Unlimited, a GB over the %s takes %.1f s of a processor on both ends of it, which share this machine; %.1f s of that are the forwarder's.", p.Layer, p.Work, p.ForwardWork)
		}
	}
	if len(r.Benchmarks) > 0 {
		line("\n## Benchmarks\n\n| benchmark | figures |\n| --- | --- |")
		for _, m := range r.Benchmarks {
			line("| %s | %s |", m.Name, m.figures())
		}
	}
	return b.String()
}
