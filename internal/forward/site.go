package forward

import (
	"crypto/ed25519"

	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

// The interfaces of the layers, as tailscaled and veilor-ygg name them.
const (
	TailnetInterface   = "tailscale0"
	YggdrasilInterface = "ygg0"
)

// FromSite lists the services of a site with the routes that each has.
func FromSite(s *site.Site) []Service {
	var out []Service
	for _, v := range s.Services {
		h, _ := s.Host(v.Host)
		f := Service{Name: v.Name, Listen: v.Loopback, Ports: v.Ports}
		if h.Tailnet.IsValid() {
			f.Routes = append(f.Routes, Route{mesh.Tailnet, TailnetInterface, h.Tailnet})
		}
		if key := h.Yggdrasil.Bytes(); key != nil {
			f.Routes = append(f.Routes, Route{mesh.Yggdrasil, YggdrasilInterface, yggdrasil.Address(ed25519.PublicKey(key))})
		}
		out = append(out, f)
	}
	return out
}
