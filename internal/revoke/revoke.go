// Package revoke takes a machine off every layer, and does not forget it.
//
// An order to revoke is a file before anything is done, and stays one until
// every step has confirmed: through errors, a control server that is down, and
// kill -9. Steps run in the order that closes the door soonest (the edges'
// filters, then the control server), and one that fails does not hold up the
// next.
//
//	Put ──> pending ──a step confirms──> pending, one fewer ──all have──> done
//	            ^              │ a step fails
//	            └── later ─────┘
package revoke

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// first and longest are how long after a failure a step is tried again: soon,
	// since the goal is 5 s for a layer that answers, and often enough for one
	// that comes back after hours to be closed within the minute promised.
	first   = time.Second
	longest = 20 * time.Second
	// stepLimit is for one try of one step.
	stepLimit = 15 * time.Second
)

// Step takes a machine off one layer. It must be safe to repeat, and return nil
// only for what it has read back.
type Step struct {
	// Name is unique and stable: it is in the queue's files.
	Name string
	Do   func(context.Context, tier.Machine) error
}

// Order is one machine to revoke.
type Order struct {
	ID      string       `json:"id"`
	At      time.Time    `json:"at"`
	Machine tier.Machine `json:"-"`
	// Confirmed are the steps that are done, by when.
	Confirmed map[string]time.Time `json:"confirmed"`
	// Failed are the last errors of the others.
	Failed map[string]string `json:"-"`
}

// Done says whether all of the steps have confirmed.
func (o Order) Done(steps []Step) bool {
	return !slices.ContainsFunc(steps, func(s Step) bool { return o.Confirmed[s.Name].IsZero() })
}

// file is an order as it is stored.
type file struct {
	Order
	Name      string       `json:"name"`
	Tier      string       `json:"tier"`
	Tailnet   []netip.Addr `json:"tailnet"`
	Yggdrasil site.Key     `json:"yggdrasil"`
	Reticulum string       `json:"reticulum"`
}

// Queue is a directory of orders.
type Queue struct {
	Dir   string
	Steps []Step
	Now   func() time.Time
	// Wait sleeps until the time is over or the context ends.
	Wait func(context.Context, time.Duration) error
}

var idRe = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,80}$`)

// Put writes the order down. When it returns, the machine will be revoked, even
// if this process dies now. id names the order; the same id again is the same
// order.
func (q *Queue) Put(id string, m tier.Machine) (Order, error) {
	if !idRe.MatchString(id) {
		return Order{}, fmt.Errorf("revoking: %q is no name of an order; use a-z, 0-9 and -", id)
	}
	if len(m.Tailnet) == 0 && m.Yggdrasil == "" && m.Reticulum == "" {
		return Order{}, fmt.Errorf("revoking %s: neither an address nor a key is known of it, so nothing could be closed", m.Name)
	}
	if o, err := q.read(id); err == nil {
		return o, nil
	}
	if err := os.MkdirAll(q.Dir, 0o700); err != nil {
		return Order{}, fmt.Errorf("revoking %s: %w", m.Name, err)
	}
	m.Revoked = true
	o := Order{ID: id, At: q.Now(), Machine: m, Confirmed: map[string]time.Time{}}
	return o, q.write(o)
}

func (q *Queue) path(id string) string { return filepath.Join(q.Dir, id+".json") }

func (q *Queue) write(o Order) error {
	data, err := json.MarshalIndent(file{o, o.Machine.Name, o.Machine.Tier, o.Machine.Tailnet, o.Machine.Yggdrasil, o.Machine.Reticulum}, "", "  ")
	if err == nil {
		err = renameio.WriteFile(q.path(o.ID), append(data, '\n'), 0o600)
	}
	if err == nil {
		err = syncDir(q.Dir)
	}
	if err != nil {
		return fmt.Errorf("writing the order to revoke %s: %w", o.Machine.Name, err)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (q *Queue) read(id string) (Order, error) {
	data, err := os.ReadFile(q.path(id))
	if err != nil {
		return Order{}, err
	}
	return parse(id, data)
}

func parse(id string, data []byte) (Order, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return Order{}, fmt.Errorf("reading order %s: %w", id, err)
	}
	o := f.Order
	o.ID = id
	o.Machine = tier.Machine{Name: f.Name, Tier: f.Tier, Revoked: true, Tailnet: f.Tailnet, Yggdrasil: f.Yggdrasil, Reticulum: f.Reticulum}
	if o.Confirmed == nil {
		o.Confirmed = map[string]time.Time{}
	}
	return o, nil
}

// Pending are the orders that are not done, the oldest first. A file that
// cannot be read is an error, with the others: somebody is to be revoked, and
// nobody knows who.
func (q *Queue) Pending() ([]Order, error) {
	entries, err := os.ReadDir(q.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the orders to revoke: %w", err)
	}
	var orders []Order
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !idRe.MatchString(id) {
			continue // a temporary file of a write that never ended
		}
		o, err := q.read(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		orders = append(orders, o)
	}
	slices.SortStableFunc(orders, func(a, b Order) int { return a.At.Compare(b.At) })
	return orders, errors.Join(errs...)
}

// Once tries every step that has not confirmed, of every order. It returns the
// orders as they are then; those that are done are no longer in the queue.
func (q *Queue) Once(ctx context.Context) ([]Order, error) {
	orders, err := q.Pending()
	errs := []error{err}
	// Step by step, not order by order: a control server that hangs must not
	// keep the edges open for the next machine.
	for _, s := range q.Steps {
		for i := range orders {
			o := &orders[i]
			if !o.Confirmed[s.Name].IsZero() || ctx.Err() != nil {
				continue
			}
			try, cancel := context.WithTimeout(ctx, stepLimit)
			err := s.Do(try, o.Machine)
			cancel()
			if err != nil {
				if o.Failed == nil {
					o.Failed = map[string]string{}
				}
				o.Failed[s.Name] = err.Error()
				if errors.Is(err, context.DeadlineExceeded) {
					break // it hangs; the next order would wait as long
				}
				continue
			}
			o.Confirmed[s.Name] = q.Now()
			errs = append(errs, q.write(*o))
		}
	}
	for _, o := range orders {
		if o.Done(q.Steps) {
			errs = append(errs, os.Remove(q.path(o.ID)))
		}
	}
	return orders, errors.Join(errs...)
}

// Run works until the context ends. wake is sent to after a Put; report gets
// the orders after every round that had any.
func (q *Queue) Run(ctx context.Context, wake <-chan struct{}, report func([]Order, error)) error {
	delay := first
	for ctx.Err() == nil {
		orders, err := q.Once(ctx)
		if len(orders) > 0 || err != nil {
			report(orders, err)
		}
		open := err != nil || slices.ContainsFunc(orders, func(o Order) bool { return !o.Done(q.Steps) })
		if !open {
			delay = first
			select {
			case <-ctx.Done():
			case <-wake:
			}
			continue
		}
		woken, cancel := context.WithCancel(ctx)
		go func() {
			select {
			case <-woken.Done():
			case <-wake:
				cancel()
			}
		}()
		err = q.Wait(woken, delay)
		cancel()
		delay = min(2*delay, longest)
		if err != nil {
			delay = first // somebody new
		}
	}
	return context.Cause(ctx)
}
