// Package listen opens the sockets that a daemon serves on, and says what to do
// when one cannot be had.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// TCP listens on addr. what says for whom, in errors.
func TCP(ctx context.Context, addr netip.AddrPort, what string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // splice(2) wants plain TCP, and loopback has one path
	// No client on loopback vanishes without a word: Go's question every 15 s
	// would only wake the machine.
	lc.KeepAlive = -1
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, explain(err, "tcp", "-ltnp", addr, what)
	}
	return l.(*net.TCPListener), nil
}

// UDP binds addr. what says for whom, in errors.
func UDP(ctx context.Context, addr netip.AddrPort, what string) (*net.UDPConn, error) {
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, explain(err, "udp", "-lunp", addr, what)
	}
	return c.(*net.UDPConn), nil
}

// explain adds what a person can do about err.
func explain(err error, network, flags string, addr netip.AddrPort, what string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening for %s: %s port %d of %s is taken: %w; `ss %s 'sport = :%d'` run as root says by whom; stop that program or let it listen on another address",
			what, network, addr.Port(), addr.Addr(), syscall.EADDRINUSE, flags, addr.Port())
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening for %s: %s %s: %w; ports below 1024 need CAP_NET_BIND_SERVICE, which veilor-mesh.service has",
			what, network, addr, syscall.EACCES)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listening for %s: %s %s: %w; the loopback interface must be up (`ip link set lo up`)",
			what, network, addr, syscall.EADDRNOTAVAIL)
	}
	return fmt.Errorf("listening for %s: %w", what, err)
}
