package cost

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"time"

	"github.com/veilor/veilor-os/lab/daemon"
)

// listenLimit is for a relay or a bus to listen; it takes some milliseconds.
const listenLimit = 10 * time.Second

// relayAddr is on the laptop, for one relay at a time.
var relayAddr = netip.MustParseAddrPort("127.0.0.1:4430")

// startRelay starts lab/cmd/relay on the laptop, to the service at an address.
func (t *town) startRelay(ctx context.Context, layer string, at netip.Addr) (listens netip.AddrPort, stop func(), err error) {
	name := "relay-" + layer
	d, err := t.startListener(ctx, name, exec.Command(t.relay, relayAddr.String(), netip.AddrPortFrom(at, 443).String()), "tcp", relayAddr.String())
	if err != nil {
		return relayAddr, nil, err
	}
	return relayAddr, d.Stop, nil
}

// startListener starts a program on the laptop that listens at an address, and returns
// once it does.
func (t *town) startListener(ctx context.Context, name string, cmd *exec.Cmd, network, address string) (*daemon.Daemon, error) {
	d, err := daemon.Start(t.world.Guest, name, t.log(name), cmd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, listenLimit, fmt.Errorf("not ready after %v", listenLimit))
	defer cancel()
	err = d.Ready(ctx, func(ctx context.Context) error {
		c, err := t.world.Guest.DialContext(ctx, network, address)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		d.Stop()
		return nil, err
	}
	return d, nil
}
