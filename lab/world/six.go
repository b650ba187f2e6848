package world

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"

	"tailscale.com/net/stunserver"
)

// control6 is where the control server is by IPv6; invalid if there is none.
func (w *World) control6() netip.Addr {
	if !w.cfg.IPv6 {
		return netip.Addr{}
	}
	return Twin(Control)
}

// startControl6 brings Headscale, which listens at one address, to its IPv6 twin:
// a load balancer passes connections on, unread, and STUN is upstream's own.
func (w *World) startControl6() error {
	to := netip.AddrPortFrom(Control, 443).String()
	l, err := w.Home.Listen("tcp6", netip.AddrPortFrom(w.control6(), 443).String())
	if err != nil {
		return fmt.Errorf("serving the control server by IPv6: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := stunserver.New(ctx)
	if err := w.Home.Do(func() error { return s.Listen(netip.AddrPortFrom(w.control6(), 3478).String()) }); err != nil {
		cancel()
		l.Close()
		return fmt.Errorf("serving STUN by IPv6: %w", err)
	}
	w.onClose(func() {
		cancel()
		l.Close()
	})
	go s.Serve()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				out, err := w.Home.DialContext(ctx, "tcp4", to)
				if err != nil {
					return
				}
				defer out.Close()
				splice(c, out)
			}()
		}
	}()
	return nil
}

// splice carries bytes both ways, and each end's end to the other.
func splice(a, b net.Conn) {
	done := make(chan struct{})
	one := func(to, from net.Conn) {
		io.Copy(to, from)
		if c, ok := to.(*net.TCPConn); ok {
			c.CloseWrite()
		}
	}
	go func() {
		one(a, b)
		close(done)
	}()
	one(b, a)
	<-done
}
