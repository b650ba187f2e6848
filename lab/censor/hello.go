package censor

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// helloLimit is how much of a connection's beginning is kept while its
// ClientHello is not complete: a record and its header, and what follows at once.
const helloLimit = 20 << 10

// clientHello is what a censor reads in one (RFC 8446 §4.1.2).
type clientHello struct {
	serverName string
	suites     []uint16
	extensions []uint16
	versions   []uint16 // that it supports
	signatures []uint16 // algorithms
	protocols  []string // of ALPN
}

// helloReader puts the beginnings of connections together and marks those whose
// ClientHello is guilty, in both directions and for ever.
type helloReader struct {
	guilty func(clientHello) bool
	flows  map[flow]*beginning
}

func newHelloReader(guilty func(clientHello) bool) *helloReader {
	return &helloReader{guilty: guilty, flows: map[flow]*beginning{}}
}

// flow is a TCP connection, the client first.
type flow struct{ client, server netip.AddrPort }

// beginning is what a client has sent so far.
type beginning struct {
	first  uint32 // sequence number of its first byte
	data   []byte // may have holes that are yet to be filled
	have   []bool
	judged bool
	guilty bool
}

func (r *helloReader) judge(packet []byte) (time.Duration, bool) {
	f, s, up, ok := parseTCP(packet)
	if !ok {
		return 0, false
	}
	b := r.flows[f]
	if s.syn && up {
		b = &beginning{first: s.seq + 1}
		r.flows[f] = b
	}
	if b == nil {
		return 0, false // it stood before we looked
	}
	if up && !b.judged && len(s.data) > 0 {
		b.add(s)
		h, verdict := parseHello(b.prefix())
		switch verdict {
		case complete:
			b.judged, b.guilty = true, r.guilty(h)
		case hopeless:
			b.judged = true
		}
		if b.judged {
			b.data, b.have = nil, nil
		}
	}
	bad := b.guilty
	if s.fin || s.rst {
		delete(r.flows, f)
	}
	return 0, bad
}

func (b *beginning) add(s segment) {
	at := int(int32(s.seq - b.first))
	if at < 0 || at+len(s.data) > helloLimit {
		b.judged = b.judged || at >= 0
		return
	}
	if need := at + len(s.data); need > len(b.data) {
		b.data = append(b.data, make([]byte, need-len(b.data))...)
		b.have = append(b.have, make([]bool, need-len(b.have))...)
	}
	copy(b.data[at:], s.data)
	for i := range s.data {
		b.have[at+i] = true
	}
}

// prefix is what is there without a hole.
func (b *beginning) prefix() []byte {
	for i, have := range b.have {
		if !have {
			return b.data[:i]
		}
	}
	return b.data
}

// segment is a TCP segment.
type segment struct {
	seq           uint32
	syn, fin, rst bool
	data          []byte
}

const tlsPort = 443

// Sizes of headers in bytes; of IPv4 and TCP without options.
const (
	size4, size6, sizeTCP = 20, 40, 20
	protocolTCP           = 6
)

// parseTCP reads a packet to or from port 443. One of IPv6 with extension headers
// is none to it.
func parseTCP(p []byte) (f flow, s segment, up, ok bool) {
	var from, to netip.Addr
	var t []byte
	switch {
	case len(p) >= size4 && p[0]>>4 == 4 && p[9] == protocolTCP:
		header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if header < size4 || total > len(p) || total < header {
			return f, s, false, false
		}
		from, to, t = netip.AddrFrom4([4]byte(p[source4:])), netip.AddrFrom4([4]byte(p[destination4:])), p[header:total]
	case len(p) >= size6 && p[0]>>4 == 6 && p[6] == protocolTCP:
		total := size6 + int(binary.BigEndian.Uint16(p[4:]))
		if total > len(p) {
			return f, s, false, false
		}
		from, to, t = netip.AddrFrom16([16]byte(p[source6:])), netip.AddrFrom16([16]byte(p[destination6:])), p[size6:total]
	}
	if len(t) < sizeTCP {
		return f, s, false, false
	}
	offset := int(t[12]>>4) * 4
	if offset < sizeTCP || offset > len(t) {
		return f, s, false, false
	}
	client, server := netip.AddrPortFrom(from, binary.BigEndian.Uint16(t)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(t[2:]))
	s = segment{seq: binary.BigEndian.Uint32(t[4:]), fin: t[13]&1 != 0, syn: t[13]&2 != 0, rst: t[13]&4 != 0, data: t[offset:]}
	if server.Port() == tlsPort {
		return flow{client, server}, s, true, true
	}
	return flow{server, client}, s, false, true
}

