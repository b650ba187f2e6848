package act

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/vm"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// beat is the time between two requests.
	beat = 100 * time.Millisecond

	// Limits of the skeleton; the mesh issue lowers the first.
	firstGapLimit  = 2 * time.Second
	secondGapLimit = 3 * time.Second

	// returnLimit is how long the way back to the tailnet may take. tailscaled
	// was measured at 4 s after a drop block; emulation doubles it.
	returnLimit = 60 * time.Second

	// outageLimit is when an outage counts as the end of it: a person has closed
	// the page by then.
	outageLimit = 30 * time.Second

	// hitLimit is how long a block may go without stopping a packet; tailscaled
	// alone tries its control server and its peers every few seconds.
	hitLimit = 30 * time.Second

	// settle is the least that a phase lasts after the layer has changed.
	settle = 5 * time.Second
)

// client is the browser in the machine and what it has said so far.
type client struct {
	mu      sync.Mutex
	samples []browse.Sample
	changed chan struct{} // closed and renewed with every sample
	ended   chan struct{}
	err     error
}

func (c *client) add(b browse.Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples = append(c.samples, b)
	close(c.changed)
	c.changed = make(chan struct{})
}

// all are the samples so far, by our clock.
func (c *client) all() ([]browse.Sample, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, _ := browse.Offset(c.samples)
	return browse.Shift(c.samples, offset), c.changed
}

// ours is a moment of the machine's clock by our clock, as all has the samples.
func (c *client) ours(at time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, _ := browse.Offset(c.samples)
	return at.Add(offset)
}

// until waits for ok to hold of the samples.
func (c *client) until(ctx context.Context, limit time.Duration, what string, ok func([]browse.Sample) bool) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		samples, changed := c.all()
		if ok(samples) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return fmt.Errorf("%s: not within %v; %s", what, limit, lastWords(samples))
		case <-c.ended:
			return fmt.Errorf("%s: the client in the machine ended: %v", what, c.err)
		case <-changed:
		}
	}
}

func lastWords(samples []browse.Sample) string {
	if len(samples) == 0 {
		return "the client has not said anything"
	}
	s := samples[len(samples)-1]
	if s.OK {
		return fmt.Sprintf("request %d was answered over %s", s.N, s.Layer)
	}
	return fmt.Sprintf("request %d: %s", s.N, s.Err)
}

// listen hears what a client in the machine says until the machine ends.
func (s *Stage) listen() *client {
	c := &client{changed: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		c.err = browse.Read(s.machine.Events, time.Now, c.add)
	}()
	return c
}

// reach starts the client and sees the page over the tailnet.
func (s *Stage) reach(ctx context.Context, a *console.Act) (string, error) {
	service := s.site.Services[0].Name
	a.Step("a client in the machine fetches https://%s/ every %v", service, beat)
	// Once, before the clock runs: a browser's first page is slow for reasons of
	// its own (it reads the system's certificates, the code is not in memory).
	one, err := s.machine.Must(ctx, fmt.Sprintf("%s/browser --url https://%s/ --every 1s --for 3s --timeout 20s", dataMount, service))
	if err != nil {
		return "", err
	}
	fmt.Fprintln(s.log, one)
	s.browser = s.listen()
	// systemd-run and not &: the console stays free, and the journal has its words.
	start := fmt.Sprintf("systemd-run --quiet --unit=lab-browser %s/browser --url https://%s/ --every %v --out %s", dataMount, service, beat, vm.EventsPort)
	if _, err := s.machine.Must(ctx, start); err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.browser.until(ctx, returnLimit, "an answer over the tailnet", func(all []browse.Sample) bool {
		_, ok := browse.First(all, browse.Tailnet, began)
		return ok
	}); err != nil {
		return "", err
	}
	began = time.Now()
	if err := pause(ctx, s.wait(15*time.Second, settle)); err != nil {
		return "", err
	}
	if err := s.namesLayer(ctx, "reach", browse.Tailnet, "joined"); err != nil {
		return "", err
	}
	all, _ := s.browser.all()
	o := browse.Watch(all, browse.Stretch{From: began, To: time.Now().Add(-time.Second)})
	good := o.Layers[browse.Tailnet]
	// On a slow machine a handshake may take longer than the 250 ms after which
	// the forwarder tries its next layer; that one then rightly wins.
	var lost error
	if o.Lost > 0 || 2*good < o.Requests {
		lost = fmt.Errorf("%d of %d over the tailnet, %d lost", good, o.Requests, o.Lost)
	}
	if err := s.check(report.Held("reach.tailnet", service+" is reached over the tailnet", lost)); err != nil {
		return "", err
	}
	if err := s.nobodyElse(ctx, "reach", "joined"); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s over the tailnet, %d of %d requests", service, good, o.Requests), nil
}

