package site

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/veilor/veilor-os/internal/strictyaml"
)

// maxSize bounds a site file: the real one has 3 KiB, so 64 KiB is another file.
const maxSize = 64 << 10

// Loopback is the part of 127/8 that belongs to veilor's services.
var Loopback = netip.MustParsePrefix("127.83.0.0/24")

// Resolver is where the stub for the zone listens, in Loopback and thus never
// a service's own.
var Resolver = netip.MustParseAddr("127.83.0.53")

// tailnet4 is the range that Headscale allots (its `prefixes.v4` must lie in it).
var tailnet4 = netip.MustParsePrefix("100.64.0.0/10")

var (
	label   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	imageRe = regexp.MustCompile(`^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`)
)

// Problem is one thing wrong with a site file.
type Problem = strictyaml.Problem

// Load reads and checks the site file at path and the files that it names.
// A named file that does not exist is left empty; see [Site.Complete].
func Load(path string) (*Site, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the site file: %w", err)
	}
	if info.Size() > maxSize {
		return nil, Problem{File: path, Text: fmt.Sprintf("%d bytes; a site file has at most %d", info.Size(), maxSize)}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the site file: %w", err)
	}
	s, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	for _, f := range s.files() {
		if f.Path == "" {
			continue
		}
		f.Data, err = os.ReadFile(filepath.Join(filepath.Dir(path), f.Path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading a file that %s names: %w", path, err)
		}
		if err == nil {
			if why := checkPEM(f.Data); why != "" {
				return nil, Problem{File: filepath.Join(filepath.Dir(path), f.Path), Text: why}
			}
		}
	}
	return s, nil
}

// Parse checks the text of a site file. name is used in errors. Files that the
// text names are not read.
func Parse(name string, data []byte) (*Site, error) {
	if len(data) > maxSize {
		return nil, Problem{File: name, Text: fmt.Sprintf("%d bytes; a site file has at most %d", len(data), maxSize)}
	}
	var s Site
	doc, err := strictyaml.Decode(name, data, &s, "see the comments in site/veilor.yaml for the keys there are")
	if err != nil {
		return nil, err
	}
	c := checker{doc: doc}
	c.site(&s)
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return &s, nil
}

// Complete returns an error that lists every fact which only the operator can
// supply and has not yet, each with the command that makes it. An image cannot
// be built of an incomplete site.
func (s *Site) Complete() error {
	var errs []error
	miss := func(path, how string) { errs = append(errs, fmt.Errorf("%s: not set: %s", path, how)) }
	for i, g := range s.Image.Signatures {
		for j, f := range g.Keys {
			if f.Data == nil {
				miss(fmt.Sprintf("image.signatures[%d].keys[%d] (%s)", i, j, f.Path),
					"make the pair with `veilor-forge key generate --out DIR` and put the .pub file there")
			}
		}
	}
	if s.Authority.Data == nil {
		miss("authority ("+s.Authority.Path+")", "make the site's CA with `veilor-forge authority create --site FILE --out DIR` and put its certificate there")
	}
	if d := s.Directory; d != nil {
		for what, keys := range map[string][]File{"keys": d.Keys, "addresses.keys": d.Addresses.Keys} {
			for i, f := range keys {
				if f.Data == nil {
					miss(fmt.Sprintf("directory.%s[%d] (%s)", what, i, f.Path),
						"make the pair with `veilor-forge key generate --out DIR` and put the .pub file there")
				}
			}
		}
	}
	for _, v := range s.Services {
		h, _ := s.Host(v.Host)
		if !h.Tailnet.IsValid() {
			miss("hosts["+h.Name+"].tailnet", "join the host and write the address that `headscale nodes list` shows")
		}
		if h.Yggdrasil == "" {
			miss("hosts["+h.Name+"].yggdrasil", "run `veilor-ygg genkey` on the host and write the public key that it prints")
		}
	}
	if len(s.Yggdrasil.Edges) == 0 {
		miss("yggdrasil.edges", "enter at least one edge")
	}
	for kind, peers := range map[string][]Peer{"edges": s.Yggdrasil.Edges, "public": s.Yggdrasil.Public} {
		for _, p := range peers {
			if p.Key == "" {
				miss("yggdrasil."+kind+"["+p.Name+"].key", "write the 64 hex digits that `veilor-ygg address` prints there, or that the peer's operator publishes")
			}
			if !p.Address.IsValid() {
				miss("yggdrasil."+kind+"["+p.Name+"].address", "write its IP:PORT, so that a lying DNS cannot hide it")
			}
		}
	}
	return errors.Join(errs...)
}

