package cost

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/tiers"
)

// BenchmarkFilter compiles the packet filter of the services' host, which has every
// guest in its sets. (Package tiers has the time of loading it, package acl that of
// the other layer's policy.)
func BenchmarkFilter(b *testing.B) {
	for _, guests := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("guests=%d", guests), func(b *testing.B) {
			town, err := tiers.NewTown(rand.New(rand.NewPCG(4, 6)), guests)
			if err != nil {
				b.Fatal(err)
			}
			self, _ := town.Fleet.ByName("nullstone")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := packetfilter.Compile(town.Fleet, self, tier.Yggdrasil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
