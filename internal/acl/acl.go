// Package acl compiles the tiers into a Headscale policy, and reads one back.
//
// The grammar is that of Headscale 0.29 (hscontrol/policy/v2): HuJSON with
// tagOwners, hosts, nodeAttrs, acls and tests. A rule names tags, so that the policy does
// not grow with the number of laptops; a service is the addresses of its host,
// both of them, because Headscale does not follow an address to its node.
//
// Nobody owns a tag: machines get theirs from the key they join with, and no
// user may give one to himself.
package acl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/veilor/veilor-os/internal/tier"
)

// MaxSize bounds a policy, written or read back. Ours has a few KiB for any
// number of laptops. Headscale's database column has no limit of its own, but its
// REST server passes requests on by gRPC, which takes 4 MiB; what could not be
// read back must not be written.
const MaxSize = 1 << 20

// Document is a Headscale policy, as far as veilor uses the grammar.
type Document struct {
	TagOwners map[string][]string   `json:"tagOwners"`
	Hosts     map[string]netip.Addr `json:"hosts,omitempty"`
	NodeAttrs []NodeAttr            `json:"nodeAttrs,omitempty"`
	// ACLs is never nil: a policy without the member allows everything.
	ACLs  []Rule `json:"acls"`
	Tests []Test `json:"tests,omitempty"`
}

// NodeAttr tells tailscaled on the target machines how to behave.
type NodeAttr struct {
	Target []string `json:"target"`
	Attr   []string `json:"attr"`
}

// noPortalDetection keeps tailscaled from asking servers of Tailscale by plain
// HTTP whether there is a captive portal, which it does from 1.72 on as soon as
// its relays do not answer (tailcfg.NodeAttrDisableCaptivePortalDetection). It
// would tell a network that blocks the tailnet who is looking for it.
//
// cache-network-maps, by which a laptop could use the tailnet after a restart
// without its control server, is not asked for: a machine that was revoked
// meanwhile would be let in, and tailscaled 1.102 sends more packets with it
// (tailscale/tailscale#20081). The other layer has that case.
const noPortalDetection = "disable-captive-portal-detection"

// Rule lets sources open destinations.
type Rule struct {
	Action string   `json:"action"`
	Proto  string   `json:"proto,omitempty"`
	Src    []string `json:"src"`
	Dst    []string `json:"dst"`

	// id is the line of the site that it comes from; it becomes a comment.
	id string
}

// Test makes Headscale (from 0.29) refuse a policy that does not hold it.
type Test struct {
	Src    string   `json:"src"`
	Proto  string   `json:"proto,omitempty"`
	Accept []string `json:"accept,omitempty"`
	Deny   []string `json:"deny,omitempty"`
}

// sixth is the name of a host's IPv6 address beside its IPv4 one.
const sixth = "-v6"

// probes are the ports that tests try beside those of rules: one that nobody
// but an admin may open anywhere, and the one that guests may open somewhere.
var probes = []uint16{22, 443}