// namesLayer holds `veilor status` against the layer that is in use.
func (s *Stage) namesLayer(ctx context.Context, id, layer, when string) error {
	if err := s.show(ctx, when, "veilor status"); err != nil {
		return err
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	var wrong error
	if len(st.Services) != 1 || st.Services[0].Layer != layer {
		wrong = fmt.Errorf("it says %+v", st.Services)
	}
	return s.check(report.Held(id+".status", "veilor status names "+layer+" as the layer in use", wrong))
}

// show keeps what a command prints, for the report.
func (s *Stage) show(ctx context.Context, when, command string) error {
	text, err := s.machine.Must(ctx, command)
	if err != nil {
		return err
	}
	s.page.Screens = append(s.page.Screens, report.Screen{When: when, Command: command, Text: text})
	return nil
}

// block takes the network away floor by floor and gives it back.
func (s *Stage) block(ctx context.Context, a *console.Act) (string, error) {
	first, err := s.phase(ctx, a, phase{
		id: "failover.tailnet-blocked", title: "UDP + control server dropped", layer: browse.Yggdrasil, limit: firstGapLimit,
		rules: []censor.Rule{censor.UDP(), censor.Host("control", world.Control)},
		hold:  s.wait(25*time.Second, 8*time.Second), via: s.site.Yggdrasil.Edges[0].Name,
	})
	if err != nil {
		return "", err
	}
	s.say(a, "UDP + control server dropped", fmt.Sprintf("next answer after %.2f s, over %s", first.Gap.Seconds(), first.GapLayer))
	second, err := s.phase(ctx, a, phase{
		id: "failover.edge-blocked", title: "edge dropped too", layer: browse.Yggdrasil, limit: secondGapLimit,
		rules: []censor.Rule{censor.Host("edge", world.EdgeAddress)},
		hold:  s.wait(25*time.Second, 10*time.Second), via: s.site.Yggdrasil.Public[0].Name,
	})
	if err != nil {
		return "", err
	}
	s.say(a, "edge dropped too", fmt.Sprintf("next answer after %.2f s, through the public peer", second.Gap.Seconds()))
	return "", s.unblock(ctx, a)
}

// phase is one thing that the ISP does, and what must hold then.
type phase struct {
	id, title string
	rules     []censor.Rule
	layer     string // that must carry the page
	via       string // the peer that `veilor status` must name
	limit     time.Duration
	hold      time.Duration
}

func (s *Stage) phase(ctx context.Context, a *console.Act, p phase) (browse.Outage, error) {
	a.Step("%s", p.title)
	from := time.Now()
	if err := s.world.Censor.Block(p.rules...); err != nil {
		return browse.Outage{}, err
	}
	err := s.browser.until(ctx, outageLimit, p.title+": an answer over "+p.layer, func(all []browse.Sample) bool {
		return browse.Watch(all, browse.Stretch{From: from, To: time.Now()}).HasGap
	})
	if err == nil {
		err = pause(ctx, p.hold)
	}
	to := time.Now()
	all, _ := s.browser.all()
	o := browse.Watch(all, browse.Stretch{From: from, To: to})
	s.page.Bands = append(s.page.Bands, report.Band{From: from, To: to, Text: p.title,
		Result: fmt.Sprintf("next answer after %.2f s, over %s", o.Gap.Seconds(), o.GapLayer)})
	if err != nil {
		return o, err
	}
	for _, r := range p.rules {
		// A daemon that has gone quiet may take a while to try again.
		limited, cancel := context.WithTimeout(ctx, hitLimit)
		err := s.world.Censor.AwaitHit(limited, r.Name)
		cancel()
		if err != nil {
			return o, fmt.Errorf("the block was not felt, so nothing is shown: %w", err)
		}
	}
	if o.Layers[p.layer] == 0 || o.GapLayer != p.layer {
		return o, fmt.Errorf("%s: the answers came over %v", p.title, o.Layers)
	}
	if err := s.check(report.AtMost(p.id, p.title+": time to the next answer", o.Gap.Seconds(), p.limit.Seconds(), "s").
		With("%d of %d requests answered, longest silence %.2f s", o.Requests-o.Lost, o.Requests, o.Silence.Seconds())); err != nil {
		return o, err
	}
	if err := s.namesLayer(ctx, p.id, p.layer, p.title); err != nil {
		return o, err
	}
	st, err := s.status(ctx)
	if err != nil {
		return o, err
	}
	var wrong error
	if st.Yggdrasil.Peer != p.via {
		wrong = fmt.Errorf("it names %q", st.Yggdrasil.Peer)
	}
	return o, s.check(report.Held(p.id+".peer", "Yggdrasil goes through "+p.via+" and no other", wrong))
}

// unblock lifts everything and waits for the tailnet to carry the page again.
func (s *Stage) unblock(ctx context.Context, a *console.Act) error {
	a.Step("unblocked; waiting for the tailnet")
	from := time.Now()
	if _, err := s.world.Censor.Clear(); err != nil {
		return err
	}
	// Every block has lasted until now, each on top of those before it.
	for i := range s.page.Bands {
		s.page.Bands[i].To = from
	}
	var back time.Time
	err := s.browser.until(ctx, returnLimit, "back on the tailnet", func(all []browse.Sample) bool {
		var ok bool
		back, ok = browse.First(all, browse.Tailnet, from)
		return ok
	})
	if err == nil {
		err = pause(ctx, s.wait(15*time.Second, settle))
	}
	to := time.Now()
	all, _ := s.browser.all()
	o := browse.Watch(all, browse.Stretch{From: from, To: to.Add(-time.Second)})
	result := fmt.Sprintf("back on the tailnet after %.1f s, %d requests lost", back.Sub(from).Seconds(), o.Lost)
	s.page.Bands = append(s.page.Bands, report.Band{From: from, To: to, Text: "unblocked", Result: result, Lifted: true})
	if err != nil {
		return err
	}
	if err := s.check(report.AtMost("failover.return", "unblocked: time to the tailnet", back.Sub(from).Seconds(), returnLimit.Seconds(), "s")); err != nil {
		return err
	}
	if err := s.namesLayer(ctx, "failover.return", browse.Tailnet, "unblocked"); err != nil {
		return err
	}
	s.say(a, "unblocked", result)
	if err := s.weigh(ctx); err != nil {
		return err
	}
	if err := s.nobodyElse(ctx, "failover", "unblocked"); err != nil {
		return err
	}
	return s.world.Healthy()
}

// weigh reads the memory of the daemons in the machine.
func (s *Stage) weigh(ctx context.Context) error {
	for _, unit := range []string{"veilor-mesh", "veilor-ygg", "tailscaled"} {
		out, err := s.machine.Must(ctx, "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(systemctl show -P MainPID "+unit+")/status")
		if err != nil {
			return err
		}
		kib, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			return fmt.Errorf("reading the memory of %s: %w", unit, err)
		}
		s.checks = append(s.checks, report.Fact("memory."+unit, "memory (RSS) of "+unit, float64(kib)*1024/1e6, "MB"))
	}
	return nil
}

// pause waits, unless the run ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
