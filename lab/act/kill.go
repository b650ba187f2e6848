package act

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/lab/browse"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
)

const (
	// unitPoll is the time between two looks at a unit or at `veilor status`, each
	// of which costs an emulated machine about as much.
	unitPoll = 200 * time.Millisecond

	// restartLimit ends the waiting for systemd and for what a daemon needs then.
	restartLimit = 60 * time.Second

	// peeringBackLimit: systemd starts veilor-ygg anew after 2 s (its RestartSec),
	// the peering takes a TLS connection and an admission, and the forwarder wants
	// two answers, a probe's second apart, before it trusts a layer that was gone.
	// The rest is for programs that start on an emulated processor.
	peeringBackLimit = 15 * time.Second

	// pageBackLimit: systemd starts veilor-mesh anew after 1 s (its RestartSec), in
	// two programs, each of which takes a second or two on an emulated processor. A
	// person has pressed reload by then.
	pageBackLimit = 10 * time.Second

	// steady is how many answers in a row, a second's, say that the tailnet carries
	// the page again and that no request is under way over the other layer.
	steady = 10
)

// killed is a daemon that has had no time to say goodbye.
type killed struct {
	unit string
	// restarts are those that systemd had counted before.
	restarts int
	// before and after it was done. By the machine's clock first, as the client's
	// samples, and then by ours, as they are.
	before, after time.Time
}

// killDaemons ends every daemon of the mesh by kill -9, one after the other, while
// the client goes on. systemd has to bring each back.
func (s *Stage) killDaemons(ctx context.Context, a *console.Act) (string, error) {
	from := time.Now()
	var all []killed
	var results []string
	for _, d := range []struct {
		unit string
		then func(context.Context, killed) (string, error)
	}{
		{"veilor-ygg", s.withoutYgg},
		{"veilor-mesh", s.withoutMesh},
		{"tailscaled", s.withoutTailscaled},
	} {
		a.Step("kill -9 of %s", d.unit)
		if err := s.awaitWhole(ctx); err != nil {
			return "", err
		}
		k, err := s.kill(ctx, d.unit)
		if err != nil {
			return "", err
		}
		if err := s.awaitRestart(ctx, k); err != nil {
			return "", err
		}
		text, err := d.then(ctx, k)
		if err != nil {
			return "", err
		}
		s.say(a, "kill -9 of "+d.unit, text)
		results = append(results, d.unit+": "+text)
		all = append(all, k)
	}
	if err := s.awaitWhole(ctx); err != nil {
		return "", err
	}
	s.page.Bands = append(s.page.Bands, report.Band{From: from, To: time.Now(), Text: "kill -9 of each daemon",
		Result: strings.Join(results, "; "), Lifted: true})
	if err := s.broughtBack(ctx, all); err != nil {
		return "", err
	}
	if err := s.namesLayer(ctx, "killed", browse.Tailnet, "after kill -9 of each daemon"); err != nil {
		return "", err
	}
	if err := s.nobodyElse(ctx, "killed", "after kill -9 of each daemon"); err != nil {
		return "", err
	}
	return "", s.world.Healthy()
}

// awaitWhole waits until the fallback is up and the tailnet alone carries the page.
func (s *Stage) awaitWhole(ctx context.Context) error {
	if err := s.awaitFallback(ctx, "before a daemon is killed"); err != nil {
		return err
	}
	return s.browser.until(ctx, returnLimit, fmt.Sprintf("%d answers in a row over the tailnet", steady), func(all []browse.Sample) bool {
		if len(all) < steady {
			return false
		}
		for _, b := range all[len(all)-steady:] {
			if b.Layer != browse.Tailnet {
				return false
			}
		}
		return true
	})
}

// awaitFallback waits until `veilor status`, which asks a layer that nobody uses,
// says that Yggdrasil has its peer and reaches the service.
func (s *Stage) awaitFallback(ctx context.Context, when string) error {
	return s.poll(ctx, when+": Yggdrasil reaches the service", func() (bool, error) {
		st, err := s.status(ctx)
		return err == nil && st.Yggdrasil.Up && st.layer(browse.Yggdrasil) == mesh.Up.String(), err
	})
}