// verdicts of parseHello.
type reading int

const (
	incomplete reading = iota
	complete
	hopeless
)

// parseHello reads the ClientHello at the start of a TLS connection, whatever
// number of records it comes in.
func parseHello(stream []byte) (h clientHello, r reading) {
	var message []byte
	s := cryptobyte.String(stream)
	for {
		var kind uint8
		var version uint16
		var body cryptobyte.String
		rest := s
		if len(rest) >= 1 && rest[0] != 22 { // handshake
			return h, hopeless
		}
		if !rest.ReadUint8(&kind) || !rest.ReadUint16(&version) || !rest.ReadUint16LengthPrefixed(&body) {
			return h, incomplete
		}
		s = rest
		message = append(message, body...)
		if len(message) >= 4 {
			if message[0] != 1 { // client_hello
				return h, hopeless
			}
			length := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if length > helloLimit {
				return h, hopeless
			}
			if len(message) >= 4+length {
				return readHello(message[4 : 4+length])
			}
		}
	}
}

func readHello(body cryptobyte.String) (h clientHello, r reading) {
	var session, suites, compression, extensions cryptobyte.String
	if !body.Skip(2+32) || !body.ReadUint8LengthPrefixed(&session) || !body.ReadUint16LengthPrefixed(&suites) ||
		!body.ReadUint8LengthPrefixed(&compression) {
		return h, hopeless
	}
	for !suites.Empty() {
		var id uint16
		if !suites.ReadUint16(&id) {
			return h, hopeless
		}
		h.suites = append(h.suites, id)
	}
	if body.Empty() {
		return h, complete
	}
	if !body.ReadUint16LengthPrefixed(&extensions) {
		return h, hopeless
	}
	for !extensions.Empty() {
		var id uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&data) {
			return h, hopeless
		}
		h.extensions = append(h.extensions, id)
		h.readExtension(id, data)
	}
	return h, complete
}

// Extensions that are read (IANA, TLS ExtensionType Values).
const (
	serverNameExtension = 0
	signaturesExtension = 13
	alpnExtension       = 16
	versionsExtension   = 43
)

// readExtension takes what it understands of an extension.
func (h *clientHello) readExtension(id uint16, data cryptobyte.String) {
	numbers := func(list cryptobyte.String) (all []uint16) {
		var n uint16
		for list.ReadUint16(&n) {
			all = append(all, n)
		}
		return all
	}
	var list, item cryptobyte.String
	switch id {
	case serverNameExtension:
		var kind uint8
		if data.ReadUint16LengthPrefixed(&list) && list.ReadUint8(&kind) && kind == 0 && list.ReadUint16LengthPrefixed(&item) {
			h.serverName = string(item)
		}
	case signaturesExtension:
		if data.ReadUint16LengthPrefixed(&list) {
			h.signatures = numbers(list)
		}
	case versionsExtension:
		if data.ReadUint8LengthPrefixed(&list) {
			h.versions = numbers(list)
		}
	case alpnExtension:
		if data.ReadUint16LengthPrefixed(&list) {
			for list.ReadUint8LengthPrefixed(&item) {
				h.protocols = append(h.protocols, string(item))
			}
		}
	}
}

// goSuites are the cipher suites that Go's TLS offers, from a hello of its own.
func goSuites() []uint16 {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go tls.Client(client, &tls.Config{ServerName: "example.test"}).HandshakeContext(ctx)
	var stream []byte
	buffer := make([]byte, 4<<10)
	for {
		n, err := server.Read(buffer)
		stream = append(stream, buffer[:n]...)
		if h, r := parseHello(stream); r == complete {
			return h.suites
		}
		if err == io.EOF || err != nil {
			return nil
		}
	}
}
