package act

import (
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
)

func TestOver(t *testing.T) {
	began := time.Unix(1000, 0)
	// Request n begins n seconds later.
	samples := func(numbers ...int) (all []browse.Sample) {
		for _, n := range numbers {
			all = append(all, browse.Sample{N: n, Start: began.Add(time.Duration(n) * time.Second).UnixNano(), OK: true})
		}
		return all
	}
	moment := began.Add(3500 * time.Millisecond) // 1 to 3 began before it
	for name, c := range map[string]struct {
		all  []browse.Sample
		want bool
	}{
		"nothing is known":            {nil, false},
		"none has begun later":        {samples(1, 2, 3), false},
		"all have ended":              {samples(1, 2, 3, 4), true},
		"in any order":                {samples(4, 2, 1, 3), true},
		"one hangs":                   {samples(1, 3, 4), false},
		"the last before it hangs":    {samples(1, 2, 4), false},
		"one hangs that began later":  {samples(1, 2, 3, 5), false}, // 4 may have begun before, for all that is known
		"the first was never heard":   {samples(2, 3, 4), true},
		"one that began later hangs":  {samples(1, 2, 3, 4, 6), true},
		"only those that began later": {samples(4, 5), true},
	} {
		if got := over(c.all, moment); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
