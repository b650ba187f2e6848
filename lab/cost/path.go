package cost

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// downloadSize is what one round of throughput fetches: a second or so of an
	// overlay, so that a connection's slow start is little of it.
	downloadSize = 32 << 20
	downloads    = 9
	// gigabit is the fastest network that a laptop is usually plugged into, in bytes
	// a second.
	gigabit = 1e9 / 8
	// answers and connects are rounds of small questions. Medians of so many
	// differ by some microseconds from run to run.
	answers  = 1000
	connects = 100

	// patience bounds one request.
	patience = time.Minute
	// switchLimit is for the forwarder to take the other layer.
	switchLimit = 30 * time.Second
)

// client asks the service at one address.
type client struct {
	service string
	http    *http.Client
}

func newClient(ns *namespace.Namespace, service string, at netip.AddrPort, roots *x509.CertPool, keep bool) *client {
	return &client{service: service, http: &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		DisableKeepAlives: !keep,
		MaxConnsPerHost:   1,
		// The service's bytes, and not what comes out of compressing them.
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ns.DialContext(ctx, network, at.String())
		},
	}}}
}

// get fetches path and returns how long that took and from which address the
// service saw the question come, if it says.
func (c *client) get(ctx context.Context, path string) (took time.Duration, from netip.Addr, err error) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.service+path, nil)
	if err != nil {
		return 0, from, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, from, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, from, fmt.Errorf("fetching %s: status %d", path, resp.StatusCode)
	}
	if path != "/" {
		_, err = io.Copy(io.Discard, resp.Body)
		return time.Since(began), from, err
	}
	var answer struct{ From netip.Addr }
	text, err := io.ReadAll(resp.Body)
	took = time.Since(began)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err == nil && !answer.From.IsValid() {
		err = errors.New("the service does not say from where it was asked")
	}
	return took, answer.From, err
}

func (c *client) close() { c.http.CloseIdleConnections() }

// tailnetRange is what the tailnet has addresses from (RFC 6598).
var tailnetRange = netip.MustParsePrefix("100.64.0.0/10")

// Layers, as `veilor status` calls them.
const (
	tailnet   = "tailnet"
	yggdrasil = "yggdrasil"
)

// layerOf is the layer that a question came by.
func layerOf(from netip.Addr) string {
	if tailnetRange.Contains(from) {
		return tailnet
	}
	return yggdrasil
}

// withoutTailscale leaves a laptop with the second layer only. The control server
// with its relay is dropped at every address that it has: one that is left is
// enough for tailscaled.
func withoutTailscale() []censor.Rule {
	return []censor.Rule{censor.Beyond(censor.UDP()), censor.Host("control", world.Control, world.Twin(world.Control))}
}

