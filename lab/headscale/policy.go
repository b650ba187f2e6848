package headscale

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
)

// Operator is the user that owns the tags.
const Operator = "operator"

// Policy turns the site's tiers into a Headscale policy (grammar 0.29). A
// machine may open what its tier's reach says, by TCP, and nothing else; only
// "*" reaches every protocol.
func Policy(s *site.Site) ([]byte, error) {
	type acl struct {
		Action string   `json:"action"`
		Proto  string   `json:"proto,omitempty"`
		Src    []string `json:"src"`
		Dst    []string `json:"dst"`
	}
	policy := struct {
		TagOwners map[string][]string   `json:"tagOwners"`
		Hosts     map[string]netip.Addr `json:"hosts"`
		ACLs      []acl                 `json:"acls"`
	}{map[string][]string{}, map[string]netip.Addr{}, nil}

	tags := map[string]string{}
	for _, t := range s.Tiers {
		tags[t.Name] = t.Tag
		policy.TagOwners[t.Tag] = []string{Operator + "@"}
	}
	for _, h := range s.Hosts {
		if h.Tailnet.IsValid() {
			policy.Hosts[h.Name] = h.Tailnet
		}
	}
	services := map[string]string{}
	for _, v := range s.Services {
		services[v.Name] = v.Host
	}
	for _, t := range s.Tiers {
		for _, reach := range t.Reach {
			target, port, _ := strings.Cut(reach, ":")
			a := acl{Action: "accept", Src: []string{t.Tag}}
			switch {
			case target == "*":
				a.Dst = []string{reach}
			case tags[target] != "":
				a.Dst = []string{tags[target] + ":" + port}
			default:
				host := services[target]
				if !policy.Hosts[host].IsValid() {
					return nil, fmt.Errorf("making the policy: tier %s reaches %s, but host %q has no tailnet address", t.Name, target, host)
				}
				a.Dst = []string{host + ":" + port}
			}
			if port != "*" {
				a.Proto = "tcp"
			}
			policy.ACLs = append(policy.ACLs, a)
		}
	}
	return json.MarshalIndent(policy, "", "  ")
}
