package headscale

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
)

func town() *site.Site {
	return &site.Site{
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
			{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:22"}},
			{Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}},
		},
		Hosts:    []site.Host{{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1")}},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	}
}

func TestPolicy(t *testing.T) {
	got, err := Policy(town())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "tagOwners": {
    "tag:admin": [
      "operator@"
    ],
    "tag:guest": [
      "operator@"
    ],
    "tag:infra": [
      "operator@"
    ]
  },
  "hosts": {
    "nullstone": "100.64.0.1"
  },
  "acls": [
    {
      "action": "accept",
      "src": [
        "tag:admin"
      ],
      "dst": [
        "*:*"
      ]
    },
    {
      "action": "accept",
      "proto": "tcp",
      "src": [
        "tag:infra"
      ],
      "dst": [
        "tag:infra:22"
      ]
    },
    {
      "action": "accept",
      "proto": "tcp",
      "src": [
        "tag:guest"
      ],
      "dst": [
        "nullstone:443"
      ]
    }
  ]
}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
}

func TestPolicyNeedsTheHostsAddress(t *testing.T) {
	s := town()
	s.Hosts[0].Tailnet = netip.Addr{}
	if got, err := Policy(s); err == nil {
		t.Errorf("a policy without the service's address: %s", got)
	}
}
