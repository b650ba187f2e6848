package world

import (
	"fmt"
	"io"
	"net"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// Nobody is an address in the public peer's network where nobody is: what a lying
// resolver answers.
var Nobody = netip.MustParseAddr("10.88.5.66")

// lieTTL is how long a lie may be kept, in seconds.
const lieTTL = 60

// Lie answers every DNS question over UDP at a port of the ISP's router with
// Nobody, until it is closed. Questions have to be led there by
// [censor.Resolver].
func (w *World) Lie(port uint16) (io.Closer, error) {
	var liar net.PacketConn
	err := w.ISP.Do(func() (err error) {
		liar, err = net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting a lying resolver: %w", err)
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := liar.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer, err := falsely(buffer[:n]); err == nil {
				liar.WriteTo(answer, from)
			}
		}
	}()
	return liar, nil
}

// falsely is the false answer to a question.
func falsely(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Header.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: lieTTL}, Body: &dnsmessage.AResource{A: Nobody.As4()},
			})
		}
	}
	return m.Pack()
}
