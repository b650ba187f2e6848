// Package act is the demo, act by act: build the image, sign it, install it,
// boot it, join, reach, and go on reaching while the network is taken away.
//
// An act uses what the acts before it have left on the [Stage]. The first that
// fails ends the run; those after it are reported as not tried. Everything here
// is the lab's; the product is only ever run as a program, as a person would.
package act

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/base"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/disk"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/vm"
	"github.com/veilor/veilor-os/lab/webca"
	"github.com/veilor/veilor-os/lab/world"
)

// Options of a run.
type Options struct {
	// Source is the checkout, Out is for results, Cache for what later runs use.
	Source, Out, Cache string
	// Short leaves out no step and waits less.
	Short bool
	// Mistakes makes the person at the laptop do everything wrong first.
	Mistakes bool
	// Last is the act to stop after; empty plays all.
	Last string
	// Version of the run's image; empty is the lab's default.
	Version string
	Console *console.Console
}

// Stage is what the acts share.
type Stage struct {
	Options
	cache *cache.Cache
	log   io.Writer     // out/logs/lab.log
	run   string        // scratch, gone after the run
	tools *sandbox.Root // where QEMU and skopeo run
	close []func()

	// Left by the acts, in the order in which they run.
	toolsRoot string
	stub      string // bootc.Build's binary
	kernel    string // of the base
	base      *base.Image
	programs  program.Set
	web       *webca.CA
	site      *labsite.Lab
	image     builtImage
	registry  *registry
	trust     string // a tree with the image's own container policy
	disk      *disk.Disk
	accel     vm.Verdict
	world     *world.World
	strangers *world.Strangers // seen at the ISP's router, since before the machine's first packet
	machine   *vm.Machine
	browser   *client

	page   report.Page
	checks []report.Check
	said   []string // by the act that is being played
}

// play is one act. It returns what came of it, in a few words; empty if it has
// printed lines of its own.
type play func(*Stage, context.Context, *console.Act) (string, error)

var acts = []struct {
	name string
	play play
}{
	{"lab", (*Stage).prepare},
	{"image", (*Stage).buildImage},
	{"signature", (*Stage).sign},
	{"install", (*Stage).install},
	{"boot", (*Stage).boot},
	{"join", (*Stage).join},
	{"reach", (*Stage).reach},
	{"blocked", (*Stage).block},
	{"killed", (*Stage).killDaemons},
	{"cold", (*Stage).bootCold},
	{"look", (*Stage).takePictures},
}

// Names are the acts in their order.
func Names() []string {
	var names []string
	for _, a := range acts {
		names = append(names, a.name)
	}
	return names
}

// notPlayed says why an act was not: no failure, and the run goes on.
type notPlayed string

func (n notPlayed) Error() string { return "not played: " + string(n) }

// Failed says which act failed.
type Failed struct {
	Act string
	Err error
}

func (f *Failed) Error() string { return fmt.Sprintf("act %q failed: %v", f.Act, f.Err) }
func (f *Failed) Unwrap() error { return f.Err }

