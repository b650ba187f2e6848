package revocation

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// beat is between two new connections, and between two requests on the one
	// that lives: the resolution of what is measured.
	beat = 200 * time.Millisecond
	// connectLimit is for a new connection. Connecting takes milliseconds; a SYN
	// that was lost is sent again after 1 s.
	connectLimit = 1500 * time.Millisecond
	// aliveLimit is for the first answers of a guest that has joined.
	aliveLimit = 60 * time.Second
)

// watch uses the service over one layer, all the time: it opens new connections,
// and it asks on a connection that it keeps.
type watch struct {
	ns   *namespace.Namespace
	to   string
	cfg  *tls.Config
	done chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	mu    sync.Mutex
	fresh time.Time // the last new connection
	live  time.Time // the last answer on the connection that is kept
	// ended counts kept connections that ended; lost is why the last did.
	ended int
	lost  error
}

func (r *run) watch(ns *namespace.Namespace, to netip.Addr) *watch {
	w := &watch{
		ns: ns, to: netip.AddrPortFrom(to, 443).String(), done: make(chan struct{}),
		cfg: &tls.Config{RootCAs: r.cfg.Authority, ServerName: r.cfg.World.Site.Services[0].Name, NextProtos: []string{"http/1.1"}},
	}
	w.wg.Go(w.openNew)
	w.wg.Go(w.keepOne)
	return w
}

func (w *watch) stop() {
	w.once.Do(func() { close(w.done) })
	w.wg.Wait()
}

// last are the times of the last successes.
func (w *watch) last() (fresh, live time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fresh, w.live
}

// alive waits for the first success of both kinds from now on.
func (w *watch) alive(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, aliveLimit, fmt.Errorf("no flow after %v", aliveLimit))
	defer cancel()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		if fresh, live := w.last(); fresh.After(began) && live.After(began) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return errors.Join(context.Cause(ctx), w.lost)
		}
	}
}

// quiet waits until nothing has succeeded for so long, and says when the last
// success of each kind was.
func (w *watch) quiet(ctx context.Context, from time.Time, long time.Duration) (fresh, live time.Time, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Promise+long, fmt.Errorf("flows go on after %v", Promise))
	defer cancel()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		fresh, live = w.last()
		since := from
		for _, t := range []time.Time{fresh, live} {
			if t.After(since) {
				since = t
			}
		}
		if time.Since(since) >= long {
			return fresh, live, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fresh, live, context.Cause(ctx)
		}
	}
}

func (w *watch) dial(limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	go func() {
		select {
		case <-w.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return w.ns.DialContext(ctx, "tcp", w.to)
}

func (w *watch) openNew() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		if c, err := w.dial(connectLimit); err == nil {
			c.Close()
			w.mu.Lock()
			w.fresh = time.Now()
			w.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-w.done:
			return
		}
	}
}

// keepOne asks on one connection for as long as it lives, and then looks for
// another.
func (w *watch) keepOne() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		if c, err := w.dial(connectLimit); err == nil {
			err = w.ask(c)
			w.mu.Lock()
			w.ended++
			w.lost = err
			w.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-w.done:
			return
		}
	}
}

// ask sends one request after another until one is not answered.
func (w *watch) ask(raw net.Conn) error {
	defer raw.Close()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-w.done:
			raw.Close()
		case <-over:
		}
	}()
	c := tls.Client(raw, w.cfg)
	in := bufio.NewReader(c)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		// No deadline: whether an answer comes late or never is for the reader of
		// the times to say, and TCP's own patience is longer than any test.
		if _, err := io.WriteString(c, "GET /alive HTTP/1.1\r\nHost: "+w.cfg.ServerName+"\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.live = time.Now()
		w.mu.Unlock()
		select {
		case <-tick.C:
		case <-w.done:
			return nil
		}
	}
}
