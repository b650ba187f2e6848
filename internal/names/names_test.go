package names

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func zone(t testing.TB) *Zone {
	t.Helper()
	z, err := NewZone("veilor", netip.MustParseAddr("127.83.0.53"), map[string]netip.Addr{
		"x.veilor":      netip.MustParseAddr("127.83.0.1"),
		"a.deep.veilor": netip.MustParseAddr("127.83.0.2"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestNewZoneRefuses(t *testing.T) {
	for name, addr := range map[string]string{
		"x.example": "127.83.0.1", "veilor": "127.83.0.1", "xveilor": "127.83.0.1", "": "127.83.0.1", "x.veilor": "::1",
	} {
		if _, err := NewZone("veilor", netip.MustParseAddr("127.83.0.53"), map[string]netip.Addr{name: netip.MustParseAddr(addr)}); err == nil {
			t.Errorf("%q at %s was taken", name, addr)
		}
	}
}

func TestAnswer(t *testing.T) {
	z := zone(t)
	for _, tt := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // the one answer's data, "" for none
		aa    bool
		soa   bool // in the authority section
	}{
		{"x.veilor.", dns.TypeA, dns.RcodeSuccess, "127.83.0.1", true, false},
		{"X.VeiLor.", dns.TypeA, dns.RcodeSuccess, "127.83.0.1", true, false},
		{"x.veilor.", dns.TypeANY, dns.RcodeSuccess, "127.83.0.1", true, false},
		{"x.veilor.", dns.TypeAAAA, dns.RcodeSuccess, "", true, true},
		{"x.veilor.", dns.TypeHTTPS, dns.RcodeSuccess, "", true, true},
		{"y.veilor.", dns.TypeA, dns.RcodeNameError, "", true, true},
		{"y.x.veilor.", dns.TypeA, dns.RcodeNameError, "", true, true},
		{"deep.veilor.", dns.TypeA, dns.RcodeSuccess, "", true, true},
		{"a.deep.veilor.", dns.TypeA, dns.RcodeSuccess, "127.83.0.2", true, false},
		{"veilor.", dns.TypeA, dns.RcodeSuccess, "", true, true},
		{"veilor.", dns.TypeSOA, dns.RcodeSuccess, "ns.veilor. hostmaster.veilor. 1 3600 600 86400 5", true, false},
		{"veilor.", dns.TypeNS, dns.RcodeSuccess, "ns.veilor.", true, false},
		{"veilor.", dns.TypeDS, dns.RcodeSuccess, "", true, true},
		{"ns.veilor.", dns.TypeA, dns.RcodeSuccess, "127.83.0.53", true, false},
		{"veilor.", dns.TypeAXFR, dns.RcodeRefused, "", false, false},
		{"example.org.", dns.TypeA, dns.RcodeRefused, "", false, false},
		{"notveilor.", dns.TypeA, dns.RcodeRefused, "", false, false},
		{".", dns.TypeNS, dns.RcodeRefused, "", false, false},
	} {
		q := new(dns.Msg).SetQuestion(tt.name, tt.qtype)
		a := z.Answer(q)
		label := tt.name + " " + dns.TypeToString[tt.qtype]
		if a.Rcode != tt.rcode || a.Authoritative != tt.aa || a.RecursionAvailable || !a.Response || a.Id != q.Id {
			t.Errorf("%s: %s aa=%v ra=%v id=%d", label, dns.RcodeToString[a.Rcode], a.Authoritative, a.RecursionAvailable, a.Id)
		}
		got := ""
		for _, rr := range a.Answer {
			got += strings.TrimPrefix(rr.String(), rr.Header().String())
		}
		if got != tt.want {
			t.Errorf("%s: answer %q, want %q", label, got, tt.want)
		}
		if len(a.Answer) > 0 && a.Answer[0].Header().Name != tt.name && tt.qtype != dns.TypeSOA {
			t.Errorf("%s: answers for %s", label, a.Answer[0].Header().Name)
		}
		if soa := len(a.Ns) == 1; soa != tt.soa {
			t.Errorf("%s: SOA in authority = %v, want %v", label, soa, tt.soa)
		}
		if a.IsEdns0() != nil {
			t.Errorf("%s: OPT although none was asked", label)
		}
	}
}

func TestOddMessages(t *testing.T) {
	z := zone(t)
	ask := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg).SetQuestion("x.veilor.", dns.TypeA)
		change(q)
		return z.Answer(q)
	}
	if a := ask(func(q *dns.Msg) { q.Response = true }); a != nil {
		t.Errorf("answered an answer: %v", a)
	}
	for want, change := range map[int]func(*dns.Msg){
		dns.RcodeNotImplemented: func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate },
		dns.RcodeFormatError:    func(q *dns.Msg) { q.Question = nil },
		dns.RcodeRefused:        func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS },
		dns.RcodeBadVers:        func(q *dns.Msg) { q.SetEdns0(4096, true); q.IsEdns0().SetVersion(1) },
	} {
		if a := ask(change); a.Rcode != want || len(a.Answer) != 0 {
			t.Errorf("%s, %d answers; want %s", dns.RcodeToString[a.Rcode], len(a.Answer), dns.RcodeToString[want])
		}
	}
	a := ask(func(q *dns.Msg) { q.SetEdns0(4096, true) })
	if opt := a.IsEdns0(); opt == nil || opt.UDPSize() != udpSize || opt.Do() || len(a.Answer) != 1 {
		t.Errorf("EDNS: %v", a)
	}
}

func TestServe(t *testing.T) {
	// UDP and TCP must get the same port: take the one that UDP is given.
	probe, err := net.ListenPacket("udp", "127.83.0.53:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(probe.LocalAddr().String())
	probe.Close()
	s, err := Listen(t.Context(), addr, zone(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 5 * time.Second}
		a, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion("x.veilor.", dns.TypeA), addr.String())
		if err != nil || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "127.83.0.1" {
			t.Errorf("%s: %v, %v", network, a, err)
		}
	}
	if _, err := Listen(t.Context(), addr, zone(t)); err == nil || !strings.Contains(err.Error(), "for the zone veilor: udp port") {
		t.Errorf("second server: %v", err)
	}
	idle, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"x.veilor.", "veilor.", "example.org."} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		q.SetEdns0(512, true)
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	z := zone(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		q := new(dns.Msg)
		if q.Unpack(packet) != nil {
			return
		}
		a := z.Answer(q)
		if a == nil {
			if !q.Response {
				t.Fatal("a question got no answer")
			}
			return
		}
		a.Truncate(dns.MinMsgSize)
		b, err := a.Pack()
		if err != nil {
			t.Fatalf("packing the answer to %v: %v", q, err)
		}
		back := new(dns.Msg)
		if err := back.Unpack(b); err != nil {
			t.Fatal(err)
		}
		if back.Id != q.Id || !back.Response || len(b) > dns.MinMsgSize {
			t.Fatalf("id %d -> %d, response %v, %d bytes", q.Id, back.Id, back.Response, len(b))
		}
		for _, rr := range back.Answer {
			if !dns.IsSubDomain("veilor.", dns.CanonicalName(rr.Header().Name)) {
				t.Fatalf("answered for %s", rr.Header().Name)
			}
		}
	})
}
