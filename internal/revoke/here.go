package revoke

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"tailscale.com/client/local"

	"github.com/veilor/veilor-os/internal/flows"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// peerLimit is how long tailscaled may take to hear from Headscale that a
	// node is gone. It was seen to take up to 2 s; until then it lets in what the
	// node sends, so nothing is confirmed before.
	peerLimit = 10 * time.Second
	peerEvery = 100 * time.Millisecond
	// calm is how many looks in a row, peerEvery apart, must find no socket: its
	// peers are gone from tailscaled's list a moment before its WireGuard is.
	calm = 10
)

// Peers are the other machines of the tailnet as the tailscaled at socket knows
// them; none if it does not run. It knows them while Headscale is down, too.
func Peers(ctx context.Context, socket string) ([]headscale.Node, error) {
	c := local.Client{Socket: socket, UseSocketOnly: true}
	st, err := c.Status(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking tailscaled for its peers: %w", err)
	}
	var nodes []headscale.Node
	for _, p := range st.Peer {
		name, _, _ := strings.Cut(p.DNSName, ".")
		// Headscale's stable id of a node is its id.
		nodes = append(nodes, headscale.Node{ID: string(p.ID), Name: name, Addresses: p.TailscaleIPs, CreatedAt: p.Created})
	}
	return nodes, nil
}

// hereStep closes the packet filter of this machine, if it has ours, sees to it
// that its tailscaled has heard, and ends its sockets with the machine.
type hereStep struct{ socket string }

func (h hereStep) Close(ctx context.Context, o Order) (string, error) {
	as, err := h.addresses(ctx, o)
	if err != nil {
		return "", err
	}
	filters, err := filter(as)
	if err != nil {
		return "", err
	}
	// Before tailscaled is waited for, which may be until Headscale is back.
	closed, err := flows.Close(0, as...)
	if err != nil {
		return "", err
	}
	if !slices.Contains(filters, tier.Tailnet) {
		if err := h.gone(ctx, o); err != nil {
			return "", err
		}
		more, err := drain(ctx, as)
		if err != nil {
			return "", err
		}
		closed.Sockets, closed.Tracked = closed.Sockets+more.Sockets, closed.Tracked+more.Tracked
	}
	what := fmt.Sprintf("%s and %s ended", count(closed.Sockets, "socket"), count(closed.Tracked, "tracked flow"))
	for _, l := range filters {
		what += "; dropped by the packet filter of " + l.String()
	}
	return what, nil
}

// Learn is for [Learner]: tailscaled knows its peers while Headscale is down.
func (h hereStep) Learn(ctx context.Context, o Order) (Subject, error) {
	peers, err := Peers(ctx, h.socket)
	return o.known(peers), err
}

func (h hereStep) Check(ctx context.Context, o Order) error {
	as, err := h.addresses(ctx, o)
	if err != nil {
		return err
	}
	filters, err := filter(as)
	if err != nil {
		return err
	}
	if !slices.Contains(filters, tier.Tailnet) {
		if err := h.gone(ctx, o); err != nil {
			return err
		}
	}
	n, err := flows.Count(0, as...)
	if err == nil && n > 0 {
		err = fmt.Errorf("%s with it: it came back, or never left", count(n, "socket"))
	}
	return err
}

// addresses are the machine's on all layers, but for those of the tailnet that
// are another machine's by now: Headscale gives them out again.
func (h hereStep) addresses(ctx context.Context, o Order) ([]netip.Addr, error) {
	as := o.Subject.all()
	if len(o.Subject.Nodes) == 0 {
		return as, nil
	}
	peers, err := Peers(ctx, h.socket)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(as, func(a netip.Addr) bool {
		return slices.ContainsFunc(peers, func(p headscale.Node) bool { return slices.Contains(p.Addresses, a) && !o.matches(p) })
	}), nil
}

// gone waits until tailscaled has no such peer.
func (h hereStep) gone(ctx context.Context, o Order) error {
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	tick := time.NewTicker(peerEvery)
	defer tick.Stop()
	for {
		peers, err := Peers(ctx, h.socket)
		switch {
		case ctx.Err() != nil:
			return errPeer
		case err != nil:
			return err
		case !slices.ContainsFunc(peers, o.matches):
			return nil
		}
		// A tailnet that has not confirmed will not be heard of.
		if slices.ContainsFunc(o.Open(), func(p Place) bool { return p.Kind == Tailnet }) {
			return errPeer
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// drain ends what still comes in until nothing does.
func drain(ctx context.Context, as []netip.Addr) (flows.Closed, error) {
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	tick := time.NewTicker(peerEvery)
	defer tick.Stop()
	var total flows.Closed
	for quiet := 0; quiet < calm; {
		n, err := flows.Count(0, as...)
		if err != nil {
			return total, err
		}
		if quiet++; n > 0 {
			quiet = 0
			closed, err := flows.Close(0, as...)
			if err != nil {
				return total, err
			}
			total.Sockets, total.Tracked = total.Sockets+closed.Sockets, total.Tracked+closed.Tracked
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return total, errors.New("new sockets come as fast as they are ended")
		}
	}
	return total, nil
}

var errPeer = errors.New("sockets are ended, but tailscaled here still has it as a peer, and no packet filter of ours drops it: new flows get in until Headscale has confirmed")

// filter closes the packet filters of this machine and says of which layers.
// Where none of ours is in force there is nothing to close.
func filter(as []netip.Addr) ([]tier.Layer, error) {
	byLayer := map[tier.Layer][]netip.Addr{}
	for _, a := range as {
		byLayer[tier.LayerOf(a)] = append(byLayer[tier.LayerOf(a)], a)
	}
	var closed []tier.Layer
	for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
		if len(byLayer[l]) == 0 {
			continue
		}
		switch err := packetfilter.Revoke(packetfilter.TableName(l), byLayer[l]); {
		case errors.Is(err, packetfilter.ErrNoTable):
		case err != nil:
			return closed, err
		default:
			closed = append(closed, l)
		}
	}
	return closed, nil
}
