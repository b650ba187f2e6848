package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/site"
)

// downloadsPort is where the mirror and the directory are asked for: HTTPS.
const downloadsPort = 443

var downloadRules = []Rule{
	{
		ID:     "downloads",
		What:   "the mesh has a service dl, from which updates and the directory come",
		Why:    "where the registry is blocked a laptop gets no update, and where an address moves no newer directory",
		Source: "strategy, dl.veilor; overlay/etc/containers/registries.conf.d",
		Fix:    "take the service dl in site/veilor.yaml out of its comment, and let the tiers of laptops open it",
		Pending: "no machine serves it yet, and a site decides for itself that guests may open one more name; " +
			"without it the name does not exist, updates come from the registry, and the directory by `veilor mesh import` or an update",
		check: func(_ context.Context, s *Subject) error {
			if _, ok := downloads(s.Site); !ok {
				return fmt.Errorf("%s.%s is no service of the site", overlay.MirrorHost, s.Site.Zone)
			}
			return nil
		},
	},
	{
		ID:     "downloads-reach",
		What:   "every laptop may open the service dl, and by https",
		Why:    "a tier that may not gets no update over the mesh, and its owner is not told why",
		Source: "site/veilor.yaml, tiers",
		Fix:    "add dl and its port, for example dl.veilor:443, to the tier's reach",
		check:  downloadsReach,
	},
}

// downloads is the service dl of the site's zone.
func downloads(s *site.Site) (site.Service, bool) {
	i := slices.IndexFunc(s.Services, func(v site.Service) bool { return v.Name == overlay.MirrorHost+"."+s.Zone })
	if i < 0 {
		return site.Service{}, false
	}
	return s.Services[i], true
}

func downloadsReach(_ context.Context, s *Subject) error {
	dl, ok := downloads(s.Site)
	if !ok {
		return skipf("the site has no service %s.%s", overlay.MirrorHost, s.Site.Zone)
	}
	var p problems
	if !slices.Contains(dl.Ports, downloadsPort) {
		p.addf("%s does not serve port %d", dl.Name, downloadsPort)
	}
	for _, t := range s.Site.Tiers {
		opens := func(names ...string) bool {
			return slices.ContainsFunc(t.Reach, func(r string) bool {
				target, port, _ := strings.Cut(r, ":")
				return slices.Contains(names, target) && (port == fmt.Sprint(downloadsPort) || port == "*")
			})
		}
		// A tier that opens a service is one of laptops; one that opens none, of
		// servers.
		laptops := slices.ContainsFunc(s.Site.Services, func(v site.Service) bool { return v.Name != dl.Name && opens(v.Name) })
		if laptops && !opens(dl.Name, "*") {
			p.addf("tier %s opens services and not %s:%d", t.Name, dl.Name, downloadsPort)
		}
	}
	return p.err()
}
