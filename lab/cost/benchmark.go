package cost

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Benchmark is what one Go benchmark reported.
type Benchmark struct {
	Package string             `json:"package"`
	Name    string             `json:"name"`
	Rounds  int                `json:"rounds"`
	Metrics map[string]float64 `json:"metrics"`
	// Where it ran, if not on the machine that the record is of.
	Where string `json:"where,omitempty"`
}

// figures are the metrics for people.
func (b *Benchmark) figures() string {
	var all []string
	for _, u := range slices.Sorted(maps.Keys(b.Metrics)) {
		all = append(all, strconv.FormatFloat(b.Metrics[u], 'f', -1, 64)+" "+u)
	}
	if b.Where != "" {
		all = append(all, b.Where)
	}
	return strings.Join(all, ", ")
}

// ReadBenchmarks reads the output of `go test -bench`
// (golang.org/design/14313-benchmark-format): lines "pkg: …", and lines of a name,
// a count, and pairs of figure and unit.
func ReadBenchmarks(r io.Reader) ([]Benchmark, error) {
	var (
		all   []Benchmark
		pkg   string
		lines = bufio.NewScanner(r)
	)
	for lines.Scan() {
		if p, ok := strings.CutPrefix(lines.Text(), "pkg: "); ok {
			pkg = p
			continue
		}
		f := strings.Fields(lines.Text())
		if len(f) < 4 || len(f)%2 != 0 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		rounds, err := strconv.Atoi(f[1])
		if err != nil {
			continue // a benchmark that says something
		}
		b := Benchmark{Package: pkg, Name: withoutProcs(strings.TrimPrefix(f[0], "Benchmark")), Rounds: rounds, Metrics: map[string]float64{}}
		for i := 2; i < len(f); i += 2 {
			if b.Metrics[f[i+1]], err = strconv.ParseFloat(f[i], 64); err != nil {
				return nil, fmt.Errorf("reading benchmarks: %s: %w", lines.Text(), err)
			}
		}
		all = append(all, b)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading benchmarks: %w", err)
	}
	return all, nil
}

// withoutProcs takes the "-8" off that go test adds where there is more than one
// processor.
func withoutProcs(name string) string {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return name
	}
	if _, err := strconv.Atoi(name[i+1:]); err != nil {
		return name
	}
	return name[:i]
}
