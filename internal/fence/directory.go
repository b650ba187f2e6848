package fence

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"

	"github.com/veilor/veilor-os/internal/directory"
)

// Group is tailscaled's control group, as systemd names it.
const Group = "system.slice/tailscaled.service"

// ErrNoGate says that there is no fence, because the directory has no address of
// the control server: a fence without a gate would end the tailnet.
var ErrNoGate = errors.New("tailscaled is not fenced")

// Follow puts the fence in force that the directory wants, or takes it away and
// returns ErrNoGate. It may wrap ErrNoGroup, and then the fence is in force.
func Follow(d directory.Directory, group string, opts ...nftables.ConnOption) error {
	var all []netip.Addr
	for i, s := range d.Servers() {
		if i == 0 && len(s.Addresses) == 0 {
			if err := Remove(opts...); err != nil {
				return err
			}
			return fmt.Errorf("the directory has no address of %s, so %w", s.Name, ErrNoGate)
		}
		all = append(all, s.Addresses...)
	}
	return Load(Config{Servers: all, Group: group}, opts...)
}
