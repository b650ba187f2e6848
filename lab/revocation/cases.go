package revocation

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/world"
)

// asleep revokes a laptop that is suspended. When it wakes, its programs know of
// nothing, and must get nowhere.
func (r *run) asleep(ctx context.Context) error {
	c := r.begin("the laptop is asleep", "it woke")
	gs, err := r.guests(ctx, 1)
	if err != nil {
		return err
	}
	g := gs[0]
	defer g.stop()
	if err := g.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	code, open, err := r.ordered(c, g.name, "--here")
	if err != nil {
		return err
	}
	if code != 0 {
		c.miss(g.name, "exit code %d, not confirmed: %v", code, open)
	}
	woke := time.Now()
	if err := g.signal(syscall.SIGCONT); err != nil {
		return err
	}
	c.finish(ctx, r, g, woke, "tailnet", "yggdrasil")
	c.end(r)
	return nil
}

// headscaleDown revokes two guests while Headscale is down. The edge is closed
// at once for both. The tailnet of one waits for Headscale; for the other, the
// server's own packet filter closes it at once.
func (r *run) headscaleDown(ctx context.Context) error {
	const ygg, both, back = "Headscale is down: Yggdrasil", "Headscale is down: tailnet, with the server's packet filter", "Headscale comes back: tailnet, without"
	cy := r.begin(ygg, "the order")
	gs, err := r.guests(ctx, 2)
	if err != nil {
		return err
	}
	defer gs[0].stop()
	defer gs[1].stop()
	unload, err := r.filter(append(gs, r.bystand)...)
	if err != nil {
		return err
	}
	defer unload()
	r.w.Headscale.Stop()
	// The world ends what it started itself.
	r.closers = append(r.closers, func() { r.w.Headscale.Stop() })
	var ordered [2]time.Time
	for i, flags := range [][]string{nil, {"--here"}} {
		ordered[i] = time.Now()
		code, open, err := r.ordered(cy, append([]string{gs[i].name}, flags...)...)
		if err != nil {
			return err
		}
		if code != 1 || !slices.Equal(open, []string{"tailnet"}) {
			cy.miss(gs[i].name, "exit code %d, not confirmed: %v; want 1 and the tailnet only", code, open)
		}
	}
	early := func(c *Case, g *guest, w *watch, layer string, from time.Time) {
		fresh, live, err := w.quiet(ctx, from, settle)
		if err != nil {
			c.miss(g.name, "over %s: %v", layer, err)
		}
		c.all["new "+layer] = append(c.all["new "+layer], max(0, fresh.Sub(from)))
		c.all["live "+layer] = append(c.all["live "+layer], max(0, live.Sub(from)))
		c.Guests++
	}
	for i, g := range gs {
		early(cy, g, g.yggdrasil, "yggdrasil", ordered[i])
	}
	cy.end(r)
	cb := r.begin(both, "the order")
	early(cb, gs[1], gs[1].tailnet, "tailnet", ordered[1])
	cb.end(r)

	// The retry is running when Headscale returns, as it does in a server.
	ck := r.begin(back, "Headscale answered")
	ck.withoutHere = true
	if err := gs[0].tailnet.alive(ctx); err != nil {
		ck.miss(gs[0].name, "had no tailnet to lose: %v", err)
	}
	resumed := make(chan error, 1)
	go func() {
		code, open, err := r.ordered(ck, "--resume", "--wait", "5m")
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d, not confirmed: %v", code, open)
		}
		resumed <- err
	}()
	if err := r.w.Headscale.Restart(ctx); err != nil {
		return err
	}
	returned := time.Now()
	if err := <-resumed; err != nil {
		ck.miss(gs[0].name, "--resume: %v", err)
	}
	ck.finish(ctx, r, gs[0], returned, "tailnet")
	cb.finish(ctx, r, gs[1], ordered[1])
	cb.Guests--
	ck.end(r)
	return nil
}

