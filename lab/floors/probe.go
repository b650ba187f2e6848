package floors

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
	"sync"
	"sync/atomic"
	"time"

	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// beat is the time between two requests of a client.
	beat = 200 * time.Millisecond
	// patience is how long a client waits for one answer: as long as a person.
	patience = 30 * time.Second
)

// client fetches a page from one address, over and over.
type client struct {
	layer, mode string
	// fetch asks once, forget closes what it keeps.
	fetch   func(context.Context) error
	forget  func()
	dialled atomic.Int64 // connections

	mu      sync.Mutex
	answers []answer
	last    error
	changed chan struct{} // closed and renewed with every answer
}

// answer is one good one.
type answer struct{ asked, came time.Time }

// newClient makes a client in ns of the service at address. An established one
// keeps its connection as long as it can, a new one makes a connection for each
// request.
func newClient(ns *namespace.Namespace, layer, mode, service string, at netip.AddrPort, roots *x509.CertPool) *client {
	c := &client{layer: layer, mode: mode, changed: make(chan struct{})}
	h := &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			DisableKeepAlives: mode != Established,
			MaxConnsPerHost:   map[bool]int{true: 1}[mode == Established],
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				c.dialled.Add(1)
				return ns.DialContext(ctx, network, at.String())
			},
		},
	}
	c.fetch = func(ctx context.Context) error { return get(ctx, h, "https://"+service+"/") }
	c.forget = h.CloseIdleConnections
	return c
}

// ask makes one request.
func (c *client) ask(ctx context.Context) {
	asked := time.Now()
	err := c.fetch(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			c.last = err
		}
		return
	}
	c.answers = append(c.answers, answer{asked, time.Now()})
	close(c.changed)
	c.changed = make(chan struct{})
}

func get(ctx context.Context, h *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// run asks every beat until ctx ends. An established client waits for its answer
// first, a new one does not.
func (c *client) run(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.forget()
	for {
		if c.mode == Established {
			c.ask(ctx)
		} else {
			wg.Go(func() { c.ask(ctx) })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

var errNoAnswer = errors.New("no answer")

// first waits for an answer to a request that was made after from, and returns
// how long after that it came.
func (c *client) first(ctx context.Context, from time.Time) (time.Duration, error) {
	for {
		c.mu.Lock()
		took := time.Duration(-1)
		for _, a := range c.answers {
			if d := a.came.Sub(from); !a.asked.Before(from) && (took < 0 || d < took) {
				took = d
			}
		}
		changed, last := c.changed, c.last
		c.mu.Unlock()
		if took >= 0 {
			return took, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last == nil {
				last = errNoAnswer
			}
			return -1, last
		}
	}
}