// Compile makes the policy with all its tests.
func Compile(f *tier.Fleet) (*Document, error) {
	p := f.Policy()
	d := &Document{TagOwners: map[string][]string{}, Hosts: map[string]netip.Addr{}, ACLs: []Rule{}}
	d.NodeAttrs = []NodeAttr{{Target: []string{"*"}, Attr: []string{noPortalDetection}}}
	for _, t := range p.Tiers() {
		d.TagOwners[p.Tag(t)] = []string{}
	}
	hosts := map[string][]string{} // host: its names in the policy
	for _, r := range p.Rules() {
		name := r.Target.Host
		if name == "" || hosts[name] != nil {
			continue
		}
		m, _ := f.ByName(name)
		if m.Revoked {
			continue // its rules open nothing
		}
		if len(m.Tailnet) == 0 {
			return nil, fmt.Errorf("compiling the Headscale policy: %s needs the tailnet address of %s; join the host and write hosts[%s].tailnet in the site", r, name, name)
		}
		for _, a := range m.Tailnet {
			alias := name
			if a.Is6() {
				alias += sixth
			}
			if _, taken := d.Hosts[alias]; taken {
				return nil, fmt.Errorf("compiling the Headscale policy: %s would stand for two addresses; a machine has one of each family, and no host may be called %s%s", alias, name, sixth)
			}
			d.Hosts[alias] = a
			hosts[name] = append(hosts[name], alias)
		}
	}
	for _, r := range p.Rules() {
		port := "*"
		a := Rule{Action: "accept", Src: []string{p.Tag(r.Tier)}, id: r.ID + ": " + r.String()}
		if r.Port != 0 {
			// Without proto it would be UDP as well.
			a.Proto, port = "tcp", strconv.Itoa(int(r.Port))
		}
		switch {
		case r.Target.All:
			a.Dst = []string{"*:" + port}
		case r.Target.Tier != "":
			a.Dst = []string{p.Tag(r.Target.Tier) + ":" + port}
		default:
			for _, alias := range hosts[r.Target.Host] {
				a.Dst = append(a.Dst, alias+":"+port)
			}
			if a.Dst == nil {
				continue
			}
		}
		d.ACLs = append(d.ACLs, a)
	}
	d.tests(f, hosts)
	if n := len(d.Text()); n > MaxSize {
		return nil, fmt.Errorf("compiling the Headscale policy: it would have %d bytes; at most %d can be loaded and read back; write fewer tiers or services", n, MaxSize)
	}
	return d, nil
}

// tests writes down what Decide says of one machine of each tier and of each
// host with a service.
func (d *Document) tests(f *tier.Fleet, hosts map[string][]string) {
	p := f.Policy()
	ports := slices.Clone(probes)
	for _, r := range p.Rules() {
		if r.Port != 0 && !slices.Contains(ports, r.Port) {
			ports = append(ports, r.Port)
		}
	}
	slices.Sort(ports)
	var servers []tier.Machine
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		m, _ := f.ByName(name)
		servers = append(servers, m)
	}
	for _, from := range p.Tiers() {
		t := Test{Src: p.Tag(from), Proto: "tcp"}
		add := func(name string, port uint16, allow bool) {
			dst := name + ":" + strconv.Itoa(int(port))
			if allow {
				t.Accept = append(t.Accept, dst)
			} else {
				t.Deny = append(t.Deny, dst)
			}
		}
		src := tier.Machine{Tier: from}
		for _, m := range servers {
			for _, port := range ports {
				for _, alias := range hosts[m.Name] {
					add(alias, port, p.Decide(src, m, tier.TCP, port).Allow)
				}
			}
		}
		for _, to := range p.Tiers() {
			for _, port := range ports {
				allow := p.Decide(src, tier.Machine{Tier: to}, tier.TCP, port).Allow
				// Headscale calls a tag reached if any node of it is.
				if !allow && slices.ContainsFunc(servers, func(m tier.Machine) bool {
					return m.Tier == to && p.Decide(src, m, tier.TCP, port).Allow
				}) {
					continue
				}
				add(p.Tag(to), port, allow)
			}
		}
		d.Tests = append(d.Tests, t)
	}
}

// Bare is the policy without its tests: the same rules.
func (d *Document) Bare() *Document {
	c := *d
	c.Tests = nil
	return &c
}

// TestedBy is the policy with those tests that a tailnet can run whose nodes
// have the given tags. Headscale refuses a policy of which a test names a tag
// that no node has. It also returns the tags whose tests were left out.
func (d *Document) TestedBy(tags []string) (*Document, []string) {
	c := *d
	c.Tests = nil
	missing := map[string]bool{}
	present := func(name string) bool {
		tag, isTag := strings.CutPrefix(name, "tag:")
		if !isTag {
			return true
		}
		tag, _, _ = strings.Cut(tag, ":")
		ok := slices.Contains(tags, "tag:"+tag)
		if !ok {
			missing["tag:"+tag] = true
		}
		return ok
	}
	absent := func(name string) bool { return !present(name) }
	for _, t := range d.Tests {
		if absent(t.Src) {
			continue
		}
		t.Accept = slices.DeleteFunc(slices.Clone(t.Accept), absent)
		t.Deny = slices.DeleteFunc(slices.Clone(t.Deny), absent)
		if len(t.Accept)+len(t.Deny) > 0 {
			c.Tests = append(c.Tests, t)
		}
	}
	return &c, slices.Sorted(maps.Keys(missing))
}