// Run plays all acts and writes the report, also after a failure. It runs inside
// the sandbox.
func Run(ctx context.Context, o Options) error {
	began := time.Now()
	s, err := open(o)
	if err != nil {
		return err
	}
	defer s.end()

	o.Console.Header("veilor demo: one laptop, one town, one censor.", fmt.Sprintf("%d cores", runtime.NumCPU()))
	var failed *Failed
	for _, a := range acts {
		printed := o.Console.Begin(a.name)
		shown := report.Act{Name: a.name, Status: report.Skip}
		switch {
		case failed != nil:
			shown.Text = "needs act " + failed.Act
			printed.Skip(shown.Text)
		default:
			from := time.Now()
			text, err := a.play(s, ctx, printed)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			shown.Took, shown.Text, shown.Status = time.Since(from), cmp.Or(text, strings.Join(s.said, "; ")), report.Pass
			s.said = nil
			var why notPlayed
			switch {
			case errors.As(err, &why):
				shown.Text, shown.Status = string(why), report.Skip
				printed.Skip(shown.Text)
			case err != nil:
				failed = &Failed{a.name, err}
				s.autopsy(ctx)
				shown.Text, shown.Status = err.Error(), report.Fail
				printed.Fail(err)
			default:
				printed.Done("%s", text)
			}
		}
		s.page.Acts = append(s.page.Acts, shown)
		s.checks = append(s.checks, report.Check{ID: "act." + a.name, Title: "act " + a.name, Status: shown.Status, Note: shown.Text,
			Value: ptr(report.Seconds(shown.Took)), Unit: "s"})
		if a.name == o.Last {
			break
		}
	}
	if err := s.writeReport(began); err != nil {
		return err
	}
	o.Console.Note("report: %s", filepath.Join(o.Out, "report.html"))
	if failed != nil {
		o.Console.Note("logs:   %s", filepath.Join(o.Out, "logs"))
		return failed
	}
	return s.missed()
}

// missed tells which figures are beyond their limits. On a short run, which is
// for tests on machines that have other things to do, that is no failure: how
// fast this is, a run with time for it says.
func (s *Stage) missed() error {
	var all []error
	for _, c := range s.checks {
		if c.Status == report.Fail && c.Limit != nil {
			s.Console.Note("beyond its limit: %s", figure(c))
			all = append(all, fmt.Errorf("a figure is beyond its limit: %s", figure(c)))
		}
	}
	if s.Short {
		return nil
	}
	return errors.Join(all...)
}

func figure(c report.Check) string {
	return fmt.Sprintf("%s: %s %s, the limit is %s %s", c.Title, report.Number(*c.Value), c.Unit, report.Number(*c.Limit), c.Unit)
}

func ptr[T any](v T) *T { return &v }

func open(o Options) (*Stage, error) {
	for _, p := range []*string{&o.Source, &o.Out, &o.Cache} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("preparing the run: %w", err)
		}
		*p = abs
	}
	if o.Version == "" {
		o.Version = fmt.Sprintf("%d.lab.1", labsite.Release)
	}
	s := &Stage{Options: o}
	logs := filepath.Join(o.Out, "logs")
	if err := os.RemoveAll(logs); err != nil {
		return nil, fmt.Errorf("preparing the run: %w", err)
	}
	for _, d := range []string{logs, o.Cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("preparing the run: %w", err)
		}
	}
	log, err := os.Create(filepath.Join(logs, "lab.log"))
	if err != nil {
		return nil, fmt.Errorf("preparing the run: %w", err)
	}
	s.log = log
	s.close = append(s.close, func() { log.Close() })
	if s.run, err = scratch(); err != nil {
		s.end()
		return nil, err
	}
	s.close = append(s.close, func() { dropScratch(s.run) })
	return s, nil
}

// end closes what the acts have opened, last first.
func (s *Stage) end() {
	for i := len(s.close) - 1; i >= 0; i-- {
		s.close[i]()
	}
	s.close = nil
}

// logs is where a part of the lab puts its output.
func (s *Stage) logs(name string) string { return filepath.Join(s.Out, "logs", name) }

// wait is how long a phase lasts: long, or, in a short run, short.
func (s *Stage) wait(long, short time.Duration) time.Duration {
	if s.Short {
		return short
	}
	return long
}

// say prints a result of an act that has several.
func (s *Stage) say(a *console.Act, what, result string) {
	a.Line("%-31s %s", what+":", result)
	s.said = append(s.said, what+": "+result)
}

// check records a finding and returns an error if it is a bad one. A figure
// beyond its limit is no error here: the run goes on, and its end tells.
func (s *Stage) check(c report.Check) error {
	s.checks = append(s.checks, c)
	if c.Status != report.Fail || c.Limit != nil {
		return nil
	}
	return fmt.Errorf("%s: %s", c.Title, c.Note)
}
