package main

import (
	"context"
	"net/http"
	"slices"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/status"
)

// watched is a line of GET /watch: what the daemon knows of the services without
// asking any layer. It is written at once and then whenever something changed.
type watched struct {
	Services []status.Service `json:"services"`
}

// watch answers GET /watch from what fwd knows, and returns what is to be called
// when that may have changed. Nobody's watching makes traffic: what was not tried
// is left out, for it would be told as lost.
func watch(ctx context.Context, fwd *forward.Forwarder) (answer http.HandlerFunc, changed func()) {
	hub := meshsock.NewHub(ctx)
	return hub.Handler(func() any {
		var known []forward.Status
		for _, name := range fwd.Names() {
			if e, ok := fwd.Explain(name); ok {
				known = append(known, e.Status)
			}
		}
		return watched{status.Services(tried(known))}
	}), hub.Wake
}

// tried leaves out layers that nobody tried, and services of which nothing is
// known because of them.
func tried(all []forward.Status) []forward.Status {
	var known []forward.Status
	for _, s := range all {
		layers := slices.DeleteFunc(slices.Clone(s.Layers), func(h mesh.Health) bool { return h.State == mesh.Untried })
		if s.Active == "" && len(layers) < len(s.Layers) {
			continue
		}
		s.Layers = layers
		known = append(known, s)
	}
	return known
}
