package tiers

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/reticulum"
	"github.com/veilor/veilor-os/internal/tier"
)

// allowTuples is how many questions the allow-lists are asked.
const allowTuples = 100_000

// The Reticulum allow-lists, written out and read again, answer as the decision
// function does of TCP; and every line of them is needed.
func TestReticulumAgrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	town := testTown(t)
	lists := map[string]reticulum.AllowList{}
	texts := map[string]string{}
	for _, m := range town.Machines {
		var b strings.Builder
		if _, err := reticulum.Compile(town.Fleet, m).WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		l, err := reticulum.Read(strings.NewReader(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		lists[m.Name], texts[m.Name] = l, b.String()
	}
	agrees := func(q Tuple, l reticulum.AllowList) bool {
		return l.Allows(q.Source.Reticulum, q.Port) == town.Decide(q)
	}
	asked := 0
	for asked < allowTuples {
		q := town.Tuple(rng)
		if q.Protocol != tier.TCP {
			continue
		}
		asked++
		if !agrees(q, lists[q.Destination.Name]) {
			t.Fatalf("%s: decided %t, the list %t", q, town.Decide(q), !town.Decide(q))
		}
	}
	// Every machine asks every machine for every port that some rule has.
	var all []Tuple
	for _, src := range town.Machines {
		for _, dst := range town.Machines {
			for _, port := range []uint16{22, 443, 1000, 1001, 1007, 1008, 1014, 1015} {
				if src.Name != dst.Name {
					all = append(all, Tuple{src, dst, tier.TCP, port})
				}
			}
		}
	}
	made := 0
	broken := func(name, what string, lines []string) {
		made++
		l, err := reticulum.Read(strings.NewReader(strings.Join(lines, "")))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(q Tuple) bool { return q.Destination.Name == name && !agrees(q, l) }) {
			t.Errorf("%s: %s: not seen", name, what)
		}
	}
	for name, text := range texts {
		lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(s string) bool { return s == "" })
		for i, line := range lines {
			broken(name, "without "+line, slices.Delete(slices.Clone(lines), i, i+1))
			_, id, _ := strings.Cut(line, " ")
			if !strings.HasPrefix(line, reticulum.App+"*") {
				broken(name, line+" for every port", append(slices.Clone(lines), reticulum.App+"* "+id))
			}
		}
		for _, m := range town.Machines {
			if m.Name != name && (m.Tier == "" || m.Revoked) {
				broken(name, "with "+m.Name, append(slices.Clone(lines), reticulum.App+"443 "+m.Reticulum+"\n"))
			}
		}
	}
	t.Logf("%d questions, %d mutants", asked, made)
}