// files are all files that the site names.
func (s *Site) files() []*File {
	fs := []*File{&s.Authority}
	for i := range s.Image.Signatures {
		for j := range s.Image.Signatures[i].Keys {
			fs = append(fs, &s.Image.Signatures[i].Keys[j])
		}
	}
	if d := s.Directory; d != nil {
		for i := range d.Keys {
			fs = append(fs, &d.Keys[i])
		}
		for i := range d.Addresses.Keys {
			fs = append(fs, &d.Addresses.Keys[i])
		}
		fs = append(fs, &d.Signed)
	}
	return fs
}

// Inline returns the site file with every named file put into it: the one that
// an image carries. It is the same bytes for the same site.
func (s *Site) Inline() ([]byte, error) {
	if err := s.Complete(); err != nil {
		return nil, err
	}
	c := *s
	c.Image.Signatures = nil
	for _, g := range s.Image.Signatures {
		n := SignatureGroup{Name: g.Name}
		for _, f := range g.Keys {
			n.Keys = append(n.Keys, File{Data: f.Data})
		}
		c.Image.Signatures = append(c.Image.Signatures, n)
	}
	c.Authority = File{Data: s.Authority.Data}
	if s.Directory != nil {
		d := *s.Directory
		d.Keys, d.Addresses.Keys = inlined(d.Keys), inlined(d.Addresses.Keys)
		d.Signed = File{Data: d.Signed.Data}
		c.Directory = &d
	}
	return yaml.MarshalWithOptions(&c, yaml.UseLiteralStyleIfMultiline(true))
}

func inlined(files []File) []File {
	var in []File
	for _, f := range files {
		in = append(in, File{Data: f.Data})
	}
	return in
}

// UnmarshalYAML takes a path or PEM text.
func (f *File) UnmarshalYAML(b []byte) error {
	var text string
	if err := yaml.Unmarshal(b, &text); err != nil {
		return err
	}
	if strings.Contains(text, "-----BEGIN ") {
		if why := checkPEM([]byte(text)); why != "" {
			return errors.New(why)
		}
		*f = File{Data: []byte(text)}
		return nil
	}
	*f = File{Path: text}
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (f File) MarshalYAML() (any, error) {
	if f.Path != "" {
		return f.Path, nil
	}
	return string(f.Data), nil
}

// checkPEM says why data may not be named by a site, or "".
func checkPEM(data []byte) string {
	if bytes.Contains(data, []byte("PRIVATE KEY")) {
		return "this is a private key; a site names public keys and certificates only"
	}
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")) {
		return "not PEM; it must begin with -----BEGIN PUBLIC KEY----- or -----BEGIN CERTIFICATE-----"
	}
	return ""
}

// UnmarshalYAML takes the digits as they are written: a key that happens to
// have no letters is still text, not a number.
func (k *Key) UnmarshalYAML(b []byte) error {
	text := string(bytes.TrimSpace(b))
	if n := len(text); n >= 2 && (text[0] == '"' || text[0] == '\'') && text[n-1] == text[0] {
		text = text[1 : n-1]
	}
	*k = Key(text)
	return nil
}

// Bytes decodes k; nil if it is not a key.
func (k Key) Bytes() []byte {
	b, err := hex.DecodeString(string(k))
	if err != nil || len(b) != 32 {
		return nil
	}
	return b
}

// checker collects problems with their lines.
type checker struct {
	doc      *strictyaml.Document
	problems []error
}

func (c *checker) add(path, format string, args ...any) {
	c.problems = append(c.problems, c.doc.Problem(path, format, args...))
}

func (c *checker) label(path, v, example string) {
	switch {
	case v == "":
		c.add(path, "missing; write for example %s", example)
	case !label.MatchString(v):
		c.add(path, "%q is not a name; use a-z, 0-9 and -, for example %s", v, example)
	}
}

func (c *checker) url(path, v, scheme, example string) {
	u, err := url.Parse(v)
	switch {
	case v == "":
		c.add(path, "missing; write for example %s", example)
	case err != nil || u.Scheme != scheme || u.Hostname() == "" || u.User != nil:
		c.add(path, "%q is not a %s URL; write for example %s", v, scheme, example)
	}
}

func (c *checker) pem(path string, f File, example string) {
	if f.Path == "" && f.Data == nil {
		c.add(path, "missing; write a path like %s, or the PEM text itself", example)
	}
	if f.Path != "" && !filepath.IsLocal(f.Path) {
		c.add(path, "%q leaves the site's directory; write a path like %s", f.Path, example)
	}
}

