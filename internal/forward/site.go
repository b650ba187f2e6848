package forward

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// The interfaces of the layers, as tailscaled and veilor-ygg name them.
const (
	TailnetInterface   = "tailscale0"
	YggdrasilInterface = "ygg0"
)

// httpsPort speaks TLS, always (RFC 9110 §4.2.2).
const httpsPort = 443

// FromSite lists the services of a site with the routes that each has. A port
// that the policy opens to no tier is not listened on, and a service without
// any has no route: a failover must not try what nobody may reach.
func FromSite(s *site.Site) ([]Service, error) {
	policy, err := tier.New(s)
	if err != nil {
		return nil, fmt.Errorf("reading who may reach what: %w", err)
	}
	fleet, err := policy.Fleet()
	if err != nil {
		return nil, fmt.Errorf("reading who may reach what: %w", err)
	}
	var out []Service
	for _, v := range s.Services {
		f := Service{Name: v.Name, Listen: v.Loopback}
		host, ok := fleet.ByName(v.Host)
		if !ok {
			return nil, fmt.Errorf("reading the services: %s is on %s, which is no host of the site", v.Name, v.Host)
		}
		for _, port := range v.Ports {
			if !opens(policy, host, port) {
				continue
			}
			f.Ports = append(f.Ports, port)
			if port == httpsPort {
				f.TLS = append(f.TLS, port)
			}
		}
		if len(f.Ports) > 0 {
			f.Routes = routesTo(host)
		}
		out = append(out, f)
	}
	return out, nil
}

// opens says whether any tier may open the port.
func opens(p *tier.Policy, host tier.Machine, port uint16) bool {
	return slices.ContainsFunc(p.Tiers(), func(t string) bool {
		return p.Decide(tier.Machine{Tier: t}, host, tier.TCP, port).Allow
	})
}

// routesTo lists the layers on which a host has an address.
func routesTo(host tier.Machine) []Route {
	var routes []Route
	for _, r := range []struct {
		layer     mesh.Layer
		iface     string
		addresses []netip.Addr
	}{
		{mesh.Tailnet, TailnetInterface, host.Addresses(tier.Tailnet)},
		{mesh.Yggdrasil, YggdrasilInterface, host.Addresses(tier.Yggdrasil)},
	} {
		if len(r.addresses) > 0 {
			routes = append(routes, Route{r.layer, r.iface, r.addresses[0]})
		}
	}
	return routes
}
