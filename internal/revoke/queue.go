package revoke

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// maxOrder bounds a file of the queue; one has about 1 KB.
const maxOrder = 1 << 20

// Queue is a directory of orders, one file each, and in done/ of those that have
// been carried out. Several processes may use it at once.
type Queue struct {
	Dir string
	// Open makes the step that closes a place.
	Open func(Place) (Step, error)
	Now  func() time.Time
	// After is time.After.
	After func(time.Duration) <-chan time.Time
}

// Put writes an order down. When it returns without an error, the machine will
// be revoked, even if this process dies now. While an order of that name is
// pending, it is that order, which then knows more and wants more places.
//
// If it cannot be written the order is returned with the error, for
// [Queue.Try]: a full disk must not keep a door open.
func (q *Queue) Put(s Subject, places ...Place) (Order, error) {
	if err := s.check(); err != nil {
		return Order{}, fmt.Errorf("revoking: %w", err)
	}
	s = s.plain()
	for _, p := range places {
		if p.rank() < 0 {
			return Order{}, fmt.Errorf("revoking: %q is no kind of place", p.Kind)
		}
	}
	o := Order{ID: ID(s.Name), At: q.Now(), Subject: s, Places: order(places), Confirmed: map[string]Confirmation{}}
	if len(o.Places) == 0 {
		return Order{}, fmt.Errorf("revoking %s: nowhere; name an edge or a control server", s.Name)
	}
	err := q.locked(func() error {
		switch old, err := q.read(o.ID); {
		case err == nil:
			o = old.extend(s, places)
		case !errors.Is(err, fs.ErrNotExist):
			// Whoever it is about stays pending under another name.
			if err := os.Rename(q.path(o.ID), q.path(o.ID)+".unreadable"); err != nil {
				return err
			}
		}
		return q.write(o)
	})
	if err != nil {
		return o, fmt.Errorf("writing down the order to revoke %s: %w", s.Name, err)
	}
	return o, nil
}

// extend adds what is new. What was confirmed of less is confirmed no more.
func (o Order) extend(s Subject, places []Place) Order {
	both := o.Subject.with(s)
	if !reflect.DeepEqual(both, o.Subject.plain()) {
		o.Confirmed = map[string]Confirmation{}
	}
	o.Subject, o.Places = both, order(slices.Concat(o.Places, places))
	return o
}

// learn adds what a place of the tailnet knew of the machine. Edges and lists know
// it by its key and name; only who closes addresses must do so again.
func (o Order) learn(s Subject) Order {
	both := o.Subject.with(s)
	if reflect.DeepEqual(both, o.Subject.plain()) {
		return o
	}
	o.Subject, o.Confirmed = both, maps.Clone(o.Confirmed)
	for _, p := range o.Places {
		if p.Kind == Here {
			delete(o.Confirmed, p.String())
		}
	}
	return o
}

// learn writes down what a place knew of the machine.
func (q *Queue) learn(id string, s Subject) error {
	err := q.locked(func() error {
		o, err := q.read(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // never written, or done by another process
		}
		if err != nil {
			return err
		}
		return q.write(o.learn(s))
	})
	if err != nil {
		return fmt.Errorf("writing down what is known of %s: %w", id, err)
	}
	return nil
}

// order sorts by rank, and then by address, each place once.
func order(ps []Place) []Place {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b Place) int {
		if a.Kind != b.Kind {
			return a.rank() - b.rank()
		}
		return strings.Compare(a.At, b.At)
	})
	return slices.Compact(ps)
}

func (q *Queue) path(id string) string { return filepath.Join(q.Dir, id+".json") }

// locked keeps other processes out while the files change.
func (q *Queue) locked(f func() error) error {
	if err := os.MkdirAll(filepath.Join(q.Dir, "done"), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(q.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and with it the lock
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return err
	}
	return f()
}

func (q *Queue) write(o Order) error {
	data, err := json.MarshalIndent(o, "", "  ")
	if err == nil {
		err = renameio.WriteFile(q.path(o.ID), append(data, '\n'), 0o600)
	}
	if err == nil {
		err = syncDir(q.Dir)
	}
	return err
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

func (q *Queue) read(id string) (Order, error) { return readFile(q.path(id), id) }

func readFile(path, id string) (Order, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Order{}, err
	}
	if info.Size() > maxOrder {
		return Order{}, fmt.Errorf("reading order %s: %d bytes; this is another file", id, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Order{}, err
	}
	return parse(id, data)
}

func parse(id string, data []byte) (Order, error) {
	var o Order
	if err := json.Unmarshal(data, &o); err != nil {
		return Order{}, fmt.Errorf("reading order %s: %w", id, err)
	}
	o.ID, o.Places = id, order(o.Places)
	if err := o.Subject.check(); err != nil {
		return Order{}, fmt.Errorf("reading order %s: %w", id, err)
	}
	if len(o.Places) == 0 || o.Places[0].rank() < 0 {
		return Order{}, fmt.Errorf("reading order %s: it names no place, or one of an unknown kind", id)
	}
	if o.Confirmed == nil {
		o.Confirmed = map[string]Confirmation{}
	}
	return o, nil
}

// Pending are the orders that are not done, the oldest first. A file that
// cannot be read is an error, with the others: somebody is to be revoked, and
// nobody knows who.
func (q *Queue) Pending() ([]Order, error) { return list(q.Dir) }

// Past are the orders that are done.
func (q *Queue) Past() ([]Order, error) { return list(filepath.Join(q.Dir, "done")) }

func list(dir string) ([]Order, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the orders to revoke: %w", err)
	}
	var orders []Order
	var errs []error
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".unreadable") {
			errs = append(errs, fmt.Errorf("%s: an order that could not be read; see whom it names, revoke that machine anew, and remove the file", filepath.Join(dir, e.Name())))
		}
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !idRe.MatchString(id) {
			continue // a temporary file of a write that never ended
		}
		o, err := readFile(filepath.Join(dir, e.Name()), id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // done in this moment
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		orders = append(orders, o)
	}
	slices.SortStableFunc(orders, func(a, b Order) int { return a.At.Compare(b.At) })
	return orders, errors.Join(errs...)
}

// note writes down what o has confirmed, unless the order has changed since: an
// order that another process extended is not confirmed by what was done for
// less.
func (q *Queue) note(o Order) error {
	err := q.locked(func() error {
		have, err := q.read(o.ID)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // another process has done it
		case err != nil:
			return err
		case !reflect.DeepEqual(have.Subject, o.Subject):
			return nil
		}
		have.Confirmed = o.Confirmed
		if err := q.write(have); err != nil || !have.Done() {
			return err
		}
		done := filepath.Join(q.Dir, "done")
		if err := os.Rename(q.path(o.ID), filepath.Join(done, o.ID+".json")); err != nil {
			return err
		}
		return errors.Join(syncDir(q.Dir), syncDir(done))
	})
	if err != nil {
		return fmt.Errorf("writing down what is confirmed of %s: %w", o.Subject.Name, err)
	}
	return nil
}
