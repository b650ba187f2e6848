// Package names is the authoritative DNS server of the zone that the services
// live in, on loopback.
//
// It knows a service's loopback address and nothing else: A for a service, no
// data for other types, NXDOMAIN for other names in the zone. Names outside the
// zone are REFUSED at once, because system resolvers ask this server about them
// too, and a refusal is what makes them ask the next one (RFC 8499, "lame").
package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/listen"
)

const (
	// ttl of an answer, in seconds. Short, so that a service that moves to
	// another loopback address with an update is found after a page reload; a
	// question costs nothing on loopback.
	ttl = 30
	// negativeTTL is the SOA's minimum: how long a missing name stays missing
	// (RFC 2308), the same for a service that an update adds.
	negativeTTL = 5
	// udpSize is the answer size that we advertise (DNS flag day 2020).
	udpSize = 1232
	// idleTCP closes a TCP client that asks nothing; RFC 7766 §6.2.3 wants
	// "a few seconds".
	idleTCP = 5 * time.Second
)

// Zone answers questions. It is immutable.
type Zone struct {
	origin string // "veilor."
	server string // "ns.veilor."
	addrs  map[string]netip.Addr
	soa    dns.RR
}

// NewZone makes the zone called name ("veilor") with the given services by
// their fully qualified names ("x.veilor"); self is the address of the server,
// which the zone needs for its own NS record.
func NewZone(name string, self netip.Addr, services map[string]netip.Addr) (*Zone, error) {
	z := &Zone{origin: dns.CanonicalName(name), addrs: map[string]netip.Addr{}}
	z.server = "ns." + z.origin
	z.addrs[z.server] = self
	for n, a := range services {
		c := dns.CanonicalName(n)
		if _, ok := dns.IsDomainName(c); !ok || !dns.IsSubDomain(z.origin, c) || c == z.origin {
			return nil, fmt.Errorf("making the zone %s: %q is no name in it", name, n)
		}
		if !a.Is4() {
			return nil, fmt.Errorf("making the zone %s: %s has %s, which is not IPv4", name, n, a)
		}
		z.addrs[c] = a
	}
	z.soa = &dns.SOA{
		Hdr: dns.RR_Header{Name: z.origin, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  z.server, Mbox: "hostmaster." + z.origin,
		// Nobody transfers this zone, so the timers carry no meaning.
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
	return z, nil
}

// Answer answers one message. It returns nil for one that is not a question
// and must not be answered.
func (z *Zone) Answer(q *dns.Msg) *dns.Msg {
	if q.Response {
		return nil
	}
	a := new(dns.Msg)
	a.SetRcode(q, z.fill(a, q))
	a.Compress = true
	if a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		a.Authoritative, a.Answer, a.Ns = false, nil, nil
	}
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(udpSize, false) // we have no signatures, asked for (DO) or not
		if opt.Version() != 0 {
			a.SetRcode(q, dns.RcodeBadVers) // RFC 6891 §6.1.3
			a.Answer, a.Ns = nil, nil
		}
	}
	return a
}

// fill puts the sections into a and returns the response code.
func (z *Zone) fill(a, q *dns.Msg) int {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(q.Question) != 1:
		return dns.RcodeFormatError
	}
	question := q.Question[0]
	name := dns.CanonicalName(question.Name)
	switch {
	case question.Qclass != dns.ClassINET, !dns.IsSubDomain(z.origin, name):
		return dns.RcodeRefused
	case question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		return dns.RcodeRefused
	}
	a.Authoritative = true
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
	// ANY gets one of the types there are (RFC 8482 §4.1).
	is := func(t uint16) bool {
		if question.Qtype == dns.TypeANY {
			header.Rrtype = t
			return true
		}
		return question.Qtype == t
	}
	addr, known := z.addrs[name]
	switch {
	case name == z.origin && question.Qtype == dns.TypeNS:
		a.Answer = []dns.RR{&dns.NS{Hdr: header, Ns: z.server}}
	case name == z.origin && is(dns.TypeSOA):
		a.Answer = []dns.RR{z.soa}
	case name == z.origin:
		a.Ns = []dns.RR{z.soa}
	case known && is(dns.TypeA):
		a.Answer = []dns.RR{&dns.A{Hdr: header, A: addr.AsSlice()}}
	case known:
		a.Ns = []dns.RR{z.soa}
	case z.parent(name):
		a.Ns = []dns.RR{z.soa} // an empty non-terminal exists (RFC 8020)
	default:
		a.Ns = []dns.RR{z.soa}
		return dns.RcodeNameError
	}
	return dns.RcodeSuccess
}

// parent says whether some service's name ends in name.
func (z *Zone) parent(name string) bool {
	for n := range z.addrs {
		if strings.HasSuffix(n, "."+name) {
			return true
		}
	}
	return false
}

// Server answers for a zone on UDP and TCP.
type Server struct {
	zone     atomic.Pointer[Zone]
	udp, tcp *dns.Server
}

// Replace makes the server answer from another zone, from the next question on.
func (s *Server) Replace(z *Zone) { s.zone.Store(z) }

// Listen binds addr on UDP and TCP, or neither. Call Serve next.
func Listen(ctx context.Context, addr netip.AddrPort, z *Zone) (*Server, error) {
	what := "the zone " + strings.TrimSuffix(z.origin, ".")
	udp, err := listen.UDP(ctx, addr, what)
	if err != nil {
		return nil, err
	}
	tcp, err := listen.TCP(ctx, addr, what)
	if err != nil {
		udp.Close()
		return nil, err
	}
	s := &Server{}
	s.zone.Store(z)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := s.zone.Load().Answer(q)
		if a == nil {
			return
		}
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
			size := dns.MinMsgSize
			if opt := q.IsEdns0(); opt != nil {
				size = max(size, min(int(opt.UDPSize()), udpSize))
			}
			a.Truncate(size)
		}
		w.WriteMsg(a) // the asker is gone or asks again
	})
	s.udp = &dns.Server{PacketConn: udp, Handler: handler}
	s.tcp = &dns.Server{Listener: tcp, Handler: handler, IdleTimeout: func() time.Duration { return idleTCP }, ReadTimeout: idleTCP}
	return s, nil
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range []*dns.Server{s.udp, s.tcp} {
		g.Go(func() error {
			started := make(chan struct{})
			d.NotifyStartedFunc = func() { close(started) }
			done := make(chan error, 1)
			go func() { done <- d.ActivateAndServe() }()
			select {
			case err := <-done:
				return serving(err)
			case <-started:
			}
			select {
			case err := <-done:
				return serving(err)
			case <-ctx.Done():
				// A TCP client that keeps its connection open must not hold us.
				limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				d.ShutdownContext(limit)
				return nil
			}
		})
	}
	return g.Wait()
}

func serving(err error) error {
	if err == nil {
		err = errors.New("the server stopped by itself")
	}
	return fmt.Errorf("answering for the zone: %w", err)
}
