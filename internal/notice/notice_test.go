package notice

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/status"
)

var t0 = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// said is a list of conditions: "code" or "code x.veilor", with ": text" if it
// matters.
func said(all ...string) (out []status.Condition) {
	for _, s := range all {
		head, text, _ := strings.Cut(s, ": ")
		code, service, _ := strings.Cut(head, " ")
		out = append(out, status.Condition{Code: code, Service: service, Text: text})
	}
	return out
}

// done is what Step said, in the same form, with - before what is taken away.
func done(acts []Act) (out []string) {
	for _, a := range acts {
		s := strings.TrimSuffix(a.Key.Code+" "+a.Key.Service, " ")
		switch {
		case a.Show == nil:
			s = "-" + s
		case a.Show.Text != "":
			s += ": " + a.Show.Text
		}
		out = append(out, s)
	}
	return out
}

// moment is one call of Step.
type moment struct {
	at    time.Duration
	holds []string
	want  []string
	// again is when Step wants to be asked again; zero if not.
	again time.Duration
	// then is done after it: "hush KEY" or "fail KEY".
	then string
}

func TestStep(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	x := []string{"unreachable x.veilor"}
	for name, moments := range map[string][]moment{
		"shown once when it has settled, taken away when it is over": {
			{at: 0},
			{at: 10 * s, holds: x, again: 40 * s},
			{at: 39 * s, holds: x, again: 40 * s},
			{at: 40 * s, holds: x, want: x},
			{at: 5 * m, holds: x},
			{at: 6 * m, again: 6*m + Linger},
			{at: 6*m + Linger, want: []string{"-unreachable x.veilor"}},
			{at: 7 * m},
		},
		"what comes and goes is never shown": {
			{at: 0, holds: x, again: 30 * s},
			{at: 20 * s},
			{at: 25 * s, holds: x, again: 55 * s},
			{at: 50 * s},
			{at: 60 * s, holds: x, again: 90 * s},
		},
		"a short relief takes nothing away": {
			{at: 0, holds: x, again: 30 * s},
			{at: 30 * s, holds: x, want: x},
			{at: 40 * s, again: 45 * s},
			{at: 44 * s, holds: x},
			{at: 90 * s, holds: x},
		},
		"not again before its time": {
			{at: 0, holds: x, again: 30 * s},
			{at: 30 * s, holds: x, want: x},
			{at: 1 * m, again: 1*m + Linger},
			{at: 2 * m, want: []string{"-unreachable x.veilor"}},
			{at: 3 * m, holds: x, again: 30*m + 30*s},
			{at: 30*m + 30*s, holds: x, want: x},
		},
		"put away by hand, it stays away until it begins anew": {
			{at: 0, holds: x, again: 30 * s},
			{at: 30 * s, holds: x, want: x, then: "hush unreachable x.veilor"},
			{at: 2 * h, holds: x},
			{at: 3 * h, again: 3*h + Linger},
			{at: 4 * h},
			{at: 5 * h, holds: x, again: 5*h + 30*s},
			{at: 6 * h, holds: x, want: x},
		},
		"a new text replaces the old, seldom": {
			{at: 0, holds: []string{"wrong-name x.veilor: 1"}, want: []string{"wrong-name x.veilor: 1"}},
			{at: 1 * s, holds: []string{"wrong-name x.veilor: 2"}, again: Renew},
			{at: 2 * s, holds: []string{"wrong-name x.veilor: 3"}, again: Renew},
			{at: Renew, holds: []string{"wrong-name x.veilor: 3"}, want: []string{"wrong-name x.veilor: 3"}},
			{at: 2 * h, holds: []string{"wrong-name x.veilor: 3"}},
		},
		"never more than Most, the worst first": {
			{at: 0, holds: []string{"crowded e.veilor", "wrong-name d.veilor", "wrong-name c.veilor", "wrong-name b.veilor", "mesh-stopped"},
				want: []string{"wrong-name d.veilor", "wrong-name c.veilor", "wrong-name b.veilor"}, again: 30 * s},
			{at: 30 * s, holds: []string{"crowded e.veilor", "mesh-stopped"}, again: 30*s + Linger},
			{at: Window, holds: []string{"crowded e.veilor", "mesh-stopped"},
				want: []string{"-wrong-name b.veilor", "-wrong-name c.veilor", "-wrong-name d.veilor", "mesh-stopped", "crowded e.veilor"}},
		},
		"not joined from the beginning is how it is": {
			{at: 0, holds: []string{"not-joined", "no-layer x.veilor"}},
			{at: 1 * h, holds: []string{"not-joined", "no-layer x.veilor"}},
			{at: 2 * h, again: 2*h + Linger}, // joined
			{at: 2*h + Linger},
			{at: 3 * h, holds: []string{"not-joined", "unreachable x.veilor"}, again: 3*h + rejoins},
			{at: 3*h + rejoins, holds: []string{"not-joined", "unreachable x.veilor"}, want: []string{"not-joined"}},
		},
		"what follows from something else is not said beside it": {
			{at: 0, holds: []string{"mesh-stopped", "unreachable x.veilor"}, again: 30 * s},
			{at: 30 * s, holds: []string{"mesh-stopped", "unreachable x.veilor"}, want: []string{"mesh-stopped"}},
		},
		"what could not be shown is tried again": {
			{at: 0, holds: x, again: 30 * s},
			{at: 30 * s, holds: x, want: x, then: "fail unreachable x.veilor"},
			{at: 31 * s, holds: x, want: x},
		},
		"silent ones": {
			{at: 0, holds: []string{"tailnet-blocked x.veilor", "quiet", "image-unknown", "something-new"}},
			{at: 48 * h, holds: []string{"tailnet-blocked x.veilor", "quiet", "image-unknown", "something-new"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var k Keeper
			for _, m := range moments {
				acts, again := k.Step(t0.Add(m.at), said(m.holds...))
				if d := cmp.Diff(m.want, done(acts)); d != "" {
					t.Errorf("at %v (-want +got):\n%s", m.at, d)
				}
				want := time.Time{}
				if m.again != 0 {
					want = t0.Add(m.again)
				}
				if !again.Equal(want) {
					t.Errorf("at %v: again at %v, want %v", m.at, again.Sub(t0), m.again)
				}
				what, key, _ := strings.Cut(m.then, " ")
				code, service, _ := strings.Cut(key, " ")
				switch what {
				case "hush":
					k.Hush(Key{code, service})
				case "fail":
					k.Failed(Key{code, service})
				}
			}
		})
	}
}

// TestEveryCondition: whoever adds a condition decides whether it is shown.
func TestEveryCondition(t *testing.T) {
	known := map[string]bool{}
	for _, k := range status.Kinds() {
		known[k.Code] = true
		_, _, rule := ruleOf(k.Code)
		why, silent := Silent[k.Code]
		if rule == silent {
			t.Errorf("%s must be in Rules or in Silent, and in one of them", k.Code)
		}
		if silent && why == "" {
			t.Errorf("%s: why is it silent?", k.Code)
		}
	}
	for _, r := range Rules {
		for _, code := range append([]string{r.Code}, r.Unless...) {
			if !known[code] {
				t.Errorf("%s: veilor status knows no %s", r.Code, code)
			}
		}
		if r.Again < halfHour {
			t.Errorf("%s: every %v is nagging", r.Code, r.Again)
		}
	}
	for code := range Silent {
		if !known[code] {
			t.Errorf("Silent: veilor status knows no %s", code)
		}
	}
}

// TestNoFlood holds any storm of conditions against what is promised: at most
// Most within Window, none again before its time, nothing taken away that is not
// shown, and nothing kept of what is long over.
func TestNoFlood(t *testing.T) {
	r := rand.New(rand.NewSource(4))
	codes := []string{"mesh-stopped", "unreachable", "no-layer", "wrong-name", "crowded", "tailnet-off", "not-joined", "quiet"}
	for round := range 200 {
		var k Keeper
		now := t0
		up := map[Key]bool{}
		last := map[Key]time.Time{}
		var news []time.Time
		for range 300 {
			now = now.Add(time.Duration(r.Int63n(int64(2 * time.Minute))))
			var holds []string
			for _, c := range codes {
				for i := range 4 {
					if r.Intn(3) == 0 {
						holds = append(holds, fmt.Sprintf("%s s%d.veilor: %d", c, i, r.Intn(3)))
					}
				}
			}
			acts, again := k.Step(now, said(holds...))
			if !again.IsZero() && !again.After(now) {
				t.Fatalf("round %d: again at %v, now %v: that never ends", round, again, now)
			}
			for _, a := range acts {
				rule, _, _ := ruleOf(a.Key.Code)
				switch {
				case a.Show == nil && !up[a.Key]:
					t.Fatalf("round %d: %v is taken away and not shown", round, a.Key)
				case a.Show == nil:
					up[a.Key] = false
				case !up[a.Key]:
					if l, ok := last[a.Key]; ok && now.Sub(l) < rule.Again {
						t.Fatalf("round %d: %v again after %v", round, a.Key, now.Sub(l))
					}
					up[a.Key], last[a.Key] = true, now
					news = append(news, now)
					if n := len(news); n > Most && now.Sub(news[n-1-Most]) < Window {
						t.Fatalf("round %d: %d within %v", round, Most+1, now.Sub(news[n-1-Most]))
					}
				}
			}
		}
		now = now.Add(2 * day)
		k.Step(now, nil)
		k.Step(now.Add(Linger), nil)
		if len(k.notes) != 0 {
			t.Fatalf("round %d: %d notes kept for nothing", round, len(k.notes))
		}
	}
}
