package check

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

var siteRules = []Rule{
	{
		ID:      "site-complete",
		What:    "the site has every key and address that an image needs",
		Why:     "no image can be built, or its clients could not check it",
		Source:  "site/veilor.yaml",
		Fix:     "run the command that is named and put the result there",
		Pending: "only the operator can supply these; the other rules were checked with stand-ins",
		check:   func(_ context.Context, s *Subject) error { return s.Missing },
	},
	{
		ID:     "tiers",
		What:   "no tier opens more than the site names",
		Why:    "a failover, or a second port on the same machine, would widen a guest's access",
		Source: "internal/tier",
		Fix:    "narrow the rule that is named",
		check: func(_ context.Context, s *Subject) error {
			_, err := tier.New(s.Site)
			return err
		},
	},
	{
		ID:     "names",
		What:   "every name of the zone has a tier that may reach it, and the authority can certify it",
		Why:    "a name that nobody may open, or no browser trusts, is a broken promise",
		Source: "site/veilor.yaml; RFC 5280, 4.2.1.10",
		Fix:    "add the service to a tier's reach, or make an authority for the zone: veilor-forge authority create",
		check:  names,
	},
}

func names(_ context.Context, s *Subject) error {
	var p problems
	p.add(authorised(s))
	if len(s.Site.Services) == 0 {
		p.addf("the site has no service")
	}
	for _, v := range s.Site.Services {
		if !strings.HasSuffix(v.Name, "."+s.Site.Zone) {
			p.addf("%s is not in .%s", v.Name, s.Site.Zone)
		}
		// *:* is for administrators; a name is for others too.
		named := slices.ContainsFunc(s.Site.Tiers, func(t site.Tier) bool {
			return slices.ContainsFunc(t.Reach, func(r string) bool {
				target, _, _ := strings.Cut(r, ":")
				return target == v.Name
			})
		})
		if !named {
			p.addf("%s: no tier names it under reach", v.Name)
		}
		if h, ok := s.Site.Host(v.Host); !ok || h.Tier == "" {
			p.addf("%s: its host %q has no tier", v.Name, v.Host)
		}
	}
	return p.err()
}

// authorised returns what is wrong with the authority.
func authorised(s *Subject) error {
	var p problems
	block, _ := pem.Decode(s.Site.Authority.Data)
	if block == nil {
		p.addf("the authority is no PEM certificate")
		return p.err()
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		p.addf("the authority: %w", err)
		return p.err()
	}
	if !c.IsCA || !c.PermittedDNSDomainsCritical || !slices.Equal(c.PermittedDNSDomains, []string{s.Site.Zone}) {
		p.addf("the authority is not bound, critically, to .%s alone (it permits %q)", s.Site.Zone, c.PermittedDNSDomains)
	}
	return p.err()
}
