package forbidden

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"

	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/world"
)

// Condition is what the ISP does to the guest meanwhile.
type Condition struct {
	// Name and Text are the record's.
	Name, Text string
	Rules      []censor.Rule
	// Layers are those that still carry the guest to the service.
	Layers []tier.Layer
	// Find says that nobody knows them before: whichever layers answer it are they.
	// Some says that one of them must.
	Find, Some bool
	// Hit are the names of the rules that must act on something; empty means all.
	Hit []string
	// Begin and End do what is no rule.
	Begin, End func(context.Context, *floors.Town) error
}

// Conditions are those of the floors.
func Conditions() []Condition {
	both := func(a netip.Addr) []netip.Addr { return []netip.Addr{a, world.Twin(a)} }
	blocked := []censor.Rule{censor.UDP(), censor.Host("control", both(world.Control)...)}
	edges := censor.Host("edge", append(both(world.EdgeAddress), both(world.FarEdgeAddress)...)...)
	return []Condition{
		{Name: "open", Text: "the ISP lets everything pass", Layers: []tier.Layer{tier.Tailnet, tier.Yggdrasil}},
		{Name: "tailnet-blocked", Text: "UDP and the control server are dropped", Rules: blocked, Layers: []tier.Layer{tier.Yggdrasil}},
		{Name: "edge-blocked", Text: "UDP, the control server and every edge are dropped",
			Rules: append(slices.Clone(blocked), edges), Layers: []tier.Layer{tier.Yggdrasil}},
	}
}

// elsewhere are the conditions of the mesh's matrix that are not tried here, and
// why.
var elsewhere = map[string]string{
	"none":         "Conditions has it",
	"tailscale":    "Conditions has it",
	"sleep":        "nothing passes while the laptop sleeps, and afterwards nothing is blocked",
	"moved":        "nothing is blocked in the other network",
	"control-gone": "to the network it is control-down; what it adds is in the laptop",
	"lan":          "to the network it is offline",
}

// MoreConditions are the others of the mesh's matrix, for the evidence.
func MoreConditions() []Condition {
	var all []Condition
	for _, c := range floors.Conditions() {
		if _, ok := elsewhere[c.ID]; ok {
			continue
		}
		more := Condition{Name: c.ID, Text: c.Title, Rules: c.Rules, Hit: c.Hit, Find: true, Some: c.Floor != "", Begin: c.Begin, End: c.End}
		if c.After { // here it is the time before that counts
			more.Begin, more.End = nil, nil
		}
		all = append(all, more)
	}
	return all
}

const (
	// least is how long a packet that is refused has to come through after all:
	// three tries, 1 s apart.
	least = 3 * time.Second
	// most is how long one is waited for that should come through, on a machine
	// that is busy.
	most = 45 * time.Second
	// layerLimit is for a layer to carry the guest after the ISP has done
	// something; the public peer takes some 10 s.
	layerLimit = 60 * time.Second
	// findLimit is for one where nobody knows whether it does; the slowest was
	// measured at 12 s.
	findLimit = 25 * time.Second
	// hitLimit: tailscaled may rest between two attempts.
	hitLimit = 30 * time.Second
)

// Config is a world, and what is done in it.
type Config struct {
	World world.Config
	// Authority signs the service's certificate.
	Authority  *x509.CertPool
	Conditions []Condition
	// Commit and Versions are for the record.
	Commit   string
	Versions map[string]string
	Now      func() time.Time
}

// Run makes the world, tries everything under every condition, and tears it
// down. An error is of the lab; what was reached is in the record.
func Run(ctx context.Context, cfg Config) (*matrix.Record, error) {
	if cfg.World.Progress == nil {
		cfg.World.Progress = func(string) {}
	}
	r := &matrix.Record{Date: cfg.Now().UTC().Truncate(time.Second), Commit: cfg.Commit, Versions: cfg.Versions}
	t, err := newTown(ctx, cfg.World)
	if err != nil {
		return nil, err
	}
	defer t.close()
	for i, c := range cfg.Conditions {
		cfg.World.Progress(c.Text)
		from := []*machine{t.named(guest)}
		if i == 0 {
			// The others are not behind this ISP: once is enough.
			from = append(from, t.named(stranger), t.named(office), t.named(onyx))
		}
		if err := t.under(ctx, c, from, cfg.Authority, r); err != nil {
			return nil, fmt.Errorf("while %s: %w", c.Text, err)
		}
	}
	cfg.World.Progress("the control: every door open")
	if err := t.control(ctx, r); err != nil {
		return nil, fmt.Errorf("opening every door: %w", err)
	}
	return r, t.Healthy()
}

