// Package revocation revokes guests through the product, with live flows on both
// layers, and measures when the last one of them got through: many of them, with Headscale down, with the laptop asleep, through a public peer, and
// with the program killed half way.
//
// Everything is real: Headscale, tailscaled, veilor-ygg and its control socket,
// and `veilor-forge policy revoke` as the operator runs it on nullstone.
package revocation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/flows"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// Promise is within what every flow of a revoked machine must have ended.
	Promise = 60 * time.Second
	// Goal is what is aimed at.
	Goal = 5 * time.Second
	// settle is how long a watch must be quiet to be called over: more than a
	// SYN that is sent again (1 s, then 2 s) takes.
	settle = 3500 * time.Millisecond
	// atOnce is how many orders are given at a time: an order mostly waits for
	// the server's tailscaled to hear, so more cost no more than two cores bear.
	atOnce = 4
)

// Config says what to do.
type Config struct {
	World world.Config
	// Forge is the product's veilor-forge, SiteFile its site.
	Forge, SiteFile string
	// Authority is who signs the service's certificate.
	Authority *x509.CertPool
	// Dir is for the guests' keys and the orders. It must be empty, its path short.
	Dir string
	// Count guests are revoked while everybody answers, Batch of them joined at a time.
	Count, Batch int
	Progress     func(format string, args ...any)
}

// Times are what it took until the last flow, in seconds after the order; 0 if
// none got through after it.
type Times struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	Max float64 `json:"max"`
	N   int     `json:"n"`
}

func times(all []time.Duration) Times {
	if len(all) == 0 {
		return Times{}
	}
	all = slices.Clone(all)
	slices.Sort(all)
	at := func(p int) float64 {
		// Whole milliseconds, divided once, print without the noise of floats.
		return float64(all[min(len(all)-1, (len(all)*p+99)/100-1)].Milliseconds()) / 1000
	}
	return Times{P50: at(50), P95: at(95), Max: at(100), N: len(all)}
}

// Case is one way to be revoked.
type Case struct {
	Name string `json:"name"`
	// Guests were revoked, Missed of them got through after Promise.
	Guests int `json:"guests"`
	Missed int `json:"missed"`
	// What went wrong, if anything.
	Misses []string `json:"misses,omitempty"`
	// Fresh and Live are the last new connection and the last answer on an old
	// one, by layer, counted from the moment that Since names.
	Since string           `json:"since"`
	Fresh map[string]Times `json:"new_flows"`
	Live  map[string]Times `json:"live_flows"`
	// Command is how long the program ran.
	Command Times `json:"command"`

	withoutHere bool
	all         map[string][]time.Duration
	mu          sync.Mutex // of command and the misses
	command     []time.Duration
}

// Result is what was measured.
type Result struct {
	Cases []*Case `json:"cases"`
	// Bystander is somebody who was there all the time: kept connections that
	// ended, which must be none until the edge was blocked for everybody.
	BystanderEnded int `json:"bystander_connections_ended"`
}

// Holds says whether everything is as promised.
func (r *Result) Holds() error {
	var errs []error
	for _, c := range r.Cases {
		for _, m := range c.Misses {
			errs = append(errs, fmt.Errorf("%s: %s", c.Name, m))
		}
		for _, ts := range []map[string]Times{c.Fresh, c.Live} {
			for layer, t := range ts {
				if t.P95 > Promise.Seconds() {
					errs = append(errs, fmt.Errorf("%s: %s: p95 %.1f s", c.Name, layer, t.P95))
				}
			}
		}
	}
	if r.BystanderEnded > 0 {
		errs = append(errs, fmt.Errorf("the bystander lost %d connections", r.BystanderEnded))
	}
	return errors.Join(errs...)
}

// Slow are the figures beyond the goal. They break no promise, and a machine
// that is busy with something else has them.
func (r *Result) Slow() []string {
	var slow []string
	for _, c := range r.Cases {
		for kind, of := range map[string]map[string]Times{"new": c.Fresh, "live": c.Live} {
			for layer, t := range of {
				if t.P95 > Goal.Seconds() {
					slow = append(slow, fmt.Sprintf("%s: %s flows over %s: p95 %.1f s, the goal is %v", c.Name, kind, layer, t.P95, Goal))
				}
			}
		}
	}
	slices.Sort(slow)
	return slow
}

