package overlay

import (
	"github.com/veilor/veilor-os/internal/firewalld"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

// zonesDir is where firewalld reads the zones of the system. A file in
// /etc/firewalld of the same name would replace ours whole, and is the
// administrator's.
const zonesDir = "usr/lib/firewalld/zones/"

// zones are the firewalld zones of a laptop: it serves nobody, so only those come
// in who may open everything everywhere. No tier is written into an image, which
// is the same for all, and a machine without one has the fewest rights.
func zones(s *site.Site) ([]Entry, error) {
	policy, err := tier.New(s)
	if err != nil {
		return nil, err
	}
	fleet, err := policy.Fleet()
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
		z, err := firewalld.Render(fleet, tier.Machine{Name: "a laptop"}, l)
		if err != nil {
			return nil, err
		}
		entries = append(entries, Entry{Path: zonesDir + z.Name + ".xml", Data: z.XML(), Group: Site})
	}
	return entries, nil
}
