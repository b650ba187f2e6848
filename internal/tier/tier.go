// Package tier decides who may reach what.
//
// A site puts every machine into one tier and says, in its tiers' reach, what a
// tier opens. This package reads that once ([New]) and answers one question:
// may this machine open this port of that machine ([Policy.Decide])? Everything
// that enforces the answer somewhere (the Headscale policy, the packet filter
// on ygg0, the Reticulum allow-list, the firewalld zones) is compiled from the
// same Policy, and the lab holds each compiled form against Decide. That is why
// a failover from one network to another never widens access.
//
// The package is pure: no I/O, no clock.
package tier

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
)

// The tiers that the strategy gives a meaning. A site may have more; those have
// the limits of guests.
const (
	// Admin may open everything; nobody but an admin may open anything of it.
	// The failsafe is a host of this tier.
	Admin = "admin"
	// Infra are the operator's servers, open to each other and to admins.
	Infra = "infra"
	// Guest are the laptops of people. Guests never see each other.
	Guest = "guest"
	// Stranger is who is in no list. It is no tier of a site and opens nothing.
	Stranger = "stranger"
	// Revoked is who was in a list and must be nowhere. It is no tier of a site.
	Revoked = "revoked"
)

// Rule is one line of a tier's reach.
type Rule struct {
	// ID names the line: "guest[0]" is the first of tier guest.
	ID string
	// Tier is who may open it.
	Tier string
	// Target is what is opened.
	Target Target
	// Port is the TCP port, or 0 for every port of TCP and UDP.
	Port uint16
}

// String is the rule as the site writes it, after its tier.
func (r Rule) String() string {
	port := "*"
	if r.Port != 0 {
		port = strconv.Itoa(int(r.Port))
	}
	return r.Tier + " -> " + r.Target.String() + ":" + port
}

// Target is what a rule opens: exactly one of everything, a tier, or a service.
type Target struct {
	All  bool
	Tier string
	// Service is the name of a service, Host the host that has it.
	Service, Host string
}

func (t Target) String() string {
	switch {
	case t.All:
		return "*"
	case t.Tier != "":
		return t.Tier
	}
	return t.Service
}

// Includes says whether the target includes machine m.
func (t Target) Includes(m Machine) bool {
	switch {
	case t.All:
		return true
	case t.Tier != "":
		return m.Tier == t.Tier
	}
	return t.Host != "" && m.Name == t.Host
}

// opens says whether the rule opens port of protocol on a machine that its
// target includes.
func (r Rule) opens(p Protocol, port uint16) bool {
	switch p {
	case ICMP:
		// tailscaled lets ICMP through to every address of which any port is
		// open (wgengine/filter, runIn4: "If any port is open to an IP, allow
		// ICMP to it"). A policy that said otherwise could not be enforced
		// there, so this is what it means on every layer.
		return true
	case TCP:
		return r.Port == 0 || r.Port == port
	case UDP:
		return r.Port == 0
	}
	return false
}

// Policy is what a site's tiers mean.
type Policy struct {
	site  *site.Site
	rules []Rule
}

// Wide is an error of [New]: a site whose tiers open more than veilor promises,
// or mean something else than they seem to.
type Wide struct {
	// Path is the place in the site file: "tiers[2].reach[0]".
	Path string
	// Text says what is wrong and what to write.
	Text string
}

func (w Wide) Error() string { return w.Path + ": " + w.Text }