// measurePaths measures the forwarder on both layers; on the second while the
// first is blocked, since it chooses for itself.
func (t *town) measurePaths(ctx context.Context) ([]Path, error) {
	direct, fallback := t.world.ServiceAddresses()
	var paths []Path
	for _, l := range []struct {
		name string
		at   netip.Addr
	}{{tailnet, direct}, {yggdrasil, fallback}} {
		if l.name == yggdrasil {
			if err := t.world.Censor.Block(withoutTailscale()...); err != nil {
				return nil, err
			}
			defer t.world.Censor.Clear()
		}
		t.say("the forwarder on the %s", l.name)
		p, err := t.measurePath(ctx, l.name, l.at)
		if err != nil {
			return nil, fmt.Errorf("measuring the forwarder on the %s: %w", l.name, err)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// await waits until the forwarder carries new connections by the named layer.
func (t *town) await(ctx context.Context, layer string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, switchLimit, fmt.Errorf("not on the %s after %v", layer, switchLimit))
	defer cancel()
	c := t.client(t.loopback, false)
	for {
		_, from, err := c.get(ctx, "/")
		if err == nil && layerOf(from) == layer {
			return nil
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

func (t *town) measurePath(ctx context.Context, layer string, at netip.Addr) (p Path, err error) {
	p = Path{Layer: layer, Rounds: downloads}
	if err := t.await(ctx, layer); err != nil {
		return p, err
	}
	relay, stop, err := t.startRelay(ctx, layer, at)
	if err != nil {
		return p, err
	}
	defer stop()
	ways := [ways]netip.AddrPort{direct: netip.AddrPortFrom(at, 443), relayed: relay, forwarded: t.loopback}
	if p.Gigabit, err = t.downloadAtGigabit(ctx, layer, ways); err != nil {
		return p, err
	}
	before, err := t.workDone()
	if err != nil {
		return p, err
	}
	if p.Unlimited, err = t.download(ctx, layer, ways); err != nil {
		return p, err
	}
	after, err := t.workDone()
	if err != nil {
		return p, err
	}
	// The warming up of inTurn is one more, of each way.
	const rounds = downloads + 1
	perGB := func(d time.Duration, carried int) float64 {
		return round(d.Seconds() * 1000 * MB / float64(carried*downloadSize))
	}
	p.Work, p.ForwardWork = perGB(after.all-before.all, rounds*len(ways)), perGB(after.forwarder-before.forwarder, rounds)
	if p.Asleep, err = t.measureAdded(ctx, layer, ways); err != nil {
		return p, err
	}
	release, err := keepAwake()
	if err != nil {
		t.say("not measured: %v", err)
		p.Unmeasured = err.Error()
		return p, nil
	}
	defer release()
	p.Awake, err = t.measureAdded(ctx, layer, ways)
	return p, err
}

// measureAdded measures what a way adds to small questions.
func (t *town) measureAdded(ctx context.Context, layer string, to [ways]netip.AddrPort) (l Latency, err error) {
	took, err := t.inTurn(ctx, layer, to, "/", true, answers)
	if err != nil {
		return l, err
	}
	l.Answer = addedOf(took)
	if took, err = t.inTurn(ctx, layer, to, "/", false, connects); err != nil {
		return l, err
	}
	l.Connect = addedOf(took)
	return l, nil
}

// downloadAtGigabit limits the ISP's leg meanwhile.
func (t *town) downloadAtGigabit(ctx context.Context, layer string, to [ways]netip.AddrPort) (d Download, err error) {
	if err := t.world.LimitLaptop(gigabit); err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, t.world.LimitLaptop(0)) }()
	return t.download(ctx, layer, to)
}

func (t *town) download(ctx context.Context, layer string, to [ways]netip.AddrPort) (d Download, err error) {
	took, err := t.inTurn(ctx, layer, to, fmt.Sprintf("/bytes/%d", downloadSize), true, downloads)
	if err != nil {
		return d, err
	}
	rate := func(w way) float64 { return round(downloadSize / MB / median(took[w]).Seconds()) }
	ratio := func(w way) float64 {
		var all []float64
		for i := range took[w] {
			all = append(all, took[direct][i].Seconds()/took[w][i].Seconds())
		}
		return round(median(all))
	}
	return Download{rate(direct), rate(relayed), rate(forwarded), ratio(relayed), ratio(forwarded)}, nil
}

// way is how a question goes to the service.
type way int

const (
	direct way = iota
	relayed
	forwarded
	ways
)

// inTurn asks each way in turn, another first in every round, and checks that the
// layer stays the same: of an answer that does not say by which it came, the one
// before it and the one after it on the same connection do.
func (t *town) inTurn(ctx context.Context, layer string, to [ways]netip.AddrPort, path string, keep bool, rounds int) ([ways][]time.Duration, error) {
	var clients [ways]*client
	for w, at := range to {
		clients[w] = t.client(at, keep)
		defer clients[w].close()
	}
	return inTurn(ctx, clients, layer, path, rounds)
}

func inTurn(ctx context.Context, clients [ways]*client, layer, path string, rounds int) (took [ways][]time.Duration, err error) {
	for i := range rounds + 1 { // once to warm up
		for j := range clients {
			w := (i + j) % len(clients)
			d, err := clients[w].getBy(ctx, layer, path)
			if err != nil {
				return took, err
			}
			if i > 0 {
				took[w] = append(took[w], d)
			}
		}
	}
	return took, nil
}

// getBy is get for an answer that must come by a layer.
func (c *client) getBy(ctx context.Context, layer, path string) (time.Duration, error) {
	on := func(path string) (time.Duration, error) {
		took, from, err := c.get(ctx, path)
		if err == nil && from.IsValid() && layerOf(from) != layer {
			err = fmt.Errorf("an answer came by the %s, not by the %s", layerOf(from), layer)
		}
		return took, err
	}
	if path == "/" {
		return on(path)
	}
	if _, err := on("/"); err != nil {
		return 0, err
	}
	took, err := on(path)
	if err != nil {
		return 0, err
	}
	_, err = on("/")
	return took, err
}

func addedOf(took [ways][]time.Duration) Added {
	us := func(d time.Duration) float64 { return round(float64(d) / float64(time.Microsecond)) }
	added := func(w way) float64 {
		var all []time.Duration
		for i := range took[w] {
			all = append(all, took[w][i]-took[direct][i])
		}
		return us(median(all))
	}
	return Added{
		Rounds: len(took[direct]), Direct: us(median(took[direct])), Forward: us(median(took[forwarded])),
		Added: added(forwarded), RelayAdded: added(relayed),
	}
}

func median[T time.Duration | float64](all []T) T {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
