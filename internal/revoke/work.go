package revoke

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	// first and longest are how long after a failure a place is tried again:
	// soon, since the goal is 5 s for a layer that answers, and often enough for
	// one that comes back after hours to be closed within the minute promised.
	first   = time.Second
	longest = 20 * time.Second
	// stepLimit is for one try of one place.
	stepLimit = 15 * time.Second
	// lead is what the places of one kind have before those of the next begin.
	// An edge answers in milliseconds; one that hangs must not keep the tailnet
	// open beyond the goal of 5 s.
	lead = 1500 * time.Millisecond
)

// Step closes one place. It must be safe to repeat.
type Step interface {
	// Close forgets the machine, reads back that it is forgotten, and says what
	// it did.
	Close(context.Context, Order) (what string, err error)
	// Check reads back that nothing of the machine is there.
	Check(context.Context, Order) error
}

// Learner is a step that may know more of the machine than the order does. It is
// asked before it closes: afterwards nobody knows which addresses were its own,
// and flows with them would live on.
type Learner interface {
	Learn(context.Context, Order) (Subject, error)
}

// Once tries every place that has not confirmed, of every pending order. It
// returns the orders as they are then; those that are done are no longer
// pending.
func (q *Queue) Once(ctx context.Context) ([]Order, error) {
	orders, err := q.Pending()
	orders, failed := q.Try(ctx, orders...)
	return orders, errors.Join(err, failed)
}

// Try does the same for the given orders. The error is about the queue's files;
// what places said is in the orders.
func (q *Queue) Try(ctx context.Context, orders ...Order) ([]Order, error) {
	r := round{q: q, orders: slices.Clone(orders)}
	for i := range r.orders {
		r.orders[i].Confirmed = maps.Clone(r.orders[i].Confirmed)
		r.orders[i].Failed = map[string]error{}
	}
	r.close(ctx)
	r.again(ctx)
	r.check(ctx)
	return r.orders, errors.Join(r.errs...)
}

// round is one try of everything.
type round struct {
	q *Queue

	mu     sync.Mutex
	orders []Order
	errs   []error
}

// open are the places that some order waits for, by rank.
func (r *round) open() [][]Place {
	byRank := make([][]Place, len(kinds))
	for _, o := range r.orders {
		for _, p := range o.Open() {
			if !slices.Contains(byRank[p.rank()], p) {
				byRank[p.rank()] = append(byRank[p.rank()], p)
			}
		}
	}
	return byRank
}

// close goes from kind to kind. Within one, all places are worked on at once:
// one that hangs keeps nobody else open.
func (r *round) close(ctx context.Context) {
	var all sync.WaitGroup
	for _, places := range r.open() {
		if len(places) == 0 {
			continue
		}
		var kind sync.WaitGroup
		for _, p := range places {
			all.Add(1)
			kind.Go(func() {
				defer all.Done()
				r.place(ctx, p)
			})
		}
		over := make(chan struct{})
		go func() {
			kind.Wait()
			close(over)
		}()
		select {
		case <-over:
		case <-ctx.Done():
		case <-r.q.After(lead):
		}
	}
	all.Wait()
}

// place closes one place for every order that waits for it.
func (r *round) place(ctx context.Context, p Place) {
	step, closed := r.q.Open(p)
	for i := range r.orders {
		if o := r.snapshot(i); slices.Contains(o.Open(), p) {
			closed = r.one(ctx, p, i, step, closed)
		}
	}
}

// again closes this machine for orders whose tailnet took longer than its lead
// and has confirmed since: its tailscaled was asked too early.
func (r *round) again(ctx context.Context) {
	for i := range r.orders {
		o := r.snapshot(i)
		if slices.ContainsFunc(o.Open(), func(p Place) bool { return p.Kind == Tailnet }) {
			continue
		}
		for _, p := range o.Open() {
			if errors.Is(o.Failed[p.String()], errPeer) {
				step, err := r.q.Open(p)
				r.one(ctx, p, i, step, err)
			}
		}
	}
}

// snapshot is an order as it is now.
func (r *round) snapshot(i int) Order {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.orders[i]
	o.Confirmed = maps.Clone(o.Confirmed)
	return o
}

