// Command evidence measures what a laptop still reaches in every condition of
// the network, and writes docs/evidence/floors.json. See `make evidence`.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
)

type options struct {
	source, cache, out, only, logs, merge string
	rounds, gaps                          int
	idle                                  time.Duration
	part                                  bool
}

func main() {
	var o options
	flag.StringVar(&o.source, "source", ".", "the checkout of veilor-os")
	flag.StringVar(&o.cache, "cache", "out/cache", "what later runs use again")
	flag.StringVar(&o.out, "out", "docs/evidence/floors.json", "where the record goes")
	flag.StringVar(&o.logs, "logs", "", "keep the daemons' logs in this directory")
	flag.StringVar(&o.only, "only", "", "only these conditions, by their names with commas; the record is then not written")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each condition is made; 0 for new connections only")
	flag.IntVar(&o.gaps, "gaps", 20, "how many blocks new connections are watched after; 0 for none")
	flag.DurationVar(&o.idle, "idle", 0, "how long the laptop is silent before a block that a floor names, and before those of --gaps; the router forgets after a minute")
	flag.BoolVar(&o.part, "part", false, "this is to be merged with others: do not ask for as many rounds as a whole record has")
	flag.StringVar(&o.merge, "merge", "", "measure nothing, put these records together: files with commas")
	flag.Usage = func() {
		var names []string
		for _, c := range floors.Conditions() {
			names = append(names, c.ID)
		}
		fmt.Fprintf(flag.CommandLine.Output(), `evidence makes every condition of the network that the lab's censor can make, and
measures what a laptop reaches in it, over which layer and after how long. It
needs root.

Conditions: %s

  evidence --only udp,control                                         two of them
  evidence --rounds 2 --part --out A.json                             all of them
  evidence --rounds 1 --idle 65s --gaps 5 --part --out B.json         all, out of silence
  evidence --merge A.json,B.json                                      one record of two

A whole record has three rounds, one of them out of silence.

`, strings.Join(names, ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 0 {
		flag.Usage()
		os.Exit(2)
	}
	if o.merge != "" {
		if err := merge(o); err != nil {
			fmt.Fprintln(os.Stderr, "evidence:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(sandbox.Run(func(ctx context.Context) int {
		if err := run(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, "evidence:", err)
			return 1
		}
		return 0
	}))
}

func run(ctx context.Context, o options) error {
	conditions := floors.Conditions()
	if o.only != "" {
		names := strings.Split(o.only, ",")
		for _, n := range names {
			if !slices.ContainsFunc(conditions, func(c floors.Condition) bool { return c.ID == n }) {
				return fmt.Errorf("there is no condition %q; `evidence --help` lists them", n)
			}
		}
		conditions = slices.DeleteFunc(conditions, func(c floors.Condition) bool { return !slices.Contains(names, c.ID) })
	}
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	began := time.Now()
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
	town, stop, err := floors.Start(ctx, f)
	if err != nil {
		return err
	}
	defer stop()
	record := floors.Record{Date: began.UTC().Truncate(time.Second), Commit: program.Commit(o.source), Rounds: o.rounds}
	if o.idle > 0 {
		record.Idle, record.IdleRounds = o.idle.Seconds(), o.rounds
	}
	if record.Versions, err = program.Versions(f.Programs); err != nil {
		return err
	}
	record.Rows, record.Neighbours, err = town.Measure(ctx, conditions, floors.Options{Rounds: o.rounds, Idle: o.idle, Progress: say})
	if err != nil {
		return err
	}
	if o.gaps > 0 && o.only == "" {
		to := &record.Gap
		if o.idle > 0 {
			to = &record.GapIdle
		}
		if *to, err = town.MeasureGap(ctx, o.gaps, floors.Options{Idle: o.idle, Progress: say}); err != nil {
			return err
		}
	}
	show(&record)
	if o.only == "" {
		if err := write(&record, o.out); err != nil {
			return err
		}
	}
	if o.part || o.only != "" {
		return promised(record.BrokenFigures())
	}
	return promised(record.Broken())
}

// merge puts records together that were measured one after the other, or side by
// side.
func merge(o options) error {
	var all *floors.Record
	for _, name := range strings.Split(o.merge, ",") {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("merging records: %w", err)
		}
		r, err := floors.Read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("merging records: %s: %w", name, err)
		}
		if all == nil {
			all = r
		} else if err := all.Merge(r); err != nil {
			return fmt.Errorf("merging records: %s: %w", name, err)
		}
	}
	show(all)
	if err := write(all, o.out); err != nil {
		return err
	}
	if o.part {
		return promised(all.BrokenFigures())
	}
	return promised(all.Broken())
}

func show(r *floors.Record) {
	fmt.Println(floors.Table(r))
	for _, text := range r.Gaps() {
		fmt.Println(text)
	}
}

// write puts the record down, and beside it its picture.
func write(r *floors.Record, out string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	if err := renameio.WriteFile(out, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	var picture bytes.Buffer
	if err := r.SVG(&picture); err != nil {
		return fmt.Errorf("drawing the record: %w", err)
	}
	if err := renameio.WriteFile(strings.TrimSuffix(out, ".json")+".svg", picture.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the picture: %w", err)
	}
	return nil
}

func promised(broken []string) error {
	if len(broken) > 0 {
		return fmt.Errorf("promises that do not hold:\n  %s", strings.Join(broken, "\n  "))
	}
	return nil
}