// batch is everything that a machine tries over all layers that it has.
func (t *town) batch(from *machine) ([]*probe, error) {
	var all []*probe
	for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
		if from.senders[l] == nil {
			continue
		}
		all = append(all, t.plain(from, l)...)
		if from.Name != guest {
			continue
		}
		odd, err := t.odd(from, l)
		if err != nil {
			return nil, err
		}
		all = append(all, odd...)
	}
	return all, nil
}

// under tries everything while the ISP does what c says.
func (t *town) under(ctx context.Context, c Condition, from []*machine, authority *x509.CertPool, r *matrix.Record) (err error) {
	if _, err := t.Censor.Clear(); err != nil {
		return err
	}
	if err := t.Censor.Block(c.Rules...); err != nil {
		return err
	}
	if c.Begin != nil {
		if err := c.Begin(ctx, &t.floors); err != nil {
			return err
		}
		defer func() {
			if undo := c.End(context.WithoutCancel(ctx), &t.floors); undo != nil {
				err = errors.Join(err, undo)
			}
		}()
	}
	layers, err := t.carrying(ctx, c, authority)
	if err != nil {
		return err
	}
	var ps []*probe
	for _, m := range from {
		some, err := t.batch(m)
		if err != nil {
			return err
		}
		ps = append(ps, some...)
	}
	// What is allowed is waited for, unless the ISP has taken the layer away.
	seen, err := t.send(ctx, ps, least, most, func(seen map[*probe]bool) bool {
		return !slices.ContainsFunc(ps, func(p *probe) bool {
			return p.want && (p.from.Name != guest || slices.Contains(layers, p.layer)) && !seen[p]
		})
	})
	if err != nil {
		return err
	}
	for _, rule := range c.Rules {
		if len(c.Hit) > 0 && !slices.Contains(c.Hit, rule.Name) {
			continue
		}
		wait, cancel := context.WithTimeout(ctx, hitLimit)
		err := t.Censor.AwaitHit(wait, rule.Name)
		cancel()
		if err != nil {
			return err
		}
	}
	for _, p := range ps {
		if !c.Find && seen[p] && p.from.Name == guest && !slices.Contains(layers, p.layer) {
			return fmt.Errorf("%s came through a layer that the ISP has taken away", p)
		}
	}
	condition := matrix.Condition{Name: c.Name, Text: c.Text}
	for _, l := range layers {
		condition.Layers = append(condition.Layers, l.String())
	}
	r.Conditions = append(r.Conditions, condition)
	r.Cells = append(r.Cells, cells(c.Name, ps, seen)...)
	return nil
}

// reached says that the guest has reached, under each of the conditions, all that is
// allowed to it: on every layer that was known to be left, or on one at least of
// those that were found, since an ISP may take one away bit by bit. Where a layer
// is promised, there must have been one. The error lists what is not so.
func reached(conditions []Condition, r *matrix.Record) error {
	var errs []error
	for _, c := range conditions {
		var layers []string
		if i := slices.IndexFunc(r.Conditions, func(m matrix.Condition) bool { return m.Name == c.Name }); i >= 0 {
			layers = r.Conditions[i].Layers
		}
		if (c.Some || len(c.Layers) > 0) && len(layers) == 0 {
			errs = append(errs, fmt.Errorf("%s: no layer carried the guest, and one is promised", c.Name))
		}
		var missed []error
		for _, l := range layers {
			open, shut := 0, []string{}
			for _, cell := range r.Cells {
				if cell.Condition == c.Name && cell.Layer == l && cell.Source.Name == guest {
					open += len(cell.Open)
					shut = append(shut, cell.Shut...)
				}
			}
			if open == 0 || len(shut) > 0 {
				missed = append(missed, fmt.Errorf("%s, %s: allowed and reached: %d; allowed and not reached: %q", c.Name, l, open, shut))
			}
		}
		if !c.Find || len(missed) == len(layers) {
			errs = append(errs, missed...)
		}
	}
	return errors.Join(errs...)
}

// cells sorts packets by who sent them where.
func cells(condition string, ps []*probe, seen map[*probe]bool) []matrix.Cell {
	type key struct {
		from, to *machine
		layer    tier.Layer
	}
	var order []key
	by := map[key]*matrix.Cell{}
	type way struct {
		from  *machine
		layer tier.Layer
	}
	wanted, carried := map[way]bool{}, map[way]bool{}
	for _, p := range ps {
		k := key{p.from, p.to, p.layer}
		c := by[k]
		if c == nil {
			order = append(order, k)
			c = &matrix.Cell{Condition: condition, Layer: p.layer.String(), Source: p.from.end(), Destination: p.to.end(),
				Open: []string{}, Leaked: []string{}, Shut: []string{}}
			by[k] = c
		}
		w := way{p.from, p.layer}
		wanted[w], carried[w] = wanted[w] || p.want, carried[w] || seen[p]
		switch {
		case p.want && seen[p]:
			c.Open = append(c.Open, p.what())
		case p.want:
			c.Shut = append(c.Shut, p.what())
		case seen[p]:
			c.Leaked = append(c.Leaked, p.what())
		default:
			c.Refused++
		}
	}
	var all []matrix.Cell
	for _, k := range order {
		c := by[k]
		if w := (way{k.from, k.layer}); wanted[w] && !carried[w] {
			c.Silent, c.Shut = true, []string{}
		}
		all = append(all, *c)
	}
	return all
}