// filter puts the tailnet's packet filter in force on nullstone, as `veilor-forge
// policy render` writes it for machines that are known by their addresses.
func (r *run) filter(gs ...*guest) (unload func(), err error) {
	p, err := tier.New(r.cfg.World.Site)
	if err != nil {
		return nil, err
	}
	var ms []tier.Machine
	for _, g := range gs {
		ms = append(ms, tier.Machine{Name: g.name, Tier: tier.Guest, Tailnet: g.addresses()[:1]})
	}
	f, err := p.Fleet(ms...)
	if err != nil {
		return nil, err
	}
	self, ok := f.ByName(r.cfg.World.Site.Services[0].Host)
	if !ok {
		return nil, fmt.Errorf("the site has no host of its service")
	}
	t, err := packetfilter.Compile(f, self, tier.Tailnet)
	if err != nil {
		return nil, err
	}
	in := nftables.WithNetNSFd(r.w.Home.FD())
	if err := t.Load(in); err != nil {
		return nil, err
	}
	return func() {
		if c, err := nftables.New(in); err == nil {
			c.DelTable(&nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet})
			c.Flush()
		}
	}, nil
}

// killedHalfWay kills the program with SIGKILL while Headscale hangs, after the
// edge has confirmed. The next run does what is left.
func (r *run) killedHalfWay(ctx context.Context) error {
	c := r.begin("killed half way, then resumed", "the second run")
	gs, err := r.guests(ctx, 1)
	if err != nil {
		return err
	}
	g := gs[0]
	defer g.stop()
	if err := syscall.Kill(r.w.Headscale.PID(), syscall.SIGSTOP); err != nil {
		return err
	}
	cmd := r.revoke(g.name, "--here")
	if err := r.w.Home.Start(cmd); err != nil {
		return err
	}
	if err := r.await(ctx, filepath.Join(r.queue(), g.name+".json"), "refused"); err != nil {
		return err
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := syscall.Kill(r.w.Headscale.PID(), syscall.SIGCONT); err != nil {
		return err
	}
	again := time.Now()
	code, open, err := r.ordered(c, "--resume", "--wait", "1m")
	if err != nil {
		return err
	}
	if code != 0 {
		c.miss(g.name, "exit code %d, not confirmed: %v", code, open)
	}
	c.finish(ctx, r, g, again, "tailnet", "yggdrasil")
	c.end(r)
	return nil
}

// await waits until a file has a text in it.
func (r *run) await(ctx context.Context, file, text string) error {
	ctx, cancel := context.WithTimeout(ctx, Promise)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), text) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q in %s: %w", text, file, context.Cause(ctx))
		}
	}
}

// publicPeer revokes a guest that comes through the public peer, past the edge's
// admission: the server must drop it by its address. It is the last, since
// blocking the edge ends everybody's peering with it.
func (r *run) publicPeer(ctx context.Context) error {
	ended := r.result.BystanderEnded
	c := r.begin("through a public peer", "the order")
	gs, err := r.guests(ctx, 1)
	if err != nil {
		return err
	}
	g := gs[0]
	defer g.stop()
	if err := r.w.Censor.Block(censor.Host("edge", world.EdgeAddress)); err != nil {
		return err
	}
	if err := r.w.Censor.AwaitHit(ctx, "edge"); err != nil {
		return err
	}
	// What was under way to the edge is given up, and the rest is by the peer.
	if _, _, err := g.yggdrasil.moved(ctx); err != nil {
		return fmt.Errorf("reaching the service through the public peer: %w", err)
	}
	ordered := time.Now()
	code, open, err := r.ordered(c, g.name, "--here")
	if err != nil {
		return err
	}
	if code != 0 {
		c.miss(g.name, "exit code %d, not confirmed: %v", code, open)
	}
	c.finish(ctx, r, g, ordered, "tailnet", "yggdrasil")
	c.end(r)
	// The bystander moved too; it must be reaching the service all the same.
	if err := r.bystand.yggdrasil.alive(ctx); err != nil {
		c.miss(r.bystand.name, "%v", err)
	}
	r.result.BystanderEnded = ended
	_, err = r.w.Censor.Clear()
	return err
}

// moved waits for flows that began a while after the edge was blocked: a packet
// that was let through before cannot be one.
func (w *watch) moved(ctx context.Context) (fresh, live time.Time, err error) {
	const sure = 3 * time.Second
	t := time.NewTimer(sure)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return fresh, live, context.Cause(ctx)
	}
	err = w.alive(ctx)
	fresh, live = w.last()
	return fresh, live, err
}
