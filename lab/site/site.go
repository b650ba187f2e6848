// Package site makes the lab's own site: the same file as site/veilor.yaml,
// read by the same reader, with the lab's names, addresses and keys.
//
// Everything is made once per directory and stays the same, since the image
// that the lab builds carries it and is kept as long as its inputs are.
package site

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/trust"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

// Release is the Fedora release that the lab's image claims to be built on.
const Release = 44

// The lab's names. The image reference is the real one: the lab's machines
// find it through a mirror, so that nothing in the image is the lab's own.
const (
	Zone        = "veilor"
	ImageRef    = "ghcr.io/veilor/veilor-os"
	ControlURL  = "https://hs.lab.test"
	ServiceName = "x.veilor"
	HostName    = "nullstone"

	// AtticService is of a host in the laptop's own network, of a wide site.
	AtticService = "y.veilor"
	atticName    = "attic"
)

// Groups are the signature groups of which an image needs one signature each.
var Groups = []string{"ci", "release"}

// Addresses of peers in the lab, as lab/world gives them out.
var (
	edge     = site.Peer{Name: "edge-1", URL: "wss://edge.lab.test/", Address: netip.MustParseAddrPort("10.88.3.20:443")}
	farEdge  = site.Peer{Name: "edge-2", URL: "wss://far.lab.test/", Address: netip.MustParseAddrPort("10.88.4.20:443")}
	public   = site.Peer{Name: "public-1", URL: "wss://peer.lab.test/", Address: netip.MustParseAddrPort("10.88.5.10:443")}
	public2  = site.Peer{Name: "public-2", URL: "wss://peer2.lab.test/", Address: netip.MustParseAddrPort("[2001:db8:6::a]:443")}
	control  = netip.MustParseAddr("10.88.3.10")
	control6 = netip.MustParseAddr("2001:db8:3::a")
	tailnet  = netip.MustParseAddr("100.64.0.1") // the first that Headscale allots
	loopback = netip.MustParseAddr("127.83.0.1")

	atticTailnet  = netip.MustParseAddr("100.64.0.2")
	atticLoopback = netip.MustParseAddr("127.83.0.2")
)

// passphraseBytes of randomness protect the image keys, so that the lab goes
// the same way as a person with a passphrase.
const passphraseBytes = 16

// Lab is the lab's site in a directory.
type Lab struct {
	*site.Site
	// Dir holds everything below; secrets are 0600.
	Dir string
	// File is the site file.
	File string
	// EdgeKey and PeerKey are the private keys (PEM) of the home node, which is
	// the edge and the service's host in one, and of the public peer.
	EdgeKey, PeerKey string
	// FarEdgeKey is that of the second edge, SecondPeerKey that of the second public
	// peer, AtticKey that of the second host; empty if there is none.
	FarEdgeKey, SecondPeerKey, AtticKey string
	// ImageKeys are the private keys (cosign's form) of Groups, in that order.
	ImageKeys []string
	// Passphrase opens all of ImageKeys; what $COSIGN_PASSWORD must say.
	Passphrase string
	// AuthorityCert and AuthorityKey are the pair of the site's CA (PEM).
	AuthorityCert, AuthorityKey string
}

// Make makes the site in dir, or reads what an earlier call made there.
func Make(dir string, now time.Time) (*Lab, error) { return build(dir, now, false) }

// MakeWide is Make with a second edge and a second public peer, each in a network
// of its own, with a second host that has a service, and with IPv6: the second
// public peer and the control server have addresses of that family.
func MakeWide(dir string, now time.Time) (*Lab, error) { return build(dir, now, true) }

func build(dir string, now time.Time, wide bool) (*Lab, error) {
	keys, secret := filepath.Join(dir, "keys"), filepath.Join(dir, "secret")
	l := &Lab{
		Dir: dir, File: filepath.Join(dir, "site.yaml"),
		EdgeKey: filepath.Join(secret, "edge.pem"), PeerKey: filepath.Join(secret, "peer.pem"),
		AuthorityCert: filepath.Join(keys, "authority.pem"), AuthorityKey: filepath.Join(secret, "authority.key"),
	}
	if wide {
		l.FarEdgeKey, l.SecondPeerKey, l.AtticKey = filepath.Join(secret, "far.pem"), filepath.Join(secret, "peer2.pem"), filepath.Join(secret, "attic.pem")
	}
	if err := errors.Join(os.MkdirAll(keys, 0o755), os.MkdirAll(secret, 0o700)); err != nil {
		return nil, fmt.Errorf("making the lab's site: %w", err)
	}
	for _, step := range []func() error{
		func() error { return l.signers(keys, secret) },
		func() error { return l.authority(now) },
		l.site,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("making the lab's site in %s: %w", dir, err)
		}
	}
	return l, nil
}

