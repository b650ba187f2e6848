package directory

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/veilor/veilor-os/internal/site"
)

// Limits. A village has a dozen services and a handful of edges; these are a
// hundred times that, and still small enough that a hostile file costs nothing.
const (
	// maxFile bounds each of the two files, in bytes.
	maxFile = 64 << 10
	// maxServices is one per number, less 0, the resolver's 53 and 255.
	maxServices  = 253
	maxHosts     = 512
	maxNodes     = 64 // of each kind
	maxRelays    = 16
	maxAddresses = 8 // of one server
	maxPorts     = 32
	maxText      = 253 // bytes of a name (RFC 1035 §2.3.4) or of a network's
)

var (
	label  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostRe = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$`)
)

// encode writes v in the one form that decode reads.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// decode reads what encode wrote, and nothing else: unknown or repeated keys,
// other spellings of an address, or text after the end are errors. So two
// readers can never see two different directories in one file.
func decode(what string, data []byte, v any) error {
	if len(data) > maxFile {
		return fmt.Errorf("reading %s: %w: %d bytes, at most %d are read", what, ErrTooLarge, len(data), maxFile)
	}
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	if probe.Format != Format {
		return fmt.Errorf("reading %s: its format is %d and this veilor knows %d: update the system", what, probe.Format, Format)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	again, err := encode(v)
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("reading %s: it is not in the form that veilor-forge writes (an unknown or repeated key, or an unusual spelling)", what)
	}
	return nil
}

// ParseNames reads directory.json.
func ParseNames(data []byte) (Names, error) {
	var n Names
	if err := decode("directory.json", data, &n); err != nil {
		return Names{}, err
	}
	if err := n.valid(); err != nil {
		return Names{}, fmt.Errorf("reading directory.json: %w", err)
	}
	return n, nil
}

// ParseAddresses reads addresses.json.
func ParseAddresses(data []byte) (Addresses, error) {
	var a Addresses
	if err := decode("addresses.json", data, &a); err != nil {
		return Addresses{}, err
	}
	if err := a.valid(); err != nil {
		return Addresses{}, fmt.Errorf("reading addresses.json: %w", err)
	}
	return a, nil
}

// Encode is the one form of n that ParseNames reads. It checks n first.
func (n Names) Encode() ([]byte, error) {
	if err := n.valid(); err != nil {
		return nil, err
	}
	return encode(n)
}

// Encode is the one form of a that ParseAddresses reads. It checks a first.
func (a Addresses) Encode() ([]byte, error) {
	if err := a.valid(); err != nil {
		return nil, err
	}
	return encode(a)
}

// Merge joins the two. An address of something that n does not name is an
// error: the addresses role may move what is there, and add nothing.
func Merge(n Names, a Addresses) (Directory, error) {
	known := map[string]bool{}
	for _, name := range n.serverNames() {
		known["server "+name] = true
	}
	for _, p := range n.nodes() {
		known["node "+p.Name] = true
	}
	for _, s := range a.Servers {
		if !known["server "+s.Name] {
			return Directory{}, fmt.Errorf("joining the directory: addresses.json has an address for the server %q, which directory.json does not name", s.Name)
		}
	}
	for _, p := range a.Nodes {
		if !known["node "+p.Name] {
			return Directory{}, fmt.Errorf("joining the directory: addresses.json has an address for the node %q, which directory.json does not name", p.Name)
		}
	}
	return Directory{Names: n, Addresses: a}, nil
}

// serverNames are the control server's host name and the relays'.
func (n Names) serverNames() []string {
	var names []string
	if u, err := url.Parse(n.Control); err == nil {
		names = append(names, u.Hostname())
	}
	return append(names, n.Relays...)
}

func (n Names) nodes() []Node { return append(append([]Node(nil), n.Edges...), n.Public...) }

// checks collects what is wrong.
type checks struct {
	errs []error
	seen map[string]bool
}

func (c *checks) failf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// once complains about a second use of what.
func (c *checks) once(what string) {
	if c.seen == nil {
		c.seen = map[string]bool{}
	}
	if c.seen[what] {
		c.failf("%s is there twice", what)
	}
	c.seen[what] = true
}

func (c *checks) atMost(what string, n, limit int) {
	if n > limit {
		c.failf("%d %s; at most %d are read", n, what, limit)
	}
}

func (c *checks) host(what, name string) {
	if len(name) > maxText || !hostRe.MatchString(name) {
		c.failf("%s: %q is no host name", what, name)
	}
}

func (c *checks) key(what, key string) {
	b, err := hex.DecodeString(key)
	if err != nil || len(b) != 32 || strings.ToLower(key) != key {
		c.failf("%s: %q is no Yggdrasil key of 64 lower-case hex digits", what, key)
		return
	}
	c.once("key " + key)
}

func (n Names) valid() error {
	var c checks
	c.atMost("services", len(n.Services), maxServices)
	c.atMost("hosts", len(n.Hosts), maxHosts)
	c.atMost("edges", len(n.Edges), maxNodes)
	c.atMost("public peers", len(n.Public), maxNodes)
	c.atMost("relays", len(n.Relays), maxRelays)
	if len(c.errs) > 0 {
		return errors.Join(c.errs...)
	}
	if !label.MatchString(n.Zone) {
		c.failf("zone %q is no name", n.Zone)
	}
	if u, err := url.Parse(n.Control); err != nil || u.Scheme != "https" || u.User != nil {
		c.failf("control %q is no https URL", n.Control)
	}
	for _, name := range n.serverNames() {
		c.host("server", name)
		c.once("server " + name)
	}
	for _, h := range n.Hosts {
		if !label.MatchString(h.Name) || !label.MatchString(h.Tier) {
			c.failf("host %q of tier %q: no name", h.Name, h.Tier)
		}
		c.once("host " + h.Name)
		if h.Tailnet.IsValid() {
			if !tailnet4.Contains(h.Tailnet) {
				c.failf("host %s: %s is not in %s", h.Name, h.Tailnet, tailnet4)
			}
			c.once("address " + h.Tailnet.String())
		}
		if h.Yggdrasil != "" {
			c.key("host "+h.Name, h.Yggdrasil)
		}
	}
	for _, s := range n.Services {
		n.validService(&c, s)
	}
	c.seen = withoutKeys(c.seen) // an edge may be a service's host as well
	for _, p := range n.nodes() {
		if !label.MatchString(p.Name) {
			c.failf("node %q: no name", p.Name)
		}
		c.once("node " + p.Name)
		if u, err := url.Parse(p.URL); err != nil || u.Scheme != "wss" || u.User != nil || len(p.URL) > 2*maxText || !hostRe.MatchString(u.Hostname()) {
			c.failf("node %s: %q is no wss URL with a host name", p.Name, p.URL)
		}
		c.key("node "+p.Name, p.Key)
	}
	return errors.Join(c.errs...)
}

func withoutKeys(seen map[string]bool) map[string]bool {
	kept := map[string]bool{}
	for what := range seen {
		if !strings.HasPrefix(what, "key ") {
			kept[what] = true
		}
	}
	return kept
}

func (n Names) validService(c *checks, s Service) {
	if l, ok := strings.CutSuffix(s.Name, "."+n.Zone); !ok || !label.MatchString(l) {
		c.failf("service %q: no name in the zone %s", s.Name, n.Zone)
	}
	c.once("service " + s.Name)
	if !n.hasHost(s.Host) {
		c.failf("service %s: its host %q is not there", s.Name, s.Host)
	}
	if len(s.Ports) == 0 || len(s.Ports) > maxPorts {
		c.failf("service %s: %d ports; 1 to %d are read", s.Name, len(s.Ports), maxPorts)
	}
	for i, p := range s.Ports {
		if p == 0 || (i > 0 && p <= s.Ports[i-1]) {
			c.failf("service %s: port %d is 0, twice or out of order", s.Name, p)
			break
		}
	}
	switch a := s.Loopback(); {
	case s.Number == 0 || s.Number == 255 || a == site.Resolver:
		c.failf("service %s: the loopback number %d is not for a service", s.Name, s.Number)
	default:
		c.once(fmt.Sprintf("loopback number %d", s.Number))
	}
}

func (n Names) hasHost(name string) bool {
	for _, h := range n.Hosts {
		if h.Name == name {
			return true
		}
	}
	return false
}

// Loopback is the address of the service on every laptop.
func (s Service) Loopback() netip.Addr {
	b := site.Loopback.Addr().As4()
	b[3] = s.Number
	return netip.AddrFrom4(b)
}

// tailnet4 is the range that Headscale allots.
var tailnet4 = netip.MustParsePrefix("100.64.0.0/10")

func (a Addresses) valid() error {
	var c checks
	c.atMost("servers", len(a.Servers), 1+maxRelays)
	c.atMost("nodes", len(a.Nodes), 2*maxNodes)
	if len(c.errs) > 0 {
		return errors.Join(c.errs...)
	}
	for _, s := range a.Servers {
		c.host("server", s.Name)
		c.once("server " + s.Name)
		c.network("server "+s.Name, s.Network)
		if len(s.Addresses) == 0 || len(s.Addresses) > maxAddresses {
			c.failf("server %s: %d addresses; 1 to %d are read", s.Name, len(s.Addresses), maxAddresses)
		}
		for _, ip := range s.Addresses {
			c.address("server "+s.Name, ip)
			c.once("address " + ip.String() + " of server " + s.Name)
		}
	}
	for _, p := range a.Nodes {
		if !label.MatchString(p.Name) {
			c.failf("node %q: no name", p.Name)
		}
		c.once("node " + p.Name)
		c.network("node "+p.Name, p.Network)
		if p.Address.Port() == 0 {
			c.failf("node %s: no port", p.Name)
		}
		c.address("node "+p.Name, p.Address.Addr())
	}
	return errors.Join(c.errs...)
}

func (c *checks) network(what, name string) {
	if len(name) > maxText || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		c.failf("%s: its network is no line of text of at most %d bytes", what, maxText)
	}
}

// address refuses what can be no server's address anywhere, also not in a lab.
func (c *checks) address(what string, ip netip.Addr) {
	if !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast() ||
		ip.Is4In6() || ip.Zone() != "" || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		c.failf("%s: %s is no address of a server", what, ip)
	}
}
