package act

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/world"
)

// probeLimit is how long a datagram may take from the machine to the ISP's
// router: the time that a machine needs to find its gateway anew (ARP tries for 3
// s), and more if it is emulated.
const probeLimit = 10 * time.Second

// nobodyElse holds that since it was first switched on the laptop has asked nobody
// but the servers of the directory and its network's own router. A counter that
// counts nothing proves nothing: before, a datagram to a stranger has to be
// counted, which goes the way that others would.
func (s *Stage) nobodyElse(ctx context.Context, id, when string) error {
	before, err := s.strangers.Probes()
	if err != nil {
		return err
	}
	if _, err := s.machine.Must(ctx, fmt.Sprintf("echo >/dev/udp/%s/%d", world.Probe.Addr(), world.Probe.Port())); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if err := s.strangers.AwaitProbe(limited, before); err != nil {
		return err
	}
	packets, first, err := s.strangers.Seen()
	if err != nil {
		return err
	}
	var asked error
	if packets > 0 {
		asked = fmt.Errorf("%d packets to others, first: %s", packets, strings.Join(first, ", "))
	}
	return s.check(report.Held(id+".strangers", when+": nobody but the directory's servers was asked (0 packets to others)", asked))
}