func (c *checker) site(s *Site) {
	c.label("zone", s.Zone, "veilor")
	if s.OS.Name == "" {
		c.add("os.name", "missing; write for example veilor-os")
	}
	if s.OS.Release < 1 || s.OS.Release > 999 {
		c.add("os.release", "%d is no Fedora release; write for example 44", s.OS.Release)
	}
	c.url("os.home", s.OS.Home, "https", "https://github.com/veilor/veilor-os")
	for path, ref := range map[string]string{"image.ref": s.Image.Ref, "image.base": s.Image.Base} {
		if !imageRe.MatchString(ref) {
			c.add(path, "%q is no image repository; write it without tag or digest, for example ghcr.io/veilor/veilor-os", ref)
		}
	}
	if len(s.Image.Signatures) == 0 {
		c.add("image", "signatures missing: clients would accept nothing; write at least one group {name: ci, keys: [keys/ci.pub]}")
	}
	seen := map[string]bool{}
	for i, g := range s.Image.Signatures {
		path := fmt.Sprintf("image.signatures[%d]", i)
		c.label(path+".name", g.Name, "ci")
		c.unique(seen, path+".name", "signature group "+g.Name)
		if len(g.Keys) == 0 {
			c.add(path, "keys missing; write for example [keys/%s.pub]", g.Name)
		}
		for j, f := range g.Keys {
			c.pem(fmt.Sprintf("%s.keys[%d]", path, j), f, "keys/ci.pub")
		}
	}
	c.url("control.url", s.Control.URL, "https", "https://hs.example.org")
	c.control(s)
	c.directory(s.Directory)
	c.pem("authority", s.Authority, "keys/authority.pem")
	c.tiers(s)
	c.hosts(s)
	c.services(s)
	c.peers("yggdrasil.edges", s.Yggdrasil.Edges, seen)
	c.peers("yggdrasil.public", s.Yggdrasil.Public, seen)
}

func (c *checker) unique(seen map[string]bool, path, what string) {
	if seen[what] {
		c.add(path, "%s is there twice; remove or rename one", what)
	}
	seen[what] = true
}

