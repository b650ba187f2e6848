// Command bench measures what a laptop pays for being reachable, and writes
// docs/evidence/bench.json and, for people, bench.md beside it. See `make bench`.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/lab/cost"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
)

type options struct {
	source, cache, out, logs, benchtime string
	idle                                time.Duration
	world, benchmarks                   bool
}

func main() {
	var o options
	flag.StringVar(&o.source, "source", ".", "the checkout of veilor-os")
	flag.StringVar(&o.cache, "cache", "out/cache", "what later runs use again")
	flag.StringVar(&o.out, "out", "docs/evidence/bench.json", "where the record goes; a table goes beside it")
	flag.StringVar(&o.logs, "logs", "", "keep the daemons' logs in this directory")
	flag.StringVar(&o.benchtime, "benchtime", "3s", "how long each Go benchmark runs")
	flag.DurationVar(&o.idle, "idle", 3*time.Minute, "how long the idle daemons are watched")
	flag.BoolVar(&o.world, "world", true, "measure the daemons in a world; without it the record is not written")
	flag.BoolVar(&o.benchmarks, "benchmarks", true, "run the Go benchmarks; without them the record is not written")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), `bench measures what a laptop pays for being reachable: memory, processor and
bytes of its idle daemons, the forwarder on each layer, veilor status, and the Go
benchmarks. It needs root, and a quiet machine. It fails if a promise does not hold.

  bench                              all of it, half an hour
  bench --benchmarks=false           the daemons only

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.idle <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(sandbox.Run(func(ctx context.Context) int {
		if err := run(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

func run(ctx context.Context, o options) error {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	r := cost.Record{Date: time.Now().UTC().Truncate(time.Second), Commit: program.Commit(o.source), Machine: cost.ThisMachine()}
	if o.world {
		if err := inWorld(ctx, o, &r, say); err != nil {
			return err
		}
	}
	if o.benchmarks {
		var err error
		if r.Benchmarks, err = goBenchmarks(ctx, o); err != nil {
			return err
		}
		if b := tooFew(r.Benchmarks); b != nil {
			if err := inMachine(ctx, o, b, say); err != nil {
				return err
			}
		}
	}
	r.Judge()
	fmt.Print(r.Markdown())
	if o.world && o.benchmarks {
		if err := write(&r, o.out); err != nil {
			return err
		}
	}
	for _, text := range r.Unmeasured() {
		say("NOT MEASURED: %s", text)
	}
	if broken := r.Broken(); len(broken) > 0 {
		return fmt.Errorf("promises that do not hold:\n  %s", strings.Join(broken, "\n  "))
	}
	return nil
}

func inWorld(ctx context.Context, o options, r *cost.Record, say func(string, ...any)) error {
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return err
	}
	f, err := outfit.Make(ctx, outfit.Options{
		Source: o.source, Cache: cache, Wide: true, Log: os.Stderr, Progress: func(what string) { say("%s", what) },
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if o.logs != "" {
		defer func() { os.CopyFS(o.logs, os.DirFS(f.World.Logs)) }()
	}
	return r.Measure(ctx, f, cost.Options{Idle: o.idle, Progress: say})
}

// suite is a run of `go test -bench`.
type suite struct {
	module, pkg string
	pattern     string
	benchtime   string
	// want are benchmarks that must have reported: one that skips itself says
	// nothing that would be missed.
	want []string
}

// loadLimit is for loading the policy into a server with 10,000 nodes, which takes
// many minutes to start.
const loadLimit = time.Hour

func suites(o options) []suite {
	lab := filepath.Join(o.source, "lab")
	return []suite{
		{o.source, "./internal/...", ".", o.benchtime, []string{"Compile/laptops=10000", "ForwardConnections", "ForwardEcho"}},
		// The packet filter's table, by how many guests it has.
		{lab, "./cost", "^BenchmarkFilter$", o.benchtime, []string{"Filter/guests=10000"}},
		{lab, "./tiers", "^Benchmark(Packet|Load)$", o.benchtime, []string{"Packet/guests=10000", "Load/guests=10000"}},
		// Once is enough: what it does takes seconds.
		{lab, "./tiers", "^BenchmarkLoadPolicy$", "1x", []string{"LoadPolicy/guests=10000"}},
	}
}

// goBenchmarks runs those of both modules and shows their output as it comes.
func goBenchmarks(ctx context.Context, o options) ([]cost.Benchmark, error) {
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return nil, err
	}
	var all []cost.Benchmark
	for _, b := range suites(o) {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-p", "1", "-run", "^$", "-bench", b.pattern, "-benchtime", b.benchtime,
			"-timeout", loadLimit.String(), b.pkg)
		cmd.Dir = b.module
		// Those of the lab find its programs in the cache.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", gate.CacheVar+"="+cache)
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, os.Stderr), os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("running the benchmarks of %s: %w", b.pkg, err)
		}
		found, err := cost.ReadBenchmarks(&out)
		if err != nil {
			return nil, err
		}
		for _, name := range b.want {
			if !slices.ContainsFunc(found, func(f cost.Benchmark) bool { return f.Name == name }) {
				return nil, fmt.Errorf("running the benchmarks of %s: %s has reported nothing; see above why", b.pkg, name)
			}
		}
		all = append(all, found...)
	}
	return all, nil
}

// write puts the record down, and beside it its table.
func write(r *cost.Record, out string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	for name, content := range map[string][]byte{
		out:                                      append(text, '\n'),
		strings.TrimSuffix(out, ".json") + ".md": []byte(r.Markdown()),
	} {
		if err := renameio.WriteFile(name, content, 0o644); err != nil {
			return fmt.Errorf("writing the record: %w", err)
		}
	}
	return nil
}
