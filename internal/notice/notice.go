// Package notice decides which conditions of a laptop its person is told of, and
// when: few, each once, none that comes and goes.
//
// It is pure. Whoever watches gives it each new list of conditions, does what it
// says, and asks again at the time that it names.
package notice

import (
	"cmp"
	"slices"
	"time"

	"github.com/veilor/veilor-os/internal/status"
)

const (
	// Linger is how long a condition must be gone before what is shown of it is
	// taken away, so that a flapping network does not make the desktop flicker.
	Linger = 5 * time.Second
	// Renew is the least time between two changes of the text of what is shown.
	Renew = time.Minute
	// Most is how many are shown within Window, whatever happens. The rest waits,
	// the worst first.
	Most   = 3
	Window = 10 * time.Minute
)

// Key is what a notification is about. There is one notification for each.
type Key struct {
	Code, Service string
}

// Act is one thing to do on the desktop.
type Act struct {
	Key Key
	// Show is the condition to show, instead of what is shown under Key; nil takes
	// that away.
	Show *status.Condition
}

// Keeper remembers what is shown and what waits. The zero value is ready. It is
// not safe for concurrent use.
//
//	           holds                 held for Settle
//	(absent) -------> waiting -----------------------> shown <----+
//	    ^               |                              |  |  |    | other text,
//	    |  gone at all  |                     put away |  |  +----+ at most every
//	    |<--------------+                     by hand  |  |         Renew
//	    |                              gone for        v  |
//	    |<----------------------------- Linger --- hushed |
//	    |                                                 |
//	    +<------------------- gone for Linger: taken away-+
//
// A condition that was shown waits for Again, and all of them for a place within
// Window.
type Keeper struct {
	notes  map[Key]*note
	recent []time.Time // when something was shown that was not before
	begun  bool
}

// note is what is known of one condition.
type note struct {
	state state
	since time.Time // when it began to hold; zero if it does not
	gone  time.Time // when it ceased, while it is shown or hushed
	last  time.Time // when it was last shown; zero if never
	said  time.Time // when its text was last given
	text  string
}

type state int

const (
	absent state = iota
	waiting
	shown
	hushed
)

// Step takes the conditions that hold now and says what to do, and when to ask
// again if nothing changes before; zero if there is no need.
func (k *Keeper) Step(now time.Time, all []status.Condition) (acts []Act, again time.Time) {
	if k.notes == nil {
		k.notes = map[Key]*note{}
	}
	first := !k.begun
	k.begun = true
	at := func(t time.Time) {
		if again.IsZero() || t.Before(again) {
			again = t
		}
	}

	held := worthSaying(all)
	holds := map[Key]bool{}
	for _, h := range held {
		holds[h.key] = true
		n := k.notes[h.key]
		if n == nil {
			n = &note{}
			k.notes[h.key] = n
		}
		n.gone = time.Time{}
		if n.state == absent {
			n.state, n.since = waiting, now
			if first && h.rule.New {
				n.state = hushed
			}
		}
	}
	for key, n := range k.notes {
		if holds[key] || n.state == absent {
			continue
		}
		if n.state == waiting {
			n.state = absent
			continue
		}
		if n.gone.IsZero() {
			n.gone = now
		}
		if end := n.gone.Add(Linger); now.Before(end) {
			at(end)
			continue
		}
		if n.state == shown {
			acts = append(acts, Act{Key: key})
		}
		n.state = absent
	}
	slices.SortFunc(acts, func(a, b Act) int {
		return cmp.Or(cmp.Compare(a.Key.Code, b.Key.Code), cmp.Compare(a.Key.Service, b.Key.Service))
	})

	k.recent = slices.DeleteFunc(k.recent, func(t time.Time) bool { return now.Sub(t) >= Window })
	for _, h := range held {
		n := k.notes[h.key]
		text := h.condition.Text + "\n" + h.condition.Todo
		switch n.state {
		case waiting:
			due := n.since.Add(h.rule.Settle)
			if !n.last.IsZero() {
				due = later(due, n.last.Add(h.rule.Again))
			}
			if len(k.recent) >= Most {
				due = later(due, k.recent[0].Add(Window))
			}
			if now.Before(due) {
				at(due)
				continue
			}
			n.state, n.last = shown, now
			k.recent = append(k.recent, now)
		case shown:
			if text == n.text {
				continue
			}
			if due := n.said.Add(Renew); now.Before(due) {
				at(due)
				continue
			}
		default:
			continue
		}
		n.said, n.text = now, text
		acts = append(acts, Act{Key: h.key, Show: &h.condition})
	}
	k.forget(now)
	return acts, again
}

// Hush says that the person put a notification away. It does not come again
// while its condition goes on.
func (k *Keeper) Hush(key Key) {
	if n := k.notes[key]; n != nil && n.state == shown {
		n.state = hushed
	}
}

// Failed says that a notification could not be shown: it waits again, as if it
// had not been.
func (k *Keeper) Failed(key Key) {
	n := k.notes[key]
	if n == nil || n.state != shown {
		return
	}
	if i := slices.Index(k.recent, n.last); i >= 0 {
		k.recent = slices.Delete(k.recent, i, i+1)
	}
	n.state, n.last, n.text = waiting, time.Time{}, ""
}

// forget drops what no rule needs any more, so that names that come and go do
// not pile up.
func (k *Keeper) forget(now time.Time) {
	for key, n := range k.notes {
		rule, _, _ := ruleOf(key.Code)
		if n.state == absent && (n.last.IsZero() || now.Sub(n.last) >= rule.Again) {
			delete(k.notes, key)
		}
	}
}

// holding is a condition that has a rule.
type holding struct {
	key       Key
	rule      Rule
	rank      int
	condition status.Condition
}

// worthSaying picks the conditions that have a rule and say something new, in
// the order of the rules.
func worthSaying(all []status.Condition) []holding {
	codes := map[string]bool{}
	for _, c := range all {
		codes[c.Code] = true
	}
	var out []holding
	for _, c := range all {
		r, rank, ok := ruleOf(c.Code)
		if ok && !slices.ContainsFunc(r.Unless, func(code string) bool { return codes[code] }) {
			out = append(out, holding{Key{c.Code, c.Service}, r, rank, c})
		}
	}
	slices.SortStableFunc(out, func(a, b holding) int { return a.rank - b.rank })
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