// hostRe is a host name as DNS has it, in lower case.
var hostRe = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$`)

func (c *checker) control(s *Site) {
	seen := map[string]bool{}
	for i, a := range s.Control.Addresses {
		c.unique(seen, fmt.Sprintf("control.addresses[%d]", i), "address "+a.String())
	}
	for i, r := range s.Control.Relays {
		path := fmt.Sprintf("control.relays[%d]", i)
		if len(r.Name) > 253 || !hostRe.MatchString(r.Name) {
			c.add(path+".name", "%q is no host name; write for example derp.example.org", r.Name)
		}
		c.unique(seen, path+".name", "relay "+r.Name)
		if len(r.Addresses) == 0 {
			c.add(path, "addresses missing: laptops ask no DNS for a relay; write for example [192.0.2.7]")
		}
	}
}

func (c *checker) directory(d *Directory) {
	if d == nil {
		return
	}
	signers := func(path string, keys []File, threshold int) {
		for i, f := range keys {
			c.pem(fmt.Sprintf("%s.keys[%d]", path, i), f, "keys/directory-1.pub")
		}
		if threshold < 1 || threshold > len(keys) {
			c.add(path, "threshold %d of %d keys; write a number from 1 to the number of keys", threshold, len(keys))
		}
	}
	signers("directory", d.Keys, d.Threshold)
	signers("directory.addresses", d.Addresses.Keys, d.Addresses.Threshold)
	if d.Addresses.Threshold > d.Threshold {
		c.add("directory.addresses", "threshold %d is more than directory's %d; to move a server must need fewer, or as many", d.Addresses.Threshold, d.Threshold)
	}
	if p := d.Signed.Path; p != "" {
		c.pem("directory.signed", d.Signed, "directory/directory.pem")
	}
}

func (c *checker) tiers(s *Site) {
	seen := map[string]bool{}
	for i, t := range s.Tiers {
		path := fmt.Sprintf("tiers[%d]", i)
		c.label(path+".name", t.Name, "guest")
		c.unique(seen, path+".name", "tier "+t.Name)
		if rest, ok := strings.CutPrefix(t.Tag, "tag:"); !ok || !label.MatchString(rest) {
			c.add(path+".tag", "%q is no tag; write for example tag:guest", t.Tag)
		}
		for j, r := range t.Reach {
			target, port, ok := strings.Cut(r, ":")
			n, err := strconv.ParseUint(port, 10, 16)
			if !ok || (port != "*" && (err != nil || n == 0)) {
				c.add(fmt.Sprintf("%s.reach[%d]", path, j), "%q is not TARGET:PORT; write for example x.veilor:443 or infra:*", r)
				continue
			}
			if target != "*" && !s.hasTier(target) && !s.hasService(target) {
				c.add(fmt.Sprintf("%s.reach[%d]", path, j), "%q is neither a tier nor a service nor *; add it under tiers or services", target)
			}
		}
	}
	if !s.hasTier("guest") {
		c.add("tiers", "no tier guest: new laptops would have none; write {name: guest, tag: tag:guest, reach: [...]}")
	}
}

func (s *Site) hasTier(name string) bool {
	for _, t := range s.Tiers {
		if t.Name == name {
			return true
		}
	}
	return false
}

func (s *Site) hasService(name string) bool {
	for _, v := range s.Services {
		if v.Name == name {
			return true
		}
	}
	return false
}

func (c *checker) hosts(s *Site) {
	seen := map[string]bool{}
	for i, h := range s.Hosts {
		path := fmt.Sprintf("hosts[%d]", i)
		c.label(path+".name", h.Name, "nullstone")
		c.unique(seen, path+".name", "host "+h.Name)
		if !s.hasTier(h.Tier) {
			c.add(path+".tier", "%q is not under tiers", h.Tier)
		}
		if h.Tailnet.IsValid() {
			c.unique(seen, path+".tailnet", "address "+h.Tailnet.String())
			if !tailnet4.Contains(h.Tailnet) {
				c.add(path+".tailnet", "%s is not in %s, from which Headscale allots", h.Tailnet, tailnet4)
			}
		}
		c.key(path+".yggdrasil", h.Yggdrasil)
		if h.Yggdrasil != "" {
			c.unique(seen, path+".yggdrasil", "key "+string(h.Yggdrasil))
		}
	}
}

func (c *checker) key(path string, k Key) {
	if k != "" && (k.Bytes() == nil || strings.ToLower(string(k)) != string(k)) {
		c.add(path, "%q is no Yggdrasil key; write the 64 lower-case hex digits that `veilor-ygg address` prints", k)
	}
}

func (c *checker) services(s *Site) {
	seen := map[string]bool{}
	if len(s.Services) == 0 {
		c.add("services", "none: a laptop would have nothing to reach; write for example {name: x.veilor, host: nullstone, ports: [443], loopback: 127.83.0.1}")
	}
	for i, v := range s.Services {
		path := fmt.Sprintf("services[%d]", i)
		if l, ok := strings.CutSuffix(v.Name, "."+s.Zone); !ok || !label.MatchString(l) {
			c.add(path+".name", "%q is no name in the zone; write for example x.%s", v.Name, s.Zone)
		}
		c.unique(seen, path+".name", "service "+v.Name)
		if _, ok := s.Host(v.Host); !ok {
			c.add(path+".host", "%q is not under hosts", v.Host)
		}
		if len(v.Ports) == 0 {
			c.add(path, "ports missing; write for example [443]")
		}
		for j, p := range v.Ports {
			if p == 0 {
				c.add(fmt.Sprintf("%s.ports[%d]", path, j), "0 is no port; write for example 443")
			}
		}
		switch {
		case !v.Loopback.IsValid():
			c.add(path+".loopback", "missing; write a free address in %s, for example 127.83.0.1", Loopback)
		case !Loopback.Contains(v.Loopback) || v.Loopback == Resolver || v.Loopback == Loopback.Addr():
			c.add(path+".loopback", "%s is not free for a service; write an address in %s other than %s", v.Loopback, Loopback, Resolver)
		default:
			c.unique(seen, path+".loopback", "address "+v.Loopback.String())
		}
	}
}

func (c *checker) peers(path string, peers []Peer, seen map[string]bool) {
	for i, p := range peers {
		at := fmt.Sprintf("%s[%d]", path, i)
		c.label(at+".name", p.Name, "edge-1")
		c.unique(seen, at+".name", "peer "+p.Name)
		c.url(at+".url", p.URL, "wss", "wss://edge.example.org/")
		c.key(at+".key", p.Key)
		if p.Key != "" {
			c.unique(seen, at+".key", "key "+string(p.Key))
		}
	}
}