// Certificate issues one for the lab's services, by the site's authority.
func (l *Lab) Certificate(now time.Time) (tls.Certificate, error) {
	key, err := os.ReadFile(l.AuthorityKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading the authority's key: %w", err)
	}
	ca, err := trust.Open(l.AuthorityCert, l.Authority.Data, l.AuthorityKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	var names []string
	for _, v := range l.Services {
		names = append(names, v.Name)
	}
	pair, err := ca.Issue(names, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(pair.Certificate, pair.Key)
}

// signers makes the image keys, or finds them.
func (l *Lab) signers(keys, secret string) error {
	file := filepath.Join(secret, "passphrase")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		random := make([]byte, passphraseBytes)
		rand.Read(random) // never fails
		text = []byte(hex.EncodeToString(random))
		err = renameio.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return err
	}
	l.Passphrase = string(text)
	for _, g := range Groups {
		private := filepath.Join(secret, g+".key")
		public := filepath.Join(keys, g+".pub")
		l.ImageKeys = append(l.ImageKeys, private)
		if exists(private) && exists(public) {
			continue
		}
		// Half a pair is of an interrupted run.
		for _, f := range []string{private, filepath.Join(secret, g+".pub")} {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		_, made, err := signing.Generate(secret, g, text)
		if err == nil {
			err = os.Rename(made, public)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// authority makes the site's CA, or finds it.
func (l *Lab) authority(now time.Time) error {
	if exists(l.AuthorityKey) && exists(l.AuthorityCert) {
		return nil
	}
	pair, err := trust.Create(Zone, now)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(l.AuthorityKey, pair.Key, 0o600); err != nil {
		return err
	}
	return renameio.WriteFile(l.AuthorityCert, pair.Certificate, 0o644)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// site writes the site file and reads it back, through the reader that everybody
// uses: the lab has no other.
func (l *Lab) site() error {
	edgeKey, err := nodeKey(l.EdgeKey)
	if err != nil {
		return err
	}
	if err := makeRoot(l.PeerKey); err != nil {
		return err
	}
	peerKey, err := nodeKey(l.PeerKey)
	if err != nil {
		return err
	}
	s := site.Site{
		Zone:      Zone,
		OS:        site.OS{Name: "veilor-os", Release: Release, Home: "https://github.com/veilor/veilor-os"},
		Image:     site.Image{Ref: ImageRef, Base: "ghcr.io/secureblue/kinoite-main-hardened"},
		Control:   site.Control{URL: ControlURL, Addresses: []netip.Addr{control}},
		Authority: site.File{Path: "keys/authority.pem"},
		Tiers: []site.Tier{
			{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}},
			{Name: "infra", Tag: "tag:infra", Reach: []string{"infra:*"}},
			{Name: "guest", Tag: "tag:guest", Reach: []string{ServiceName + ":443"}},
		},
		Hosts:    []site.Host{{Name: HostName, Tier: "infra", Tailnet: tailnet, Yggdrasil: edgeKey}},
		Services: []site.Service{{Name: ServiceName, Host: HostName, Ports: []uint16{443}, Loopback: loopback}},
	}
	e, q := edge, public
	e.Key, q.Key = edgeKey, peerKey
	s.Yggdrasil = site.Yggdrasil{Edges: []site.Peer{e}, Public: []site.Peer{q}}
	if l.FarEdgeKey != "" {
		far := farEdge
		if far.Key, err = nodeKey(l.FarEdgeKey); err != nil {
			return err
		}
		s.Yggdrasil.Edges = append(s.Yggdrasil.Edges, far)
	}
	if l.SecondPeerKey != "" {
		second := public2
		if second.Key, err = nodeKey(l.SecondPeerKey); err != nil {
			return err
		}
		s.Yggdrasil.Public = append(s.Yggdrasil.Public, second)
		s.Control.Addresses = append(s.Control.Addresses, control6)
	}
	if l.AtticKey != "" {
		key, err := nodeKey(l.AtticKey)
		if err != nil {
			return err
		}
		s.Hosts = append(s.Hosts, site.Host{Name: atticName, Tier: "infra", Tailnet: atticTailnet, Yggdrasil: key})
		s.Services = append(s.Services, site.Service{Name: AtticService, Host: atticName, Ports: []uint16{443}, Loopback: atticLoopback})
		guest := &s.Tiers[len(s.Tiers)-1]
		guest.Reach = append(guest.Reach, AtticService+":443")
	}

	for _, g := range Groups {
		s.Image.Signatures = append(s.Image.Signatures, site.SignatureGroup{Name: g, Keys: []site.File{{Path: "keys/" + g + ".pub"}}})
	}
	text, err := yaml.Marshal(&s)
	if err != nil {
		return err
	}
	text = append([]byte("# The lab's own site, made by lab/site. See site/veilor.yaml for what the keys mean.\n"), text...)
	if err := renameio.WriteFile(l.File, text, 0o644); err != nil {
		return err
	}
	if l.Site, err = site.Load(l.File); err != nil {
		return err
	}
	return l.Complete()
}

// nodeKey reads the Yggdrasil key in file, or makes one there, and returns its
// public half.
func nodeKey(file string) (site.Key, error) {
	private, _, err := yggdrasil.EnsureKey(file)
	if err != nil {
		return "", err
	}
	return site.Key(hex.EncodeToString(private.Public().(ed25519.PublicKey))), nil
}

// makeRoot makes a node key, if file has none, that is lower than any other node
// of the lab will draw. The lowest key is the root of Yggdrasil's tree, and in
// the real network that is never a laptop; were it one here, its every change of
// peers would be a change of root for everybody.
func makeRoot(file string) error {
	if exists(file) {
		return nil
	}
	for {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		// Two bytes of zeros: one other key in 65,536 is as low.
		if public[0] != 0 || public[1] != 0 {
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return err
		}
		return renameio.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
}
