package main

import (
	"testing"

	"github.com/veilor/veilor-os/lab/cost"
)

// TestTooFew: only where files are missing is it measured in a machine.
func TestTooFew(t *testing.T) {
	for name, c := range map[string]struct {
		all  []cost.Benchmark
		want bool
	}{
		"not run":     {[]cost.Benchmark{{Name: "ForwardEcho"}}, false},
		"enough":      {[]cost.Benchmark{{Name: manyConnections, Metrics: map[string]float64{"allowed-conns": cost.LeastCarried}}}, false},
		"one missing": {[]cost.Benchmark{{Name: "ForwardEcho"}, {Name: manyConnections, Metrics: map[string]float64{"allowed-conns": cost.LeastCarried - 1}}}, true},
	} {
		b := tooFew(c.all)
		if (b != nil) != c.want || b != nil && b.Name != manyConnections {
			t.Errorf("%s: %+v", name, b)
		}
	}
}
