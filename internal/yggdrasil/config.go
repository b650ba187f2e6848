package yggdrasil

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/yggfilter"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

const (
	// maxConfig bounds a configuration: one with a thousand keys has 70 KiB.
	maxConfig = 1 << 20
	// maxSocketDir leaves room for our socket names within the 108 bytes of
	// sockaddr_un (unix(7)).
	maxSocketDir = 70
	// minMTU and maxMTU are the library's (tun.MaximumMTU on Linux; RFC 8200 §5).
	minMTU, maxMTU = 1280, 65535
)

// Config is the configuration of a node. The file is strict JSON; where
// yggdrasil.conf has the same key, name and meaning are the same.
type Config struct {
	// IfName and IfMTU are the TUN's name and size, by default ygg0 and 1280.
	IfName string
	IfMTU  int
	// PrivateKeyPath is the node's key (PKCS#8 PEM), made on the first start.
	PrivateKeyPath string
	// AdminSocket is the path in AdminListen, "unix://PATH".
	AdminSocket string
	// Listen are loopback addresses on which WebSocket peerings arrive, from a
	// reverse proxy that ends TLS. Only an edge has any.
	Listen []netip.AddrPort
	// AllowedPublicKeys are the nodes that may peer through Listen, and whose
	// packets may open the ports of Accept, by whichever way they come. They are
	// always admitted, until one is revoked; others come and go by ControlSocket.
	AllowedPublicKeys []ed25519.PublicKey
	// ControlSocket is the path in ControlListen, "unix://PATH", where root and
	// the daemon's group say who is admitted (package edge), and NodesPath the
	// file in which that is kept. A laptop has neither.
	ControlSocket, NodesPath string
	// GroupPasswordPath is a file, 0600, with the password that all nodes of a
	// site have (package ygggroup): others then get no answer from this one, and so
	// learn nothing of it. Empty: none. On a laptop the file may be missing, until
	// somebody brings it.
	GroupPasswordPath string
	// Group is the password in force; see WithGroup. No file has it.
	Group Secret
	// SitePath is the site file whose tiers say who may open what on this
	// machine, which is its host Host, or a machine of tier Tier. Empty: Accept
	// says it.
	SitePath, Host, Tier string
	// Edges and PublicPeers are whom the node may dial, see package peering.
	Edges, PublicPeers []Peer
	// Accept lists the TCP ports that the TUN lets in, from those admitted.
	Accept []uint16
}

// Peer is a node that takes WebSocket peerings behind TLS.
type Peer struct {
	Name    string
	URL     *url.URL
	Address netip.AddrPort
	Key     ed25519.PublicKey
	// Network is where Address is, as its operator or its AS is called; empty if
	// not known.
	Network string
}

// Secret is a text that prints as something else.
type Secret struct{ text string }

// String says whether there is one.
func (s Secret) String() string {
	if s.text == "" {
		return "none"
	}
	return "(hidden)"
}

// GoString hides it too.
func (s Secret) GoString() string { return s.String() }

// Server says whether this is no laptop: others peer through it, or are admitted
// by it.
func (c *Config) Server() bool { return len(c.Listen) > 0 || c.ControlSocket != "" }

// WithGroup is c with the group's password that is in force at a time.
func (c *Config) WithGroup(now time.Time) (*Config, error) {
	with := *c
	with.Group = Secret{}
	if c.GroupPasswordPath == "" {
		return &with, nil
	}
	g, err := ygggroup.Read(c.GroupPasswordPath)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !c.Server():
		return &with, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w; a server without it would answer strangers: put it there, or leave GroupPasswordPath out", err)
	case err != nil:
		return nil, err
	}
	with.Group = Secret{g.At(now)}
	return &with, nil
}

// Peers are the edges, then the public peers.
func (c *Config) Peers() []Peer { return append(slices.Clone(c.Edges), c.PublicPeers...) }