// one closes one place for one order. It returns the error that any other order
// would get too.
func (r *round) one(ctx context.Context, p Place, i int, step Step, closed error) error {
	what, err := "", closed
	for {
		if err == nil {
			err = r.learn(ctx, i, step)
		}
		o := r.snapshot(i)
		if err == nil {
			what, err = within(ctx, func(ctx context.Context) (string, error) { return step.Close(ctx, o) })
		}
		r.mu.Lock()
		if err == nil && !reflect.DeepEqual(o.Subject, r.orders[i].Subject) {
			// Another place knew more meanwhile: this was done for less.
			r.mu.Unlock()
			continue
		}
		if err != nil {
			r.orders[i].Failed[p.String()] = err
		} else {
			delete(r.orders[i].Failed, p.String())
			r.orders[i].Confirmed[p.String()] = Confirmation{At: r.q.Now(), What: what}
			// The last confirmation is written after everything was read again.
			if !r.orders[i].Done() {
				r.note(i)
			}
		}
		r.mu.Unlock()
		break
	}
	// A place that hangs or has no way in would make each of the next wait as
	// long for the same. Any other answer is about one machine.
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) || ctx.Err() != nil {
		return err
	}
	return nil
}

// learn asks a step what it knows, and writes that down before it is closed. An
// error is that of a step that hangs; any other is closing's to report.
func (r *round) learn(ctx context.Context, i int, step Step) error {
	l, ok := step.(Learner)
	if !ok {
		return nil
	}
	o := r.snapshot(i)
	more, err := within(ctx, func(ctx context.Context) (Subject, error) { return l.Learn(ctx, o) })
	switch {
	case errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		return err
	case err != nil:
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	learned := r.orders[i].learn(more)
	if reflect.DeepEqual(learned.Subject, r.orders[i].Subject) {
		return nil
	}
	r.orders[i] = learned
	if err := r.q.learn(o.ID, more); err != nil {
		r.errs = append(r.errs, err)
	}
	return nil
}

// ErrClosed is wrapped by a step's error that any other order would get too.
var ErrClosed = errors.New("no way in")

// within runs a try with its time limit.
func within[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	try, cancel := context.WithTimeoutCause(ctx, stepLimit, fmt.Errorf("no answer within %v: %w", stepLimit, context.DeadlineExceeded))
	defer cancel()
	v, err := f(try)
	if err != nil && try.Err() != nil {
		err = context.Cause(try)
	}
	return v, err
}

// check reads everything again of the orders that every place has confirmed.
func (r *round) check(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range r.orders {
		o := r.snapshot(i) // what fails below is taken from the order itself
		if !o.Done() {
			continue
		}
		for _, p := range o.Places {
			wg.Go(func() {
				step, err := r.q.Open(p)
				if err == nil {
					_, err = within(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, step.Check(ctx, o) })
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				if err != nil {
					delete(r.orders[i].Confirmed, p.String())
					r.orders[i].Failed[p.String()] = fmt.Errorf("reading it again: %w", err)
				}
			})
		}
		wg.Wait()
		r.note(i)
	}
}

func (r *round) note(i int) {
	if err := r.q.note(r.orders[i]); err != nil {
		r.errs = append(r.errs, err)
	}
}

// Run works until the context ends. wake may be sent to after a Put; orders of
// other processes are found without. report gets the orders after every round
// that had any.
func (q *Queue) Run(ctx context.Context, wake <-chan struct{}, report func([]Order, error)) error {
	delay := first
	for ctx.Err() == nil {
		orders, err := q.Once(ctx)
		if len(orders) > 0 || err != nil {
			report(orders, err)
		}
		wait := longest
		if err != nil || slices.ContainsFunc(orders, func(o Order) bool { return !o.Done() }) {
			wait = delay
			delay = min(2*delay, longest)
		} else {
			delay = first
		}
		select {
		case <-ctx.Done():
		case <-wake:
			delay = first // somebody new
		case <-q.After(wait):
		}
	}
	return context.Cause(ctx)
}

// Finish tries the orders until all are done or ctx ends. It returns them as
// they are then.
func (q *Queue) Finish(ctx context.Context, orders ...Order) ([]Order, error) {
	delay := first
	for {
		var err error
		orders, err = q.Try(ctx, orders...)
		if !slices.ContainsFunc(orders, func(o Order) bool { return !o.Done() }) {
			return orders, err
		}
		select {
		case <-ctx.Done():
			return orders, err
		case <-q.After(delay):
			delay = min(2*delay, longest)
		}
	}
}