// New reads the tiers of a site that [site.Parse] accepted. It refuses a site
// that opens more than the strategy allows: a guest opens services of the zone,
// each by its name and one of its ports, and nothing else. The errors are joined
// values of type [Wide].
func New(s *site.Site) (*Policy, error) {
	p := &Policy{site: s}
	var errs []error
	wide := func(path, format string, args ...any) {
		errs = append(errs, Wide{path, fmt.Sprintf(format, args...)})
	}
	tags := map[string]string{}
	for i, t := range s.Tiers {
		path := fmt.Sprintf("tiers[%d]", i)
		if t.Name == Stranger || t.Name == Revoked {
			wide(path+".name", "%q is whoever is in no tier; give the tier another name", t.Name)
		}
		if other, ok := tags[t.Tag]; ok {
			wide(path+".tag", "%s is the tag of tier %s already, and Headscale would give both tiers what either has; write another tag", t.Tag, other)
		}
		tags[t.Tag] = t.Name
		for j, reach := range t.Reach {
			r, err := p.parse(t.Name, j, reach)
			if err != nil {
				wide(fmt.Sprintf("%s.reach[%d]", path, j), "%v", err)
				continue
			}
			if why := p.tooWide(r); why != "" {
				wide(fmt.Sprintf("%s.reach[%d]", path, j), "%s", why)
			}
			p.rules = append(p.rules, r)
		}
	}
	for i, t := range s.Tiers {
		for _, why := range p.alsoOpens(t.Name) {
			wide(fmt.Sprintf("tiers[%d].reach", i), "%s", why)
		}
	}
	for i, h := range s.Hosts {
		if h.Name == Stranger || h.Name == Revoked || p.hasTier(h.Name) {
			wide(fmt.Sprintf("hosts[%d].name", i), "%q is also the name of a class of machines; give the host another name", h.Name)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// parse reads TARGET:PORT of a tier.
func (p *Policy) parse(tier string, index int, reach string) (Rule, error) {
	r := Rule{ID: fmt.Sprintf("%s[%d]", tier, index), Tier: tier}
	target, port, ok := strings.Cut(reach, ":")
	if port != "*" {
		n, err := strconv.ParseUint(port, 10, 16)
		if !ok || err != nil || n == 0 {
			return r, fmt.Errorf("%q is not TARGET:PORT; write for example x.%s:443", reach, p.site.Zone)
		}
		r.Port = uint16(n)
	}
	if target == "*" {
		r.Target.All = true
		return r, nil
	}
	// A name in the zone has a dot, and a tier's name has none.
	if v, ok := p.service(target); ok {
		r.Target.Service, r.Target.Host = v.Name, v.Host
		return r, nil
	}
	if p.hasTier(target) {
		r.Target.Tier = target
		return r, nil
	}
	return r, fmt.Errorf("%q is neither a tier nor a service nor *; add it under tiers or services", target)
}

// tooWide says why the strategy does not allow the rule, or "".
func (p *Policy) tooWide(r Rule) string {
	switch {
	case r.Tier == Admin:
		return ""
	case r.Tier == Infra && r.Target.Tier == Infra:
		return ""
	case r.Target.Service == "" && r.Tier == Infra:
		return fmt.Sprintf("%q is wider than infra may have (itself, and services by name): nobody but an admin opens other machines; write infra:* or the name of a service", r.Target.String())
	case r.Target.Service == "":
		return fmt.Sprintf("%q is wider than tier %s may have: it must name each service that it opens; write for example x.%s:443", r.Target.String(), r.Tier, p.site.Zone)
	}
	v, _ := p.service(r.Target.Service)
	h, _ := p.site.Host(v.Host)
	switch {
	case r.Port == 0:
		return fmt.Sprintf("every port of %s is every port of its host %s, for which the name stands only by chance; write %s", v.Name, v.Host, example(v))
	case !slices.Contains(v.Ports, r.Port):
		return fmt.Sprintf("%s has no port %d, so this opens something else on %s; write %s, or add the port to the service", v.Name, r.Port, v.Host, example(v))
	case h.Tier != Infra && r.Tier != h.Tier:
		return fmt.Sprintf("%s is on %s, a machine of tier %s, which only admins may open; serve it from a host of tier %s", v.Name, v.Host, h.Tier, Infra)
	case h.Tier != Infra && h.Tier != Admin:
		return fmt.Sprintf("%s is on %s, a machine of its own tier %s, and those never see each other; serve it from a host of tier %s", v.Name, v.Host, h.Tier, Infra)
	}
	return ""
}

func example(v site.Service) string { return fmt.Sprintf("%s:%d", v.Name, v.Ports[0]) }

// alsoOpens lists the services that a tier opens without naming them, because a
// packet filter cannot tell two names on one port apart.
func (p *Policy) alsoOpens(tier string) []string {
	if tier == Admin || tier == Infra {
		return nil
	}
	var found []string
	for _, r := range p.rules {
		if r.Tier != tier || r.Target.Service == "" {
			continue
		}
		for _, v := range p.site.Services {
			if v.Host != r.Target.Host || !slices.Contains(v.Ports, r.Port) || p.names(tier, v.Name, r.Port) {
				continue
			}
			found = append(found, fmt.Sprintf("%s:%d also opens %s, which shares the port on %s; name %s:%d too, or give one of them another port", r.Target.Service, r.Port, v.Name, v.Host, v.Name, r.Port))
		}
	}
	return found
}

func (p *Policy) names(tier, service string, port uint16) bool {
	return slices.ContainsFunc(p.rules, func(r Rule) bool {
		return r.Tier == tier && r.Target.Service == service && (r.Port == port || r.Port == 0)
	})
}

// Site is the site that the policy was read from.
func (p *Policy) Site() *site.Site { return p.site }

// Rules are all rules in the order of the site.
func (p *Policy) Rules() []Rule { return slices.Clone(p.rules) }

// Tiers are the names of the site's tiers in its order.
func (p *Policy) Tiers() []string {
	var names []string
	for _, t := range p.site.Tiers {
		names = append(names, t.Name)
	}
	return names
}

// Tag is the Headscale tag of a tier, or "".
func (p *Policy) Tag(tier string) string {
	for _, t := range p.site.Tiers {
		if t.Name == tier {
			return t.Tag
		}
	}
	return ""
}

// OfTags is the tier of a tailnet node that has these tags. No tag is a
// stranger. A tag that the site does not know, or two tags, is an error: such a
// node would have the sum of what its tags open.
func (p *Policy) OfTags(tags []string) (string, error) {
	if len(tags) == 0 {
		return "", nil
	}
	if len(tags) > 1 {
		return "", fmt.Errorf("it has the tags %s, and so what each of them opens; delete the node and join it with one", strings.Join(tags, " and "))
	}
	for _, t := range p.site.Tiers {
		if t.Tag == tags[0] {
			return t.Name, nil
		}
	}
	return "", fmt.Errorf("its tag %s is no tier's; delete the node, or add a tier with that tag", tags[0])
}

func (p *Policy) hasTier(name string) bool { return p.Tag(name) != "" }

func (p *Policy) service(name string) (site.Service, bool) {
	for _, v := range p.site.Services {
		if v.Name == name {
			return v, true
		}
	}
	return site.Service{}, false
}
