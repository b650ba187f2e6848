package tiers

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
)

var countersOf = regexp.MustCompile(`packets [0-9]+ bytes [0-9]+`)

// nft runs the program of that name in the rig's namespace.
func (r *Rig) nft(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("NOT TESTED without nft: apt-get install nftables")
	}
	cmd := exec.Command(path, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := r.ns.Run(cmd); err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, errs.String())
	}
	return countersOf.ReplaceAllString(out.String(), "")
}

// What a person reads is what is loaded: the text, given to nft, is the same
// table as the one that Load makes. It also replaces it.
func TestTextIsTheTable(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	for _, c := range []int{0, 4, 7} {
		r := newRig(t, town, rigs[c].self, rigs[c].layer)
		tab := table(t, town.Fleet, r)
		if err := tab.Load(r.NFT()); err != nil {
			t.Fatal(err)
		}
		loaded := r.nft(t, "", "list", "table", "inet", tab.Name)
		r.nft(t, tab.String(), "-f", "-")
		if diff := cmp.Diff(loaded, r.nft(t, "", "list", "table", "inet", tab.Name)); diff != "" {
			t.Errorf("%s on %s: Load and the text differ:\n%s", rigs[c].self, rigs[c].layer, diff)
		}
	}
}

// A table that the kernel refuses leaves the old one in force.
func TestRefusedTableChangesNothing(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	r := newRig(t, town, "nullstone", tier.Yggdrasil)
	tab := table(t, town.Fleet, r)
	if err := tab.Load(r.NFT()); err != nil {
		t.Fatal(err)
	}
	before := r.nft(t, "", "list", "ruleset")
	bad := table(t, town.Fleet, r)
	last := &bad.Chains[len(bad.Chains)-1]
	last.Rules = append(last.Rules, packetfilter.Rule{Name: "to nowhere", Verdict: packetfilter.Goto, Goto: "nowhere"})
	if err := bad.Load(r.NFT()); err == nil {
		t.Fatal("a table that jumps to no chain was loaded")
	}
	if diff := cmp.Diff(before, r.nft(t, "", "list", "ruleset")); diff != "" {
		t.Errorf("the refused table changed something:\n%s", diff)
	}
}

// BenchmarkPacket is the time of a packet through the table, by the number of
// guests: it must not grow. BenchmarkLoad is that of replacing the table.
func BenchmarkPacket(b *testing.B) { benchmark(b, false) }
func BenchmarkLoad(b *testing.B)   { benchmark(b, true) }

func benchmark(b *testing.B, load bool) {
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("guests=%d", n), func(b *testing.B) {
			town, err := NewTown(rand.New(rand.NewPCG(4, 6)), n)
			if err != nil {
				b.Fatal(err)
			}
			self, _ := town.Fleet.ByName("nullstone")
			r, err := NewRig(rigName("bench"), NetnsDir, town, self, tier.Yggdrasil)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			tab, err := packetfilter.Compile(town.Fleet, self, tier.Yggdrasil)
			if err != nil {
				b.Fatal(err)
			}
			if err := tab.Load(r.NFT()); err != nil {
				b.Fatal(err)
			}
			guest, _ := town.Fleet.ByName("laptop-5")
			p := packet{
				src: netip.AddrPortFrom(guest.YggdrasilAddress(), 4000), proto: tier.TCP,
				dst: netip.AddrPortFrom(self.YggdrasilAddress(), 22),
			}
			for b.Loop() {
				if load {
					err = tab.Load(r.NFT())
				} else {
					_, err = r.Send([]packet{p})
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
