package cost

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/veilor/veilor-os/lab/daemon"
)

// relayLimit is for a relay to listen; it takes some milliseconds.
const relayLimit = 10 * time.Second

// relayAddr is on the laptop, for one relay at a time.
var relayAddr = netip.MustParseAddrPort("127.0.0.1:4430")

// startRelay starts lab/cmd/relay on the laptop, to the service at an address.
func (t *town) startRelay(ctx context.Context, layer string, at netip.Addr) (listens netip.AddrPort, stop func(), err error) {
	name := "relay-" + layer
	d, err := daemon.Start(t.world.Guest, name, filepath.Join(t.logs, name+".log"),
		exec.Command(t.relay, relayAddr.String(), netip.AddrPortFrom(at, 443).String()))
	if err != nil {
		return relayAddr, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, relayLimit, fmt.Errorf("not ready after %v", relayLimit))
	defer cancel()
	err = d.Ready(ctx, func(ctx context.Context) error {
		c, err := t.world.Guest.DialContext(ctx, "tcp", relayAddr.String())
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		d.Stop()
		return relayAddr, nil, err
	}
	return relayAddr, d.Stop, nil
}
