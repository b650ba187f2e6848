package world

import (
	"context"
	"slices"

	"github.com/veilor/veilor-os/internal/site"
)

// startAttic runs the site's second host, which stands in the laptop's own
// network: tailscaled, a Yggdrasil node that peers with the edges, and the
// service that the site says is there.
func (w *World) startAttic(ctx context.Context) error {
	s := w.cfg.Site
	host := s.Hosts[1]
	var err error
	if w.AtticHost, err = w.joinHost(ctx, w.Attic, host); err != nil {
		return err
	}
	v := s.Services[slices.IndexFunc(s.Services, func(v site.Service) bool { return v.Host == host.Name })]
	w.AtticNode = &Edge{
		w: w, name: host.Name, ns: w.Attic, key: w.cfg.AtticKey, host: host.Yggdrasil,
		up: Peers(s.Yggdrasil.Edges), open: v.Ports, alone: true,
	}
	if err := w.AtticNode.begin(ctx); err != nil {
		return err
	}
	return w.startService(w.Attic, v)
}
