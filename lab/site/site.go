// Package site makes the lab's own site: the same file as site/veilor.yaml,
// read by the same reader, with the lab's names, addresses and keys.
//
// Everything is made once per directory and stays the same, since the image
// that the lab builds carries it and is kept as long as its inputs are.
package site

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/site"
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
)

// Groups are the signature groups of which an image needs one signature each.
var Groups = []string{"ci", "release"}

// Addresses of peers in the lab, as lab/world gives them out.
var (
	edge     = site.Peer{Name: "edge-1", URL: "wss://edge.lab.test/", Address: netip.MustParseAddrPort("10.88.3.20:443")}
	public   = site.Peer{Name: "public-1", URL: "wss://peer.lab.test/", Address: netip.MustParseAddrPort("10.88.5.10:443")}
	tailnet  = netip.MustParseAddr("100.64.0.1") // the first that Headscale allots
	loopback = netip.MustParseAddr("127.83.0.1")
)

// Lab is the lab's site in a directory.
type Lab struct {
	*site.Site
	// Dir holds everything below.
	Dir string
	// File is the site file.
	File string
	// EdgeKey and PeerKey are the private keys (PEM) of the home node, which is
	// the edge and the service's host in one, and of the public peer.
	EdgeKey, PeerKey string
}

// Public is what others made for the site and it only carries.
type Public struct {
	// ImageKeys has a cosign public key (PEM) for each of Groups.
	ImageKeys map[string][]byte
	// Authority is the certificate (PEM) of the site's CA.
	Authority []byte
}

// Write makes the site in dir, with the node keys that are there or new ones.
func Write(dir string, p Public) (*Lab, error) {
	l := &Lab{
		Dir: dir, File: filepath.Join(dir, "site.yaml"),
		EdgeKey: filepath.Join(dir, "edge.key.pem"), PeerKey: filepath.Join(dir, "peer.key.pem"),
	}
	if err := l.write(p); err != nil {
		return nil, fmt.Errorf("making the lab's site: %w", err)
	}
	return l, nil
}

func (l *Lab) write(p Public) error {
	if err := os.MkdirAll(filepath.Join(l.Dir, "keys"), 0o700); err != nil {
		return err
	}
	edgeKey, err := nodeKey(l.EdgeKey)
	if err != nil {
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
		Control:   site.Control{URL: ControlURL},
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

	files := map[string][]byte{s.Authority.Path: p.Authority}
	for _, g := range Groups {
		path := "keys/" + g + ".pub"
		files[path] = p.ImageKeys[g]
		s.Image.Signatures = append(s.Image.Signatures, site.SignatureGroup{Name: g, Keys: []site.File{{Path: path}}})
	}
	text, err := yaml.Marshal(&s)
	if err != nil {
		return err
	}
	files["site.yaml"] = append([]byte("# The lab's own site, made by lab/site. See site/veilor.yaml for what the keys mean.\n"), text...)
	for path, data := range files {
		if len(data) == 0 {
			return fmt.Errorf("nothing to write to %s", path)
		}
		if err := renameio.WriteFile(filepath.Join(l.Dir, path), data, 0o644); err != nil {
			return err
		}
	}
	// Through the reader that everybody uses: the lab has no other.
	if l.Site, err = site.Load(l.File); err != nil {
		return err
	}
	return l.Site.Complete()
}

// nodeKey reads the Yggdrasil key in file, or makes one there, and returns its
// public half.
func nodeKey(file string) (site.Key, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return "", err
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return "", err
		}
		data = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := renameio.WriteFile(file, data, 0o600); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("reading %s: not PEM; remove it to have a new key", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", file, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return "", fmt.Errorf("reading %s: a %T, not an Ed25519 key; remove it to have a new one", file, key)
	}
	return site.Key(hex.EncodeToString(private.Public().(ed25519.PublicKey))), nil
}