// control opens every door and sends again what should have been refused.
func (t *town) control(ctx context.Context, r *matrix.Record) error {
	if _, err := t.Censor.Clear(); err != nil {
		return err
	}
	if err := t.Headscale.API.SetPolicy(ctx, []byte(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`)); err != nil {
		return err
	}
	for _, m := range t.machines {
		switch removed, err := open(m); {
		case err != nil:
			return fmt.Errorf("removing the packet filter of %s: %w", m.Name, err)
		case removed == 0:
			return fmt.Errorf("removing the packet filter of %s: there is none, so that nothing was closed", m.Name)
		}
	}
	defer t.keepOpen()()
	var ps []*probe
	for _, m := range t.machines {
		if m.senders == nil || m == t.machines[0] || m.Name == cousin {
			continue
		}
		some, err := t.batch(m)
		if err != nil {
			return err
		}
		ps = append(ps, slices.DeleteFunc(some, func(p *probe) bool { return p.want })...)
	}
	seen, err := t.send(ctx, ps, least, layerLimit, func(seen map[*probe]bool) bool {
		return !slices.ContainsFunc(ps, func(p *probe) bool { return !p.impossible && !seen[p] })
	})
	if err != nil {
		return err
	}
	var unseen []string
	for _, p := range ps {
		switch {
		case seen[p]:
			r.Control.Sent++
			r.Control.Seen++
		case p.impossible:
			r.Control.Impossible++
		default:
			r.Control.Sent++
			unseen = append(unseen, p.String())
		}
	}
	if len(unseen) > 0 {
		return fmt.Errorf("%d packets are not seen though nothing stops them, so that they prove nothing:\n%s", len(unseen), strings.Join(unseen, "\n"))
	}
	return nil
}

// tablePrefix is of every nftables table of veilor.
const tablePrefix = "veilor_"

// reopen is how often packet filters are removed that their owners put back, which
// they do later and later.
const reopen = 20 * time.Millisecond

// keepOpen keeps every door open until stop is called.
func (t *town) keepOpen() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(reopen)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-end:
				return
			}
			for _, m := range t.machines {
				open(m) // in vain while it is being put back; then the next time
			}
		}
	}()
	return func() { close(end); <-ended }
}

// open removes the packet filters of a machine, and counts them.
func open(m *machine) (removed int, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(m.ns.FD()))
	if err != nil {
		return 0, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return 0, err
	}
	for _, table := range tables {
		if strings.HasPrefix(table.Name, tablePrefix) {
			c.DelTable(table)
			removed++
		}
	}
	return removed, c.Flush()
}

// carrying waits for the layers that carry the guest under c.
func (t *town) carrying(ctx context.Context, c Condition, authority *x509.CertPool) ([]tier.Layer, error) {
	if !c.Find {
		for _, l := range c.Layers {
			if err := t.await(ctx, l, layerLimit, authority); err != nil {
				return nil, err
			}
		}
		return c.Layers, nil
	}
	both := []tier.Layer{tier.Tailnet, tier.Yggdrasil}
	errs := make([]error, len(both))
	var wg sync.WaitGroup
	for i, l := range both {
		wg.Go(func() { errs[i] = t.await(ctx, l, findLimit, authority) })
	}
	wg.Wait()
	var carry []tier.Layer
	for i, l := range both {
		if errs[i] == nil {
			carry = append(carry, l)
		}
	}
	if c.Some && len(carry) == 0 {
		return nil, errors.Join(errs...)
	}
	return carry, context.Cause(ctx)
}

// await waits until the guest gets the service's page over a layer.
func (t *town) await(ctx context.Context, l tier.Layer, limit time.Duration, authority *x509.CertPool) error {
	tailnet, yggdrasil := t.ServiceAddresses()
	address := yggdrasil
	if l == tier.Tailnet {
		address = tailnet
	}
	v := t.cfg.Site.Services[0]
	at := netip.AddrPortFrom(address, v.Ports[0]).String()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := errors.New("not asked")
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, again)
			defer cancel()
			h := http.Client{Transport: &http.Transport{
				DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: authority},
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return t.Guest.DialContext(ctx, network, at)
				},
			}}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+v.Name+"/", nil)
			if err != nil {
				return err
			}
			resp, err := h.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		}()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not answer the guest over the %s: %w", v.Name, l, last)
		}
		last = err
	}
}