// run is one run.
type run struct {
	cfg     Config
	w       *world.World
	edge    *edge.Client
	seats   []*seat
	bystand *guest
	result  Result
	closers []func()
	serial  int
}

// Run measures.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	r := &run{cfg: cfg}
	defer func() {
		for _, f := range slices.Backward(r.closers) {
			f()
		}
	}()
	var err error
	if r.w, err = world.Start(ctx, cfg.World); err != nil {
		return nil, err
	}
	r.closers = append(r.closers, r.w.Close)
	if r.edge, err = edge.NewClient(r.w.Edge.Control()); err != nil {
		return nil, err
	}
	for i := range cfg.Batch + 1 {
		s, err := r.seat(i)
		if err != nil {
			return nil, err
		}
		r.seats = append(r.seats, s)
	}
	if r.bystand, err = r.join(ctx, r.seats[cfg.Batch], "bystander"); err != nil {
		return nil, err
	}
	defer r.bystand.stop()
	for _, f := range []func(context.Context) error{r.many, r.asleep, r.headscaleDown, r.killedHalfWay, r.publicPeer} {
		if err := f(ctx); err != nil {
			return &r.result, err
		}
	}
	return &r.result, r.w.Healthy()
}

// guests joins n of them at once.
func (r *run) guests(ctx context.Context, n int) ([]*guest, error) {
	gs := make([]*guest, n)
	group, ctx := errgroup.WithContext(ctx)
	for i := range gs {
		r.serial++
		name := fmt.Sprintf("guest-%d", r.serial)
		group.Go(func() (err error) {
			gs[i], err = r.join(ctx, r.seats[i], name)
			return err
		})
	}
	return gs, group.Wait()
}

func (r *run) begin(name, since string) *Case {
	r.cfg.Progress("%s", name)
	c := &Case{Name: name, Since: since, all: map[string][]time.Duration{}}
	r.result.Cases = append(r.result.Cases, c)
	return c
}

// miss counts a guest once, however often it got through.
func (c *Case) miss(who, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.ContainsFunc(c.Misses, func(m string) bool { return strings.HasPrefix(m, who+": ") }) {
		c.Missed++
	}
	c.Misses = append(c.Misses, who+": "+fmt.Sprintf(format, args...))
}

// finish waits until a guest has no flow on the given layers, and counts.
func (c *Case) finish(ctx context.Context, r *run, g *guest, from time.Time, layers ...string) {
	for layer, w := range map[string]*watch{"tailnet": g.tailnet, "yggdrasil": g.yggdrasil} {
		if !slices.Contains(layers, layer) {
			continue
		}
		fresh, live, err := w.quiet(ctx, from, settle)
		if err != nil {
			c.miss(g.name, "over %s: %v", layer, err)
		}
		c.all["new "+layer] = append(c.all["new "+layer], max(0, fresh.Sub(from)))
		c.all["live "+layer] = append(c.all["live "+layer], max(0, live.Sub(from)))
	}
	// Without --here nobody ends the server's sockets: what was left on them is
	// cut off with the layer.
	if n, err := flows.Count(r.w.Home.FD(), g.addresses()...); !c.withoutHere && (err != nil || n > 0) {
		c.miss(g.name, "the server has %d sockets with it (%v):\n%s", n, err, r.sockets(g))
	}
	// Nobody's word is taken for it: both are asked once more, not by the product.
	if nodes, err := r.w.Headscale.API.Nodes(ctx); err != nil {
		c.miss(g.name, "%v", err)
	} else {
		for _, n := range nodes {
			if n.Name == g.name || slices.Contains(n.Addresses, g.node.Address) {
				c.miss(g.name, "Headscale has node %s", n.ID)
			}
		}
	}
	if l, err := r.edge.Nodes(ctx); err != nil || l.Admits(g.key) || l.Connected(g.key) || !slices.Contains(l.Revoked, g.key) {
		c.miss(g.name, "the edge knows it: admitted %t, connected %t (%v)", l.Admits(g.key), l.Connected(g.key), err)
	}
	c.Guests++
}

