package tiers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// The namespaces and what runs in them end with the sandbox, however that ends.
func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// packetsEach, over the rigs of TestPackets, makes more than 10^5 packets.
const packetsEach = 11_000

// rigs are the machines that are tried: each tier's own view, on both layers.
var rigs = []struct {
	self  string
	layer tier.Layer
}{
	{"nullstone", tier.Yggdrasil}, {"office", tier.Yggdrasil}, {"failsafe", tier.Yggdrasil}, {"laptop-1", tier.Yggdrasil},
	{"nullstone", tier.Tailnet}, {"office", tier.Tailnet}, {"failsafe", tier.Tailnet}, {"laptop-1", tier.Tailnet},
}

// mutantRigs are those whose tables are broken: a server on both layers, one
// with other services, a laptop, and the failsafe. The rest have no other rules.
var mutantRigs = []int{0, 1, 3, 4, 6}

func needRoot(t testing.TB) {
	t.Helper()
	gate.Root(t, "real packets through the rules")
}

// ask is one packet to a rig with the answer that is wanted.
type ask struct {
	packet
	want bool
	name string
}

// asker makes packets for a rig.
type asker struct {
	town *Town
	rig  *Rig
	port uint16 // of sources, so that no two packets are of one flow
}

func (a *asker) families() []int {
	if a.rig.Layer == tier.Tailnet {
		return []int{0, 1}
	}
	return []int{0}
}

func (a *asker) ask(name string, src, dst netip.Addr, proto tier.Protocol, port uint16) ask {
	if a.port++; a.port < 1024 {
		a.port = 1024
	}
	k := tier.Packet{Source: src, Destination: dst, Protocol: proto, Port: port}
	if proto == tier.ICMP && src.Is6() {
		k.Protocol = 58
	}
	return ask{
		packet: packet{src: netip.AddrPortFrom(src, a.port), dst: netip.AddrPortFrom(dst, port), proto: proto},
		want:   a.town.Fleet.Decide(k).Allow,
		name:   fmt.Sprintf("%s (%s) -> %s %s %d", name, src, dst, proto, port),
	}
}

// sources are the machines with some that no list has.
func (a *asker) sources(family int) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for _, m := range a.town.Machines {
		if as := m.Addresses(a.rig.Layer); m.Name != a.rig.Self.Name {
			out[m.Name] = as[family]
		}
	}
	self := a.rig.Self.Addresses(a.rig.Layer)[family]
	out["unknown"] = unknown(self)
	out["foreign"] = foreign6
	if self.Is4() {
		out["foreign"] = foreign4
	}
	return out
}

// unknown is an address of the same overlay that nobody has.
func unknown(self netip.Addr) netip.Addr {
	if self.Is4() {
		return netip.MustParseAddr("100.99.9.9")
	}
	b := self.As16()
	b[15] ^= 0xff
	b[14] ^= 0xff
	return netip.AddrFrom16(b)
}

// random draws packets from any source to the machine.
func (a *asker) random(rng *rand.Rand, n int) []ask {
	var out []ask
	for len(out) < n {
		for _, family := range a.families() {
			src := a.sources(family)
			names := slices.Sorted(keys(src))
			for range 500 {
				q := a.town.Tuple(rng)
				name := names[rng.IntN(len(names))]
				out = append(out, a.ask(name, src[name], a.rig.Self.Addresses(a.rig.Layer)[family], q.Protocol, q.Port))
			}
		}
	}
	return out[:n]
}