// wire and wirePeer are the file as it stands.
type wire struct {
	IfName            string
	IfMTU             int
	PrivateKeyPath    string
	AdminListen       string
	Listen            []string
	AllowedPublicKeys []string
	ControlListen     string
	NodesPath         string
	GroupPasswordPath string
	SitePath          string
	Host              string
	Tier              string
	Edges             []wirePeer
	PublicPeers       []wirePeer
	Accept            []uint16
}

type wirePeer struct {
	Name, URL, Address, Key string
	Network                 string `json:",omitempty"`
}

// Problem is one thing wrong with a configuration.
type Problem struct {
	File string
	Line int    // 1-based; 0 if unknown
	Key  string // "Edges[0].Address"; empty if the file as a whole is meant
	Text string // what is wrong and what to write
}

func (p Problem) Error() string {
	at := p.File
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d", at, p.Line)
	}
	if p.Key != "" {
		at += ": " + p.Key
	}
	return at + ": " + p.Text
}

// LoadConfig reads the configuration at path.
func LoadConfig(path string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if info.Size() > maxConfig {
		return nil, Problem{File: path, Text: fmt.Sprintf("%d bytes; a configuration has at most %d", info.Size(), maxConfig)}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return ParseConfig(path, data)
}

// ParseConfig checks the text of a configuration. name is used in errors, which
// are all [Problem]s, joined.
func ParseConfig(name string, data []byte) (*Config, error) {
	if len(data) > maxConfig {
		return nil, Problem{File: name, Text: fmt.Sprintf("%d bytes; a configuration has at most %d", len(data), maxConfig)}
	}
	if p := checkShape(data); p != nil {
		p.File = name
		return nil, *p
	}
	w := wire{IfName: "ygg0", IfMTU: minMTU}
	if err := json.Unmarshal(data, &w); err != nil {
		p := Problem{File: name, Text: err.Error()}
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) {
			p.Line, p.Key = lineAt(data, te.Offset), te.Field
			p.Text = fmt.Sprintf("a %s is no %s; write a %s", te.Value, te.Type, te.Type)
		}
		return nil, p
	}
	c := checker{name: name}
	cfg := c.config(&w)
	if len(c.problems) > 0 {
		return nil, errors.Join(c.problems...)
	}
	return cfg, nil
}

// checkShape finds what encoding/json lets pass: unknown keys, keys in other
// case, keys written twice, text after the end.
func checkShape(data []byte) *Problem {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	fail := func(key, format string, args ...any) *Problem {
		return &Problem{Line: lineAt(data, dec.InputOffset()), Key: key, Text: fmt.Sprintf(format, args...)}
	}
	syntax := func(err error) *Problem {
		return fail("", "not JSON (%v); write strict JSON without comments or final commas", err)
	}
	var value func(path string, known []string) *Problem
	value = func(path string, known []string) *Problem {
		tok, err := dec.Token()
		if err != nil {
			return syntax(err)
		}
		switch tok {
		case json.Delim('['):
			for i := 0; dec.More(); i++ {
				if p := value(fmt.Sprintf("%s[%d]", path, i), peerKeys); p != nil {
					return p
				}
			}
			_, err = dec.Token()
		case json.Delim('{'):
			seen := map[string]bool{}
			for dec.More() {
				k, err := dec.Token()
				if err != nil {
					return syntax(err)
				}
				key := k.(string)
				at := strings.TrimPrefix(path+"."+key, ".")
				switch {
				case !slices.Contains(known, key):
					return fail(at, "unknown key; the keys here are %s", strings.Join(known, ", "))
				case seen[key]:
					return fail(at, "is there twice; remove one")
				}
				seen[key] = true
				if p := value(at, nil); p != nil {
					return p
				}
			}
			_, err = dec.Token()
		case nil:
			return fail(path, "null; leave the key out or write a value")
		default:
			if path == "" {
				return fail("", "not an object; write {...}")
			}
		}
		if err != nil {
			return syntax(err)
		}
		return nil
	}
	if p := value("", fileKeys); p != nil {
		return p
	}
	if _, err := dec.Token(); err == nil {
		return fail("", "text after the closing brace; remove it")
	}
	return nil
}

var (
	fileKeys = keysOf(reflect.TypeFor[wire]())
	peerKeys = keysOf(reflect.TypeFor[wirePeer]())
)