// sockets are those of the server with a guest, as ss shows them, for people.
func (r *run) sockets(g *guest) string {
	var filter []string
	for _, a := range g.addresses() {
		filter = append(filter, "dst ["+a.String()+"]") // a bare IPv6 address would be a port to it
	}
	var out bytes.Buffer
	cmd := exec.Command("ss", "-Htuaneip", strings.Join(filter, " or "))
	cmd.Stdout = &out
	if err := r.w.Home.Run(cmd); err != nil {
		return err.Error()
	}
	return out.String()
}

func (c *Case) end(r *run) {
	c.Fresh, c.Live, c.Command = map[string]Times{}, map[string]Times{}, times(c.command)
	for what, all := range c.all {
		kind, layer, _ := strings.Cut(what, " ")
		if kind == "new" {
			c.Fresh[layer] = times(all)
		} else {
			c.Live[layer] = times(all)
		}
	}
	// A blocked edge ends everybody's connections; see publicPeer.
	r.bystand.tailnet.mu.Lock()
	r.bystand.yggdrasil.mu.Lock()
	r.result.BystanderEnded = r.bystand.tailnet.ended + r.bystand.yggdrasil.ended
	r.bystand.yggdrasil.mu.Unlock()
	r.bystand.tailnet.mu.Unlock()
	r.cfg.Progress("  %d guests, %d missed, since %s: new flows %v, live flows %v, command %v", c.Guests, c.Missed, c.Since, c.Fresh, c.Live, c.Command)
}

// revoke is the command that the operator types on nullstone.
func (r *run) revoke(args ...string) *exec.Cmd {
	cmd := exec.Command(r.cfg.Forge, append([]string{"policy", "revoke", "--site", r.cfg.SiteFile, "--edge", r.w.Edge.Control(),
		"--api-key-file", "-", "--queue", r.queue(), "--json", "--tailscaled-socket", filepath.Join(r.cfg.World.Run, "ts-"+r.cfg.World.Site.Services[0].Host, "sock")}, args...)...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+r.cfg.World.WebCA.CertFile())
	cmd.Stdin = strings.NewReader(r.w.Headscale.APIKey)
	return cmd
}

func (r *run) queue() string { return filepath.Join(r.cfg.Dir, "queue") }

// ordered runs the command and returns its exit code, and which kinds of place
// have not confirmed.
func (r *run) ordered(c *Case, args ...string) (code int, open []string, err error) {
	var out, errs bytes.Buffer
	cmd := r.revoke(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err = r.w.Home.Run(cmd)
	c.mu.Lock()
	c.command = append(c.command, time.Since(began))
	c.mu.Unlock()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	if err != nil {
		return code, nil, err
	}
	var answer struct {
		Orders []struct {
			Places []struct {
				Kind      string
				Confirmed *time.Time
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return code, nil, fmt.Errorf("revoking: %w: %s", err, errs.String())
	}
	for _, o := range answer.Orders {
		for _, p := range o.Places {
			if p.Confirmed == nil {
				open = append(open, p.Kind)
			}
		}
	}
	return code, open, nil
}

// many is the common case: everybody answers, and several orders are given at
// once, as an operator with a list gives them.
func (r *run) many(ctx context.Context) error {
	c := r.begin("everybody answers", "the order")
	for c.Guests < r.cfg.Count {
		gs, err := r.guests(ctx, min(r.cfg.Batch, r.cfg.Count-c.Guests))
		if err != nil {
			return err
		}
		ordered := make([]time.Time, len(gs))
		var group errgroup.Group
		group.SetLimit(atOnce)
		for i, g := range gs {
			group.Go(func() error {
				ordered[i] = time.Now()
				code, open, err := r.ordered(c, g.name, "--here")
				if err == nil && code != 0 {
					c.miss(g.name, "exit code %d, not confirmed: %v", code, open)
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i, g := range gs {
			c.finish(ctx, r, g, ordered[i], "tailnet", "yggdrasil")
		}
		var stopped sync.WaitGroup
		for _, g := range gs {
			stopped.Go(g.stop)
		}
		stopped.Wait()
		r.cfg.Progress("  %d of %d revoked, %d missed", c.Guests, r.cfg.Count, c.Missed)
	}
	c.end(r)
	return nil
}