// grid asks what any one broken rule must show: every kind of source, every
// protocol, every port of a rule and its neighbour.
func (a *asker) grid() []ask {
	var out []ask
	ports := []uint16{1, 22, 53, 65535}
	for _, r := range a.town.Policy.Rules() {
		if r.Port != 0 && !slices.Contains(ports, r.Port) {
			ports = append(ports, r.Port, r.Port+1)
		}
	}
	for _, family := range a.families() {
		src := a.sources(family)
		self := a.rig.Self.Addresses(a.rig.Layer)[family]
		other := local6
		if self.Is4() {
			other = local4
		}
		for _, name := range slices.Sorted(keys(src)) {
			for _, dst := range []netip.Addr{self, other} {
				for _, port := range ports {
					out = append(out, a.ask(name, src[name], dst, tier.TCP, port), a.ask(name, src[name], dst, tier.UDP, port))
				}
				for _, proto := range []tier.Protocol{tier.ICMP, redirect, sctp, gre} {
					out = append(out, a.ask(name, src[name], dst, proto, 0))
				}
			}
		}
	}
	return out
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// compare sends the packets and lists the first wrong answers.
func compare(r *Rig, asks []ask) ([]string, int, error) {
	var ps []packet
	for _, a := range asks {
		ps = append(ps, a.packet)
	}
	in, err := r.Send(ps)
	if err != nil {
		return nil, 0, err
	}
	var wrong []string
	allowed := 0
	for i, a := range asks {
		if a.want {
			allowed++
		}
		if in[i] != a.want && len(wrong) < 5 {
			wrong = append(wrong, fmt.Sprintf("%s: decided %t, the kernel %t", a.name, a.want, in[i]))
		}
	}
	return wrong, allowed, nil
}

func newRig(t *testing.T, town *Town, self string, l tier.Layer) *Rig {
	t.Helper()
	m, ok := town.Fleet.ByName(self)
	if !ok {
		t.Fatalf("no machine %s", self)
	}
	r, err := NewRig(rigName(self, l.String()), NetnsDir, town, m, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func table(t *testing.T, f *tier.Fleet, r *Rig) packetfilter.Table {
	t.Helper()
	tab, err := packetfilter.Compile(f, r.Self, r.Layer)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func testTown(t *testing.T) *Town {
	t.Helper()
	town, err := NewTown(rand.New(rand.NewPCG(4, 6)), 6)
	if err != nil {
		t.Fatal(err)
	}
	return town
}

// The kernel lets in what the decision function allows, and nothing else; and
// every packet is in some rule's counter.
func TestPackets(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	rng := rand.New(rand.NewPCG(7, 7))
	sent, allowed := 0, 0
	for _, c := range rigs {
		r := newRig(t, town, c.self, c.layer)
		tab := table(t, town.Fleet, r)
		if err := tab.Load(r.NFT()); err != nil {
			t.Fatal(err)
		}
		a := &asker{town: town, rig: r}
		for _, asks := range [][]ask{a.grid(), a.random(rng, packetsEach)} {
			before := total(t, tab, r)
			wrong, yes, err := compare(r, asks)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range wrong {
				t.Errorf("%s on %s: %s", c.self, c.layer, w)
			}
			if n := total(t, tab, r) - before; n != uint64(len(asks)) {
				t.Errorf("%s on %s: %d packets sent, %d counted", c.self, c.layer, len(asks), n)
			}
			sent, allowed = sent+len(asks), allowed+yes
		}
		if wrong, err := scenes(town, r, tab); err != nil || wrong != nil {
			t.Errorf("%s on %s: %v %v", c.self, c.layer, wrong, err)
		}
	}
	t.Logf("%d packets, %d let in, 0 may differ", sent, allowed)
	if sent < 100_000 {
		t.Errorf("%d packets are fewer than 10^5", sent)
	}
}

// total adds the counters of the rules that end a packet's way.
func total(t *testing.T, tab packetfilter.Table, r *Rig) uint64 {
	t.Helper()
	counts, err := packetfilter.Counts(tab.Name, r.NFT())
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, c := range tab.Chains {
		for _, rule := range c.Rules {
			if rule.Verdict != packetfilter.Goto && c.Hook != packetfilter.Output {
				n += counts[rule.Name]
			}
		}
	}
	return n
}

// scenes are the answers that depend on more than one packet:
//
//	an answer to the machine's own question comes in;
//	one to a question beyond the overlay does not, nor one to another address;
//	a machine that is revoked loses the flow that it had;
//	nothing is sent to a revoked machine over the overlay;
//	what happens on another interface is not this table's business.
//
// The town's "lost" machines are not revoked yet when their flows begin.
func scenes(town *Town, r *Rig, tab packetfilter.Table) ([]string, error) {
	var wrong []string
	check := func(name string, got, want bool) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s: %t, want %t", name, got, want))
		}
	}
	var before []tier.Machine
	for _, m := range town.Machines {
		m.Revoked = false
		before = append(before, m)
	}
	f, err := town.Policy.Fleet(before...)
	if err != nil {
		return nil, err
	}
	old, err := packetfilter.Compile(f, r.Self, r.Layer)
	if err != nil {
		return nil, err
	}
	one := func(t *tun, src, dst netip.AddrPort) (bool, error) {
		in, err := r.send(t, []packet{{src: src, dst: dst, proto: tier.UDP}})
		return err == nil && in[0], err
	}
	lost, _ := town.Fleet.ByName("lost-admin")
	lostInfra, _ := town.Fleet.ByName("lost-infra")
	friend, _ := town.Fleet.ByName("laptop-3")
	for i, self := range r.Self.Addresses(r.Layer) {
		foreign, local := foreign6, local6
		if self.Is4() {
			foreign, local = foreign4, local4
		}
		at := func(m tier.Machine) netip.AddrPort { return netip.AddrPortFrom(m.Addresses(r.Layer)[i], 5353) }
		if err := old.Load(r.NFT()); err != nil {
			return nil, err
		}
		mine, err := r.Listen(self)
		if err != nil {
			return nil, err
		}
		defer mine.conn.Close()
		elsewhere, err := r.Listen(local)
		if err != nil {
			return nil, err
		}
		defer elsewhere.conn.Close()
		beyond := netip.AddrPortFrom(foreign, 5353)

		var errs [9]error
		var in, out bool
		in, errs[0] = one(r.overlay, at(lost), mine.local)
		check("an admin opens a flow", in, true)
		out, _, errs[1] = r.Emit(mine, at(lost))
		check("the machine answers", out, true)
		out, _, errs[2] = r.Emit(mine, beyond)
		check("the machine asks beyond the overlay", out, true)
		out, _, errs[3] = r.Emit(elsewhere, at(friend))
		check("another address of the machine asks", out, true)

		if err := tab.Load(r.NFT()); err != nil {
			return nil, err
		}
		in, errs[4] = one(r.overlay, at(lost), mine.local)
		check("a revoked machine goes on with its flow", in, false)
		in, errs[5] = one(r.overlay, beyond, mine.local)
		check("an answer from beyond the overlay comes in", in, false)
		in, errs[6] = one(r.overlay, at(friend), elsewhere.local)
		check("an answer to another address comes in", in, false)
		out, _, errs[7] = r.Emit(mine, at(friend))
		check("the machine asks a guest", out, true)
		in, errs[8] = one(r.overlay, at(friend), mine.local)
		check("its answer comes in", in, true)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}

		out, _, errs[0] = r.Emit(mine, at(lost))
		check("the machine sends to a revoked one", out, false)
		_, out, errs[1] = r.Emit(mine, at(lostInfra))
		check("it does so by another interface", out, true)
		in, errs[2] = one(r.other, netip.AddrPortFrom(unknown(self), 5353), netip.AddrPortFrom(self, 9))
		check("an unknown address on another interface comes in", in, true)
		in, errs[3] = one(r.other, beyond, netip.AddrPortFrom(self, 9))
		check("a foreign address on another interface comes in", in, true)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
	}
	return wrong, nil
}

// Forms of addresses that the network must never carry are not let in either,
// whoever drops them.
func TestForgedForms(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	for _, c := range rigs[:2] {
		r := newRig(t, town, c.self, c.layer)
		if err := table(t, town.Fleet, r).Load(r.NFT()); err != nil {
			t.Fatal(err)
		}
		admin, _ := town.Fleet.ByName("onyx")
		self := r.Self.YggdrasilAddress()
		var ps []packet
		to := func(src string, dst netip.Addr) {
			for _, port := range []uint16{22, 443} {
				ps = append(ps, packet{src: netip.AddrPortFrom(netip.MustParseAddr(src), 999), dst: netip.AddrPortFrom(dst, port), proto: tier.TCP})
			}
		}
		for _, src := range []string{"::ffff:100.64.0.3", "fe80::1", "::1", "::", "ff02::1", self.String(), "fd7a:115c:a1e0::3", "300::1", "3ff::1", "::100.64.0.3", "64:ff9b::6440:3"} {
			to(src, self)
		}
		for _, src := range []string{"100.64.0.3", "127.0.0.1", "0.0.0.0", "192.0.2.77"} {
			to(src, local4)
		}
		for _, dst := range []string{"::1", "fe80::1", "ff02::1", "ff01::1"} {
			to(admin.YggdrasilAddress().String(), netip.MustParseAddr(dst))
		}
		in, err := r.Send(ps)
		if err != nil {
			t.Fatal(err)
		}
		for i, ok := range in {
			if ok {
				t.Errorf("%s: %s -> %s was let in", c.self, ps[i].src, ps[i].dst)
			}
		}
	}
}

// Breaking any rule of the compiled table in any way is seen.
func TestPacketMutants(t *testing.T) {
	needRoot(t)
	town := testTown(t)
	made, unseen := 0, 0
	for i, c := range rigs {
		if !slices.Contains(mutantRigs, i) {
			continue
		}
		r := newRig(t, town, c.self, c.layer)
		a := &asker{town: town, rig: r}
		for _, m := range mutants(table(t, town.Fleet, r), r) {
			made++
			if err := m.table.Load(r.NFT()); err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
			wrong, _, err := compare(r, a.grid())
			if err == nil && wrong == nil {
				wrong, err = scenes(town, r, m.table)
			}
			if err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
			if wrong == nil {
				unseen++
				t.Errorf("%s on %s: %s: not seen", c.self, c.layer, m.name)
			}
		}
	}
	t.Logf("%d mutants, %d not seen", made, unseen)
}

type mutant struct {
	name  string
	table packetfilter.Table
}

// mutants are the table with one thing broken, in every way.
func mutants(good packetfilter.Table, r *Rig) []mutant {
	self := map[bool]netip.Addr{}
	for _, a := range r.Self.Addresses(r.Layer) {
		self[a.Is6()] = a
	}
	var out []mutant
	change := func(name string, f func(*packetfilter.Table)) {
		t := good
		t.Sets, t.Chains = slices.Clone(good.Sets), slices.Clone(good.Chains)
		for i := range t.Chains {
			t.Chains[i].Rules = slices.Clone(t.Chains[i].Rules)
		}
		for i := range t.Sets {
			t.Sets[i].Addresses = slices.Clone(t.Sets[i].Addresses)
		}
		f(&t)
		out = append(out, mutant{name, t})
	}
	for i, c := range good.Chains {
		for j, r := range c.Rules {
			name := fmt.Sprintf("rule %q: ", r.Name)
			rule := func(what string, f func(*packetfilter.Rule)) {
				change(name+what, func(t *packetfilter.Table) { f(&t.Chains[i].Rules[j]) })
			}
			change(name+"removed", func(t *packetfilter.Table) { t.Chains[i].Rules = slices.Delete(t.Chains[i].Rules, j, j+1) })
			switch r.Verdict {
			case packetfilter.Accept:
				rule("drops", func(r *packetfilter.Rule) { r.Verdict = packetfilter.Drop })
			case packetfilter.Drop:
				rule("accepts", func(r *packetfilter.Rule) { r.Verdict = packetfilter.Accept })
			default:
				rule("accepts", func(r *packetfilter.Rule) { r.Verdict, r.Goto = packetfilter.Accept, "" })
				rule("drops", func(r *packetfilter.Rule) { r.Verdict, r.Goto = packetfilter.Drop, "" })
			}
			if r.In != "" {
				rule("on any interface", func(r *packetfilter.Rule) { r.In = "" })
			}
			if r.Out != "" {
				rule("on any interface", func(r *packetfilter.Rule) { r.Out = "" })
			}
			if r.SourceIn.IsValid() {
				rule("from anywhere", func(r *packetfilter.Rule) { r.SourceIn = netip.Prefix{} })
				rule("to anywhere", func(r *packetfilter.Rule) { r.DestinationIn = netip.Prefix{} })
			}
			if r.Established {
				rule("for new flows", func(r *packetfilter.Rule) { r.Established = false })
			}
			if r.DestinationSet != "" {
				rule("to everybody", func(r *packetfilter.Rule) { r.DestinationSet = "" })
			}
			if r.SourceSet != "" && r.Protocol != tier.ICMP {
				rule("from everybody", func(r *packetfilter.Rule) { r.SourceSet = "" })
			}
			if r.Protocol != 0 {
				rule("for every protocol", func(r *packetfilter.Rule) { r.Protocol, r.Port = 0, 0 })
			}
			if r.Port != 0 {
				rule("for every port", func(r *packetfilter.Rule) { r.Port = 0 })
				rule("for the next port", func(r *packetfilter.Rule) { r.Port++ })
				rule("for UDP", func(r *packetfilter.Rule) { r.Protocol = tier.UDP })
			}
			if j+1 < len(c.Rules) && r.Established == false && c.Rules[j+1].Established {
				change(name+"after established", func(t *packetfilter.Table) {
					rs := t.Chains[i].Rules
					rs[j], rs[j+1] = rs[j+1], rs[j]
				})
			}
		}
	}
	used := func(set string) bool {
		return slices.ContainsFunc(good.Chains, func(c packetfilter.Chain) bool {
			return slices.ContainsFunc(c.Rules, func(r packetfilter.Rule) bool { return r.SourceSet == set })
		})
	}
	for i, s := range good.Sets {
		if !used(s.Name) {
			continue // no rule of this machine asks for that tier
		}
		revoked := strings.HasPrefix(s.Name, "revoked")
		for k, addr := range s.Addresses {
			// One revoked machine's loss is seen by its flow (lost-admin) and by
			// what is sent to it; the others are in no other set either.
			if revoked {
				continue
			}
			change(fmt.Sprintf("set %s without %s", s.Name, addr), func(t *packetfilter.Table) {
				t.Sets[i].Addresses = slices.Delete(t.Sets[i].Addresses, k, k+1)
			})
		}
		if len(s.Addresses) > 0 {
			change(fmt.Sprintf("set %s empty", s.Name), func(t *packetfilter.Table) { t.Sets[i].Addresses = nil })
			if !revoked { // who is unknown is kept out anyway
				change(fmt.Sprintf("set %s with somebody unknown", s.Name), func(t *packetfilter.Table) {
					t.Sets[i].Addresses = append(t.Sets[i].Addresses, unknown(self[s.V6]))
				})
			}
		}
	}
	return out
}
