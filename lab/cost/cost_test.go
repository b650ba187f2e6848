package cost

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/world"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

func TestReadBenchmarks(t *testing.T) {
	got, err := ReadBenchmarks(strings.NewReader(`goos: linux
goarch: amd64
pkg: example.org/forward
cpu: Some Processor
BenchmarkForwardEcho-2   	    3000	    670262 ns/op	        27.47 added-µs	        34.33 direct-µs
BenchmarkPacket/guests=10-2	 100	 5 ns/op
BenchmarkLoose
BenchmarkSkipped-2: says something
PASS
ok  	example.org/forward	4.2s
pkg: example.org/acl
BenchmarkCompile/guests=1000 	      10	 120 ns/op	 96 B/op	 4 allocs/op
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Benchmark{
		{Package: "example.org/forward", Name: "ForwardEcho", Rounds: 3000, Metrics: map[string]float64{"ns/op": 670262, "added-µs": 27.47, "direct-µs": 34.33}},
		{Package: "example.org/forward", Name: "Packet/guests=10", Rounds: 100, Metrics: map[string]float64{"ns/op": 5}},
		{Package: "example.org/acl", Name: "Compile/guests=1000", Rounds: 10, Metrics: map[string]float64{"ns/op": 120, "B/op": 96, "allocs/op": 4}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := ReadBenchmarks(strings.NewReader("BenchmarkX 1 many ns/op\n")); err == nil {
		t.Error("a figure that is none is read")
	}
}

func TestSizes(t *testing.T) {
	got := sizes([]byte("00400000-7ffe rollup\nRss:               16384 kB\nPss:                8192 kB\nName:\tveilor\nThreads:\t8\nVmHWM:\t   20480 kB\n"))
	if diff := cmp.Diff(map[string]int64{"Rss": 16 << 20, "Pss": 8 << 20, "VmHWM": 20 << 20}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInterfaces(t *testing.T) {
	got := interfaces([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
tailscale0: 5000     20    0    0    0     0          0         0     7000      30    0    0    0     0       0          0
`))
	if diff := cmp.Diff(map[string]Wire{"lo": {100, 100}, "tailscale0": {7000, 5000}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOwnProcess reads what the kernel says of this very process.
func TestOwnProcess(t *testing.T) {
	before, err := processorTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for until := time.Now().Add(20 * time.Millisecond); time.Now().Before(until); {
		sum++
	}
	after, err := processorTime(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("processor time went from %v to %v, %v (%d)", before, after, err, sum)
	}
	m, err := memoryOf(os.Getpid())
	if err != nil || m.Anonymous <= 0 || m.Resident < m.Anonymous || m.Peak < m.Resident/2 {
		t.Errorf("memory = %+v, %v", m, err)
	}
	all, err := inNamespace("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range all {
		found = found || p.pid == os.Getpid() && len(p.args) > 0
	}
	if !found {
		t.Error("this process is not in its own network namespace")
	}
	if _, err := daemonsOf(all); err == nil {
		t.Error("a laptop's daemons were found here")
	}
}

func TestBusy(t *testing.T) {
	got, err := busy("cpu  828 387 299 1737471 11104 1 2 3 40 50\ncpu0 1 2\n")
	if want := (828 + 387 + 299 + 1 + 2 + 3) * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("busy for %v, %v; want %v", got, err, want)
	}
	for _, text := range []string{"", "cpu0 1 2 3 4 5", "cpu a b c d e"} {
		if d, err := busy(text); err == nil {
			t.Errorf("%q: %v", text, d)
		}
	}
}

func TestTimes(t *testing.T) {
	var all []time.Duration
	for i := 100; i > 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	if diff := cmp.Diff(Times{100, 51, 96, 100}, timesOf(all, time.Millisecond)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if all[0] != 100*time.Millisecond {
		t.Error("the durations were put in another order")
	}
}

// TestJudge: a promise holds or not, tailscaled's figures are nobody's promise,
// and the table names what does not hold.
func TestJudge(t *testing.T) {
	r := Record{
		Idle: Idle{Seconds: 240, Rare: Wire{Up: 1e6}, Daemons: []Daemon{
			{Name: mesh, Ours: true, Memory: Memory{Resident: 21 * MB}, Core: 0.05, Day: Wire{}},
			{Name: ygg, Ours: true, Memory: Memory{Resident: 20 * MB}, Core: 0.05, Day: Wire{Up: 1e6, Down: 1e6}},
			{Name: tailscaled, Memory: Memory{Resident: 80 * MB}, Core: 1, Day: Wire{Up: 9e6}},
		}},
		Status: Status{Warm: Times{Median: 30}, Cold: Times{Median: 60}},
		Paths:  []Path{{Layer: tailnet, Gigabit: Download{Ratio: 0.97}, Unlimited: Download{Ratio: 0.93}, Awake: Latency{Answer: Added{Added: 20}}, Asleep: Latency{Answer: Added{Added: 120}}}},
		Benchmarks: []Benchmark{
			{Name: "ForwardEcho", Metrics: map[string]float64{"added-µs": 101}},
			{Name: "ForwardSetup", Metrics: map[string]float64{"added-µs": 500}},
		},
	}
	r.Judge()
	want := []string{
		"memory of our daemons, resident: 41 MB, promised 40",
		"`veilor status` after a rest, median: 60 ms, promised 50",
		"ForwardEcho, median added: 101 µs, promised 100",
	}
	if diff := cmp.Diff(want, r.Broken()); diff != "" {
		t.Errorf("broken (-want +got):\n%s", diff)
	}
	if text := r.Markdown(); strings.Count(text, "does not hold") != len(want) || !strings.Contains(text, "| bytes of our daemons on the wire, idle | 3 MB/day | 5 | holds |") {
		t.Errorf("the table says:\n%s", text)
	}
}

// TestJudgeAnswers: where processors cannot be kept awake, nobody knows whether
// the promise holds.
func TestJudgeAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		path Path
		word string
	}{
		"in time":      {Path{Awake: Latency{Answer: Added{Added: 100}}}, "holds"},
		"late":         {Path{Awake: Latency{Answer: Added{Added: 101}}}, "does not hold"},
		"not measured": {Path{Asleep: Latency{Answer: Added{Added: 20}}, Unmeasured: "no such device"}, "not measured: no such device"},
	} {
		r := Record{Paths: []Path{c.path}}
		r.Judge()
		if p := r.Promises[1]; p.word() != c.word || p.Holds != (c.word == "holds") {
			t.Errorf("%s: %+v", name, p)
		}
		if rows := strings.Count(r.Markdown(), "\n| | answer"); (rows == 1) != (c.path.Unmeasured != "") {
			t.Errorf("%s: %d rows of answers", name, rows)
		}
	}
}

// TestKeepAwake: the kernel knows of the wish while it holds, and no longer.
func TestKeepAwake(t *testing.T) {
	wish := func() uint32 {
		t.Helper()
		b, err := os.ReadFile(wakeups)
		if err != nil || len(b) < 4 {
			t.Skipf("SKIPPED, nothing shown: this machine has no %s to read: %v", wakeups, err)
		}
		return binary.NativeEndian.Uint32(b)
	}
	before := wish()
	release, err := keepAwake()
	if err != nil {
		t.Fatal(err)
	}
	during := wish()
	if err := release(); err != nil {
		t.Error(err)
	}
	if after := wish(); during != 0 || after != before {
		t.Errorf("the processors may sleep for %d, %d and %d µs before, while and after they are kept awake", before, during, after)
	}
}

// TestDownloadsProveTheirLayer: a download does not say by which layer it came; if
// it is another than what is measured, before it or after it, there is no figure.
func TestDownloadsProveTheirLayer(t *testing.T) {
	const onTailnet, onYggdrasil = "100.64.0.3", "200::3"
	for name, c := range map[string]struct {
		from func(downloads int) string
		want string
	}{
		"all of them":   {func(int) string { return onTailnet }, ""},
		"none":          {func(int) string { return onYggdrasil }, "came by the yggdrasil"},
		"not the third": {func(n int) string { return map[bool]string{true: onYggdrasil, false: onTailnet}[n == 3] }, "came by the yggdrasil"},
		"nobody knows":  {func(int) string { return "" }, "does not say"},
	} {
		t.Run(name, func(t *testing.T) {
			downloads := 0
			srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/" {
					downloads++
					return
				}
				fmt.Fprintf(rw, `{"from": %q}`, c.from(downloads))
			}))
			defer srv.Close()
			one := &client{service: srv.Listener.Addr().String(), http: srv.Client()}
			took, err := inTurn(context.Background(), [ways]*client{one, one, one}, tailnet, "/bytes/1", 2)
			if c.want == "" && (err != nil || len(took[direct]) != 2 || len(took[forwarded]) != 2) {
				t.Errorf("%v, %v", took, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}

// TestWithoutTailscale: an address of the control server that is left is a relay.
func TestWithoutTailscale(t *testing.T) {
	var text string
	for _, r := range withoutTailscale() {
		text += r.Text + "\n"
	}
	for _, a := range []string{world.Control.String(), world.Twin(world.Control).String()} {
		if !strings.Contains(text, a) {
			t.Errorf("%s is not blocked by:\n%s", a, text)
		}
	}
}

// TestJudgeConnections: where there are files for fewer, nobody knows whether
// 10,000 connections are carried.
func TestJudgeConnections(t *testing.T) {
	for name, c := range map[string]struct {
		carried, allowed float64
		word             string
		broken           int
	}{
		"all":                 {10_000, 10_000, "holds", 0},
		"too few":             {9_999, 10_000, "does not hold", 1},
		"no more allowed":     {500, 500, "not measured: the machine allows files for 500; see ulimit -n", 0},
		"not even those":      {499, 500, "does not hold", 1},
		"nothing is reported": {0, 10_000, "does not hold", 1},
	} {
		r := Record{Benchmarks: []Benchmark{{Name: "ForwardConnections", Metrics: map[string]float64{"conns": c.carried, "allowed-conns": c.allowed}}}}
		r.Judge()
		if len(r.Promises) != 1 || r.Promises[0].word() != c.word || r.Promises[0].Holds != (c.word == "holds") {
			t.Errorf("%s: %+v", name, r.Promises)
		}
		if b, u := r.Broken(), r.Unmeasured(); len(b) != c.broken || (len(u) == 1) != strings.HasPrefix(c.word, "not measured") {
			t.Errorf("%s: broken %q, unmeasured %q", name, b, u)
		}
		if text := r.Markdown(); !strings.Contains(text, "| "+c.word+" |") {
			t.Errorf("%s: the table says:\n%s", name, text)
		}
	}
}