// kill ends a daemon. `systemctl kill` returns when the signal is sent, so that no
// request that begins after that meets the daemon that was.
func (s *Stage) kill(ctx context.Context, unit string) (killed, error) {
	k := killed{unit: unit}
	restarts, active, err := s.unit(ctx, unit)
	if err != nil {
		return k, err
	}
	if !active {
		return k, fmt.Errorf("killing %s: it does not run", unit)
	}
	k.restarts = restarts
	out, err := s.machine.Must(ctx, "date +%s%N && systemctl kill -s KILL "+unit+" && date +%s%N")
	if err != nil {
		return k, err
	}
	times := strings.Fields(out)
	if len(times) != 2 {
		return k, fmt.Errorf("killing %s: reading when that was: %q", unit, out)
	}
	for i, t := range []*time.Time{&k.before, &k.after} {
		n, err := strconv.ParseInt(times[i], 10, 64)
		if err != nil {
			return k, fmt.Errorf("killing %s: reading when that was: %w", unit, err)
		}
		*t = s.browser.ours(time.Unix(0, n))
	}
	return k, nil
}

// unit is how often systemd has brought a unit back by itself, and whether it
// runs.
func (s *Stage) unit(ctx context.Context, name string) (restarts int, active bool, err error) {
	out, err := s.machine.Must(ctx, "systemctl show -P NRestarts "+name+" && systemctl show -P ActiveState "+name)
	if err != nil {
		return 0, false, err
	}
	n, state, _ := strings.Cut(out, "\n")
	if restarts, err = strconv.Atoi(strings.TrimSpace(n)); err != nil {
		return 0, false, fmt.Errorf("reading the restarts of %s: %w", name, err)
	}
	return restarts, strings.TrimSpace(state) == "active", nil
}

// awaitRestart waits until systemd has brought the daemon back and it says that it
// is ready.
func (s *Stage) awaitRestart(ctx context.Context, k killed) error {
	return s.poll(ctx, "kill -9 of "+k.unit+": systemd has it run again", func() (bool, error) {
		restarts, active, err := s.unit(ctx, k.unit)
		return active && restarts > k.restarts, err
	})
}

// poll asks the machine until the answer is yes.
func (s *Stage) poll(ctx context.Context, what string, ask func() (bool, error)) error {
	for began := time.Now(); ; {
		ok, err := ask()
		if ok || err != nil {
			return err
		}
		if time.Since(began) > restartLimit {
			return fmt.Errorf("%s: not within %v", what, restartLimit)
		}
		if err := pause(ctx, unitPoll); err != nil {
			return err
		}
	}
}

// broughtBack holds that systemd has brought every daemon back, and only once:
// none of them has fallen again over what it found.
func (s *Stage) broughtBack(ctx context.Context, all []killed) error {
	var wrong []error
	var words []string
	for _, k := range all {
		restarts, active, err := s.unit(ctx, k.unit)
		if err != nil {
			return err
		}
		if !active || restarts != k.restarts+1 {
			wrong = append(wrong, fmt.Errorf("%s: NRestarts was %d and is %d, active: %v", k.unit, k.restarts, restarts, active))
		}
		words = append(words, fmt.Sprintf("%s %d to %d", k.unit, k.restarts, restarts))
	}
	c := report.Held("killed.systemd", "systemd brings each daemon back after kill -9, once", errors.Join(wrong...))
	if c.Status == report.Pass {
		c = c.With("NRestarts: %s", strings.Join(words, ", "))
	}
	return s.check(c)
}

// withoutYgg: the fallback was gone, and nobody has noticed.
func (s *Stage) withoutYgg(ctx context.Context, k killed) (string, error) {
	if err := s.awaitFallback(ctx, "kill -9 of "+k.unit); err != nil {
		return "", err
	}
	took := time.Since(k.after)
	o, failed, err := s.watchAll(ctx, k.before)
	if err != nil {
		return "", err
	}
	if err := s.check(report.Held("killed."+k.unit+".lost", "kill -9 of "+k.unit+": no request over the tailnet is lost", failed)); err != nil {
		return "", err
	}
	return fmt.Sprintf("peering and fallback up after %.1f s, %d of %d requests lost", took.Seconds(), o.Lost, o.Requests),
		s.check(report.AtMost("killed."+k.unit, "kill -9 of "+k.unit+": time to peering and fallback", took.Seconds(), peeringBackLimit.Seconds(), "s"))
}

