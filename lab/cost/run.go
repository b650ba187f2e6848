package cost

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// settle is from the last use of a service until the idle time begins: the
	// forwarder asks a layer for a minute after the last demand, and tailscaled
	// keeps a path open for two.
	settle = 2 * time.Minute
	day    = 24 * time.Hour

	// warmRuns of `veilor status` follow each other, before each of coldRuns there
	// is a rest, longer than an answer of a layer counts as present knowledge.
	warmRuns = 50
	coldRuns = 10
	rest     = 11 * time.Second

	// The questions that are too rare to be met: internal/directory asks every 25
	// minutes, internal/forward tries the fallback every 2 to 10 hours.
	directoryEvery = 25 * time.Minute
	canaryEvery    = 6 * time.Hour
	// requests is how many are made to know what one costs.
	requests = 20
)

// Options of a measurement.
type Options struct {
	// Idle is how long the daemons are watched.
	Idle time.Duration
	// Progress is told what is measured next.
	Progress func(format string, args ...any)
}

// town is a world with a laptop in it.
type town struct {
	world     *world.World
	laptop    *laptop.Laptop
	service   string
	loopback  netip.AddrPort // the forwarder's
	authority *x509.CertPool
	// relay is a program's file, and logs a directory.
	relay, logs string
	say         func(format string, args ...any)
}

func (t *town) client(at netip.AddrPort, keep bool) *client {
	return newClient(t.world.Guest, t.service, at, t.authority, keep)
}

// Measure brings a world up and fills in what is measured there: Idle, Status
// and Paths.
func (r *Record) Measure(ctx context.Context, f *outfit.Outfit, o Options) error {
	// nullstone has the tiers' table, as a real one: it is in the way of every packet.
	f.World.Guest, f.World.SiteFile = true, f.Lab.File
	w, err := world.Start(ctx, f.World)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Masquerade(); err != nil {
		return err
	}
	l, err := laptop.Start(ctx, w, laptop.Config{
		Veilor: f.Programs.Veilor, VeilorYgg: f.Programs.Ygg, Site: f.Lab.Site, SiteFile: f.Lab.File,
		// What the system of a real laptop trusts: the web's authorities.
		Roots: f.World.WebCA.CertFile(), Dir: f.At("laptop"), Logs: f.World.Logs,
	})
	if err != nil {
		return err
	}
	defer l.Stop()
	s := f.Lab.Site.Services[0]
	t := &town{world: w, laptop: l, service: s.Name, loopback: netip.AddrPortFrom(s.Loopback, 443), authority: f.Authority, relay: f.Programs.Relay, logs: f.World.Logs, say: o.Progress}
	if r.Versions, err = program.Versions(f.Programs); err != nil {
		return err
	}
	stop, err := t.startNotifier(ctx, f, o.Progress)
	if err != nil {
		return err
	}
	defer stop()
	if err := t.await(ctx, tailnet); err != nil {
		return fmt.Errorf("using the service once: %w", err)
	}
	if r.Idle, err = t.measureIdle(ctx, o.Idle); err != nil {
		return err
	}
	t.say("veilor status")
	if r.Status.Cold, err = t.askStatus(ctx, coldRuns, rest); err != nil {
		return err
	}
	if r.Status.Warm, err = t.askStatus(ctx, warmRuns, 0); err != nil {
		return err
	}
	if r.Paths, err = t.measurePaths(ctx); err != nil {
		return err
	}
	return l.Exited()
}

// log is the file of a program's output.
func (t *town) log(name string) string { return filepath.Join(t.logs, name+".log") }

// state is everything that is counted, at one time.
type state struct {
	at      time.Time
	cpu     map[string]time.Duration
	wire    map[string]Wire
	tunnels map[string]Wire
}

func (t *town) state(pids map[string]int, m *meter) (s state, err error) {
	s.cpu = map[string]time.Duration{}
	for name, pid := range pids {
		if s.cpu[name], err = processorTime(pid); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
	}
	if s.wire, err = m.read(); err != nil {
		return s, err
	}
	all, err := interfacesOf(pids[mesh])
	if err != nil {
		return s, err
	}
	s.tunnels = map[string]Wire{}
	for _, name := range []string{"tailscale0", "ygg0"} {
		s.tunnels[name] = all[name]
	}
	s.at = time.Now()
	return s, nil
}

func (t *town) measureIdle(ctx context.Context, d time.Duration) (Idle, error) {
	all, err := inNamespace(t.world.Guest.Path())
	if err != nil {
		return Idle{}, err
	}
	pids, err := daemonsOf(all)
	if err != nil {
		return Idle{}, err
	}
	m, err := newMeter(t.world.ISP.FD())
	if err != nil {
		return Idle{}, err
	}
	t.say("what a page costs")
	request, err := t.measureRequest(ctx, m)
	if err != nil {
		return Idle{}, err
	}
	t.say("settling for %v", settle)
	if err := pause(ctx, settle); err != nil {
		return Idle{}, err
	}
	t.say("idle for %v", d)
	before, err := t.state(pids, m)
	if err != nil {
		return Idle{}, err
	}
	if err := pause(ctx, d); err != nil {
		return Idle{}, err
	}
	after, err := t.state(pids, m)
	if err != nil {
		return Idle{}, err
	}
	took := after.at.Sub(before.at)
	daily := float64(day) / float64(took)
	i := Idle{
		Seconds: took.Seconds(), Tunnels: map[string]Wire{}, Names: after.wire[questions].minus(before.wire[questions]).times(daily),
		Request: request, Rare: request.times(float64(day)/float64(directoryEvery) + float64(day)/float64(canaryEvery)),
	}
	for _, name := range daemons {
		if pids[name] == 0 {
			continue
		}
		memory, err := memoryOf(pids[name])
		if err != nil {
			return Idle{}, fmt.Errorf("%s: %w", name, err)
		}
		cpu := (after.cpu[name] - before.cpu[name]).Seconds()
		i.Daemons = append(i.Daemons, Daemon{
			Name: name, Ours: ours(name), Memory: memory, CPU: cpu, Core: 100 * cpu / took.Seconds(),
			Day: after.wire[name].minus(before.wire[name]).times(daily),
		})
	}
	for name := range after.tunnels {
		i.Tunnels[name] = after.tunnels[name].minus(before.tunnels[name])
	}
	return i, nil
}

// measureRequest is what one page over a new connection has on the wire, on
// average, everything that the overlays say meanwhile included.
func (t *town) measureRequest(ctx context.Context, m *meter) (Wire, error) {
	c := t.client(t.loopback, false)
	before, err := m.read()
	if err != nil {
		return Wire{}, err
	}
	for range requests {
		if _, _, err := c.get(ctx, "/"); err != nil {
			return Wire{}, fmt.Errorf("fetching a page: %w", err)
		}
	}
	after, err := m.read()
	if err != nil {
		return Wire{}, err
	}
	return after[tailscaled].minus(before[tailscaled]).times(1.0 / requests), nil
}

// askStatus runs `veilor status`, with a rest before each.
func (t *town) askStatus(ctx context.Context, runs int, rest time.Duration) (Times, error) {
	var all []time.Duration
	for range runs {
		if err := pause(ctx, rest); err != nil {
			return Times{}, err
		}
		began := time.Now()
		out, err := t.laptop.Veilor("status")
		if err != nil {
			return Times{}, err
		}
		if !strings.Contains(out, t.service) {
			return Times{}, fmt.Errorf("veilor status says nothing of %s:\n%s", t.service, out)
		}
		all = append(all, time.Since(began))
	}
	return timesOf(all, time.Millisecond), nil
}
