package tiers

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/tier"
)

// sctp and gre stand for every protocol that no tier opens.
const (
	sctp tier.Protocol = 132
	gre  tier.Protocol = 47
	// redirect stands for ICMP that is no echo request (RFC 792, RFC 4861 §4.5).
	redirect tier.Protocol = 255
)

// idOffset is where in the transport header or payload a packet carries its
// number: bytes that no protocol here gives a meaning to in a first packet.
const idOffset = 8

// packet is what is sent into an interface.
type packet struct {
	src, dst netip.AddrPort
	proto    tier.Protocol
	id       uint32
}

// bytes is the packet as it comes out of a tunnel: IP header and all.
func (p packet) bytes() []byte {
	six := p.src.Addr().Is6()
	number := byte(p.proto)
	body := make([]byte, 20)
	binary.BigEndian.PutUint16(body, p.src.Port())
	binary.BigEndian.PutUint16(body[2:], p.dst.Port())
	binary.BigEndian.PutUint32(body[idOffset:], p.id)
	sum := 0 // offset of the checksum
	switch p.proto {
	case tier.TCP:
		body[12], body[13], sum = 5<<4, 0x02, 16 // SYN
		binary.BigEndian.PutUint16(body[14:], 65535)
	case tier.UDP:
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
		sum = 6
	case tier.ICMP, redirect:
		kind := byte(8)
		switch {
		case six && p.proto == redirect:
			kind = 137
		case six:
			kind = 128
		case p.proto == redirect:
			kind = 5
		}
		number = unix.IPPROTO_ICMP
		if six {
			number = unix.IPPROTO_ICMPV6
		}
		binary.BigEndian.PutUint16(body, uint16(kind)<<8)
		body[2], body[3] = 0, 0
		// The echo's identifier is to conntrack what a port is.
		binary.BigEndian.PutUint16(body[4:], uint16(p.id))
		binary.BigEndian.PutUint16(body[6:], uint16(p.id>>16))
		sum = 2
	}
	src, dst := p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()
	if sum > 0 {
		s := checksum(0, body)
		if six || (p.proto != tier.ICMP && p.proto != redirect) {
			s = checksum(checksum(s, src), dst) + uint32(number) + uint32(len(body))
		}
		binary.BigEndian.PutUint16(body[sum:], fold(s))
	}
	if six {
		h := make([]byte, 40, 60)
		h[0], h[6], h[7] = 6<<4, number, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
		copy(h[8:], src)
		copy(h[24:], dst)
		return append(h, body...)
	}
	h := make([]byte, 20, 40)
	h[0], h[8], h[9] = 4<<4|5, 64, number
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	copy(h[12:], src)
	copy(h[16:], dst)
	binary.BigEndian.PutUint16(h[10:], fold(checksum(0, h)))
	return append(h, body...)
}

// Bytes is the first packet of a flow, as it goes into a tunnel: a SYN, a
// datagram or an echo request (whose identifier is src's port).
func Bytes(src, dst netip.AddrPort, proto tier.Protocol) []byte {
	return packet{src: src, dst: dst, proto: proto, id: uint32(src.Port())}.bytes()
}

// checksum adds 16-bit words (RFC 1071) without folding. All slices are even.
func checksum(s uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// destination reads where a packet that the machine sends goes to.
func destination(b []byte) (netip.AddrPort, bool) {
	switch {
	case len(b) >= 24 && b[0]>>4 == 4:
		a, _ := netip.AddrFromSlice(b[16:20])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[22:])), true
	case len(b) >= 44 && b[0]>>4 == 6:
		a, _ := netip.AddrFromSlice(b[24:40])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[42:])), true
	}
	return netip.AddrPort{}, false
}