func keysOf(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Name)
	}
	return keys
}

func lineAt(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(max(int(offset), 0), len(data))], []byte("\n"))
}

// checker collects problems.
type checker struct {
	name     string
	problems []error
}

func (c *checker) add(key, format string, args ...any) {
	c.problems = append(c.problems, Problem{File: c.name, Key: key, Text: fmt.Sprintf(format, args...)})
}

var ifaceRe = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`)

func (c *checker) config(w *wire) *Config {
	cfg := &Config{
		IfName: w.IfName, IfMTU: w.IfMTU, PrivateKeyPath: w.PrivateKeyPath, Accept: w.Accept,
		NodesPath: w.NodesPath, GroupPasswordPath: w.GroupPasswordPath,
		SitePath: w.SitePath, Host: w.Host, Tier: w.Tier,
	}
	if !ifaceRe.MatchString(w.IfName) || w.IfName == "auto" || w.IfName == "none" || w.IfName == "lo" {
		c.add("IfName", "%q cannot be filtered by name; write ygg0", w.IfName)
	}
	if w.IfMTU < minMTU || w.IfMTU > maxMTU {
		c.add("IfMTU", "%d is not from %d to %d; write %d", w.IfMTU, minMTU, maxMTU, minMTU)
	}
	if !filepath.IsAbs(w.PrivateKeyPath) {
		c.add("PrivateKeyPath", "%q is no absolute path; write for example /var/lib/veilor-ygg/key.pem", w.PrivateKeyPath)
	}
	if w.GroupPasswordPath != "" && !filepath.IsAbs(w.GroupPasswordPath) {
		c.add("GroupPasswordPath", "%q is no absolute path; write for example /var/lib/veilor-ygg/group", w.GroupPasswordPath)
	}
	cfg.AdminSocket = c.socket("AdminListen", w.AdminListen, "unix:///run/veilor-ygg/admin.sock")
	live := w.ControlListen != ""
	if live {
		cfg.ControlSocket = c.socket("ControlListen", w.ControlListen, "unix:///run/veilor-ygg/control.sock")
		if cfg.ControlSocket == cfg.AdminSocket {
			c.add("ControlListen", "the admin socket answers everybody; give this one another name")
		}
	}
	switch {
	case live && !filepath.IsAbs(w.NodesPath):
		c.add("NodesPath", "%q is no absolute path, and who comes by ControlListen must be kept; write for example /var/lib/veilor-ygg/nodes.json", w.NodesPath)
	case !live && w.NodesPath != "":
		c.add("ControlListen", "empty, so that NodesPath would never change; write for example unix:///run/veilor-ygg/control.sock")
	}
	c.site(w)
	for i, l := range w.Listen {
		if a, ok := c.listen(fmt.Sprintf("Listen[%d]", i), l); ok {
			cfg.Listen = append(cfg.Listen, a)
		}
	}
	for i, k := range w.AllowedPublicKeys {
		cfg.AllowedPublicKeys = append(cfg.AllowedPublicKeys, c.key(fmt.Sprintf("AllowedPublicKeys[%d]", i), k))
	}
	if len(w.Listen) > 0 && len(w.AllowedPublicKeys) == 0 && !live {
		c.add("AllowedPublicKeys", "empty, so that nobody could peer through Listen; write the keys of the nodes that may, or a ControlListen by which they come")
	}
	seen := map[string]bool{}
	cfg.Edges = c.peers("Edges", w.Edges, seen)
	cfg.PublicPeers = c.peers("PublicPeers", w.PublicPeers, seen)
	if len(w.Accept) > 0 && len(w.AllowedPublicKeys) == 0 && !live {
		c.add("AllowedPublicKeys", "empty, so that nobody could open the ports of Accept; write the keys of the nodes that may")
	}
	if slices.Contains(w.Accept, 0) {
		c.add("Accept", "0 is no port; write for example [443]")
	}
	return cfg
}

// site looks at how the configuration names a site; newWalls reads it.
func (c *checker) site(w *wire) {
	switch {
	case w.SitePath == "" && (w.Host != "" || w.Tier != ""):
		c.add("SitePath", "empty, so that Host and Tier mean nothing; write for example /usr/share/veilor/site.yaml")
	case w.SitePath == "":
	case !filepath.IsAbs(w.SitePath):
		c.add("SitePath", "%q is no absolute path; write for example /usr/share/veilor/site.yaml", w.SitePath)
	case w.Host != "" && w.Tier != "":
		c.add("Tier", "the site says the tier of a host; leave it out")
	case w.Host == "" && w.Tier == "":
		c.add("Tier", "missing; write that of this machine, for example guest, or on a host of the site its name as Host")
	case len(w.Accept) > 0:
		c.add("Accept", "the tiers of the site say which ports are open; leave it empty")
	}
}

func (c *checker) socket(key, v, example string) string {
	u, err := url.Parse(v)
	switch {
	case err != nil || u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path):
		c.add(key, "%q is no unix:// URL, and the protocol knows no password; write for example %s", v, example)
		return ""
	case len(filepath.Dir(u.Path)) > maxSocketDir || len(u.Path) > maxSocketDir+30:
		c.add(key, "%d bytes is too long for a socket; write for example %s", len(u.Path), example)
	}
	return filepath.Clean(u.Path)
}

func (c *checker) listen(key, v string) (netip.AddrPort, bool) {
	u, err := url.Parse(v)
	if err == nil && u.Scheme == "ws" && (u.Path == "" || u.Path == "/") && u.RawQuery == "" {
		if a, err := netip.ParseAddrPort(u.Host); err == nil && a.Addr().IsLoopback() && a.Port() != 0 {
			return a, true
		}
	}
	c.add(key, "%q is not ws:// on a loopback address; TLS ends before it, in a reverse proxy: write for example ws://127.0.0.1:8081", v)
	return netip.AddrPort{}, false
}

func (c *checker) key(key, v string) ed25519.PublicKey {
	b, err := hex.DecodeString(v)
	if err != nil || len(b) != ed25519.PublicKeySize {
		c.add(key, "%q is no public key; write the 64 hex digits that `veilor-ygg address` prints", shorten(v))
		return nil
	}
	return b
}

var peerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *checker) peers(list string, ps []wirePeer, seen map[string]bool) (out []Peer) {
	for i, p := range ps {
		at := fmt.Sprintf("%s[%d]", list, i)
		o := Peer{Name: p.Name, Key: c.key(at+".Key", p.Key), Network: p.Network}
		switch {
		case !peerName.MatchString(p.Name):
			c.add(at+".Name", "%q is no name; use a-z, 0-9 and -, for example edge-1", shorten(p.Name))
		case seen[p.Name]:
			c.add(at+".Name", "%q is there twice; rename one", p.Name)
		}
		seen[p.Name] = true
		u, err := url.Parse(p.URL)
		if err != nil || u.Scheme != "wss" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
			c.add(at+".URL", "%q is no wss URL; write for example wss://edge.example.org/", shorten(p.URL))
		}
		o.URL = u
		o.Address, err = netip.ParseAddrPort(p.Address)
		switch ip := o.Address.Addr().Unmap(); {
		case err != nil || o.Address.Port() == 0:
			c.add(at+".Address", "%q is no IP:PORT (a name would ask DNS); write for example 192.0.2.7:443", shorten(p.Address))
		case Overlay(ip):
			c.add(at+".Address", "%s lies in Yggdrasil itself, and a peering cannot run over what it carries; write the peer's Internet address", ip)
		case ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "":
			c.add(at+".Address", "%s is no address of one host; write for example 192.0.2.7:443", ip)
		}
		out = append(out, o)
	}
	return out
}

// Overlay says whether ip is an address of Yggdrasil's own network.
func Overlay(ip netip.Addr) bool { return yggfilter.Overlay.Contains(ip) }

// shorten keeps a wrong value that an error quotes to one short line.
func shorten(v string) string {
	if len(v) > 80 {
		return v[:80] + "..."
	}
	return v
}