// header is the first line of a policy of ours.
const header = "// Written by veilor-forge from the site file. Change that, not this.\n"

// Text is the policy as HuJSON. It is the same bytes for the same policy.
func (d *Document) Text() []byte {
	var b bytes.Buffer
	b.WriteString(header + "{\n")
	fmt.Fprintf(&b, "  // Nobody: a machine has the tag of the key that it joined with.\n  \"tagOwners\": %s,\n", object(d.TagOwners))
	if len(d.Hosts) > 0 {
		fmt.Fprintf(&b, "  \"hosts\": %s,\n", object(d.Hosts))
	}
	if len(d.NodeAttrs) > 0 {
		b.WriteString("  // tailscaled asks nobody outside whether there is a captive portal.\n  \"nodeAttrs\": [\n")
		for i, a := range d.NodeAttrs {
			fmt.Fprintf(&b, "    %s%s\n", line(a), comma(i, len(d.NodeAttrs)))
		}
		b.WriteString("  ],\n")
	}
	b.WriteString("  \"acls\": [\n")
	for i, r := range d.ACLs {
		if r.id != "" {
			fmt.Fprintf(&b, "    // %s\n", r.id)
		}
		fmt.Fprintf(&b, "    %s%s\n", line(r), comma(i, len(d.ACLs)))
	}
	b.WriteString("  ]")
	if len(d.Tests) > 0 {
		b.WriteString(",\n  \"tests\": [\n")
		for i, t := range d.Tests {
			fmt.Fprintf(&b, "    %s%s\n", line(t), comma(i, len(d.Tests)))
		}
		b.WriteString("  ]")
	}
	b.WriteString("\n}\n")
	return b.Bytes()
}

func comma(i, n int) string {
	if i < n-1 {
		return ","
	}
	return ""
}

// line is v as JSON on one line. Nothing in a Document can fail to encode.
func line(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func object(v any) string {
	b, err := json.MarshalIndent(v, "  ", "  ")
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Parse reads a policy that some server has. Members that veilor does not use
// (groups, grants, ssh, …) are returned by name: they may open things, and so
// a policy with any of them is not ours.
func Parse(text []byte) (*Document, []string, error) {
	if len(text) > MaxSize {
		return nil, nil, fmt.Errorf("reading the policy: %d bytes; at most %d are read", len(text), MaxSize)
	}
	std, err := hujson.Standardize(bytes.Clone(text))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the policy: %w", err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(std, &members); err != nil {
		return nil, nil, fmt.Errorf("reading the policy: %w", err)
	}
	var d Document
	var others []string
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(members)) {
		var into any
		switch name {
		case "tagOwners":
			into = &d.TagOwners
		case "hosts":
			// Anything that is no address of ours is shown as other.
			if json.Unmarshal(members[name], &d.Hosts) != nil {
				d.Hosts = nil
				others = append(others, "hosts (with ranges)")
			}
			continue
		case "nodeAttrs":
			// With other members than ours it is somebody else's, as hosts above.
			dec := json.NewDecoder(bytes.NewReader(members[name]))
			dec.DisallowUnknownFields()
			if dec.Decode(&d.NodeAttrs) != nil {
				d.NodeAttrs = nil
				others = append(others, "nodeAttrs (with more)")
			}
			continue
		case "acls":
			into = &d.ACLs
		case "tests":
			into = &d.Tests
		default:
			others = append(others, name)
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(members[name]))
		dec.DisallowUnknownFields()
		if err := dec.Decode(into); err != nil {
			errs = append(errs, fmt.Errorf("reading %s of the policy: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	return &d, others, nil
}