// withoutMesh: nobody could answer, but not for long.
func (s *Stage) withoutMesh(ctx context.Context, k killed) (string, error) {
	if err := s.browser.until(ctx, outageLimit, "kill -9 of "+k.unit+": an answer", func(all []browse.Sample) bool {
		return browse.Watch(all, browse.Stretch{From: k.after, To: time.Now()}).HasGap
	}); err != nil {
		return "", err
	}
	o, _, err := s.watchAll(ctx, k.after)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("next answer after %.2f s", o.Gap.Seconds()),
		s.check(report.AtMost("killed."+k.unit, "kill -9 of "+k.unit+": time to the next answer", o.Gap.Seconds(), pageBackLimit.Seconds(), "s").
			With("%d of %d requests answered", o.Requests-o.Lost, o.Requests))
}

// withoutTailscaled: the fallback has carried the page until the tailnet was back.
func (s *Stage) withoutTailscaled(ctx context.Context, k killed) (string, error) {
	var back time.Time
	if err := s.browser.until(ctx, returnLimit, "kill -9 of "+k.unit+": back on the tailnet", func(all []browse.Sample) (ok bool) {
		back, ok = browse.First(all, browse.Tailnet, k.after)
		return ok
	}); err != nil {
		return "", err
	}
	o, _, err := s.watchAll(ctx, k.after)
	if err != nil {
		return "", err
	}
	if o.GapLayer != browse.Yggdrasil {
		return "", fmt.Errorf("kill -9 of %s: the next answer came over %q; all: %v", k.unit, o.GapLayer, o.Layers)
	}
	if err := s.check(report.AtMost("killed."+k.unit, "kill -9 of "+k.unit+": time to the next answer, over "+o.GapLayer, o.Gap.Seconds(), firstGapLimit.Seconds(), "s").
		With("%d of %d requests answered", o.Requests-o.Lost, o.Requests)); err != nil {
		return "", err
	}
	return fmt.Sprintf("next answer after %.2f s, over %s; tailnet after %.1f s", o.Gap.Seconds(), o.GapLayer, back.Sub(k.after).Seconds()),
		s.check(report.AtMost("killed."+k.unit+".return", "kill -9 of "+k.unit+": time to the tailnet", back.Sub(k.after).Seconds(), returnLimit.Seconds(), "s"))
}

// watchAll is what the client has seen from a moment on, once every request that
// has begun until now is over. The error tells of requests that were lost.
func (s *Stage) watchAll(ctx context.Context, from time.Time) (o browse.Outage, lost, err error) {
	in := browse.Stretch{From: from, To: time.Now()}
	err = s.browser.until(ctx, outageLimit, "the end of the requests that have begun", func(all []browse.Sample) bool {
		return over(all, in.To)
	})
	if err != nil {
		return o, nil, err
	}
	all, _ := s.browser.all()
	if o = browse.Watch(all, in); o.Lost > 0 {
		var words []string
		for _, b := range all {
			if !b.OK && !b.Began().Before(in.From) && b.Began().Before(in.To) {
				words = append(words, fmt.Sprintf("request %d: %s", b.N, b.Err))
			}
		}
		lost = fmt.Errorf("%d of %d: %s", o.Lost, o.Requests, strings.Join(words, "; "))
	}
	return o, lost, nil
}

// over says that every request that began before a moment has ended, well or not:
// one that began later is known, and none with a lower number is missing.
func over(all []browse.Sample, moment time.Time) bool {
	first, next := 0, 0 // the lowest number, and that of the first to begin later
	for _, b := range all {
		if first == 0 || b.N < first {
			first = b.N
		}
		if !b.Began().Before(moment) && (next == 0 || b.N < next) {
			next = b.N
		}
	}
	known := 0
	for _, b := range all {
		if b.N < next {
			known++
		}
	}
	return next > 0 && known == next-first
}
