package world

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// wsBackend is where Yggdrasil nodes take WebSocket peerings, behind TLS: the
	// library cannot listen with TLS itself.
	wsBackend = "127.0.0.1:8081"
	// nodeLimit: a node listens within a second.
	nodeLimit = 20 * time.Second
	edgeMTU   = 1280 // the least that IPv6 allows (RFC 8200 §5), for every path
)

// Address is the IPv6 address in 200::/7 of a Yggdrasil key.
func Address(k site.Key) netip.Addr {
	return yggdrasil.Address(ed25519.PublicKey(k.Bytes()))
}

// startPeers runs the public peers: upstream's library and nothing of ours. The
// second peers with the first, as all of the public network hangs together.
func (w *World) startPeers(ctx context.Context) error {
	if err := w.startPeer(ctx, w.Peer, "peer", w.cfg.PeerKey, PeerAddress); err != nil || w.SecondPeer == nil {
		return err
	}
	return w.startPeer(ctx, w.SecondPeer, "peer2", w.cfg.SecondPeerKey, SecondPeerAddress,
		"--peer", fmt.Sprintf("wss://%s:443?key=%s", PeerAddress, w.cfg.Site.Yggdrasil.Public[0].Key))
}

func (w *World) startPeer(ctx context.Context, ns *namespace.Namespace, name, key string, at netip.Addr, args ...string) error {
	cmd := exec.Command(w.cfg.Tools.PublicPeer, append([]string{"--key", key, "--listen", "ws://" + wsBackend}, args...)...)
	d, err := daemon.Start(ns, "publicpeer at "+name, w.log("public-"+name), cmd)
	if err != nil {
		return err
	}
	w.keep(d)
	if err := awaitNode(ctx, ns, d); err != nil {
		return err
	}
	return w.front(ns, name+".lab.test", at, wsBackend)
}

// awaitNode waits until the node takes peerings.
func awaitNode(ctx context.Context, ns *namespace.Namespace, d *daemon.Daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, nodeLimit, fmt.Errorf("takes no peerings after %v", nodeLimit))
	defer cancel()
	h := &http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}}
	return d.Ready(ctx, daemon.Healthy(h, "http://"+wsBackend+"/health"))
}

// Edge is a Yggdrasil node of the operator's. All but the attic's take peerings of
// admitted laptops; the one at home hosts the service, too.
type Edge struct {
	w    *World
	name string // "edge-1", as the site calls it
	ns   *namespace.Namespace
	dir  string
	key  string   // file with its private key
	host site.Key // its public key
	up   []Peer   // edges that it peers with itself
	open []uint16 // ports of its own address
	// alone says that nobody peers through it.
	alone bool
	// tiers is the site file whose tiers say what is open instead, for the host
	// of this name.
	tiers, as string

	// admits are whom its configuration admits.
	admits []site.Key
}

// edgeConfig is what `veilor-ygg run --config` reads.
type edgeConfig struct {
	IfName            string
	IfMTU             int
	PrivateKeyPath    string
	AdminListen       string
	ControlListen     string
	NodesPath         string
	SitePath          string `json:",omitempty"`
	Host              string `json:",omitempty"`
	Listen            []string
	AllowedPublicKeys []site.Key
	Edges             []Peer
	PublicPeers       []Peer
	Accept            []uint16
}

// Peer is one that a node dials, as its configuration has it.
type Peer struct {
	Name    string
	URL     string
	Address netip.AddrPort
	Key     site.Key
}

// Peers are those of a site; never nil, which the configuration does not know.
func Peers(from []site.Peer) []Peer {
	to := []Peer{}
	for _, p := range from {
		to = append(to, Peer{Name: p.Name, URL: p.URL, Address: p.Address, Key: p.Key})
	}
	return to
}

// startEdge runs the home node, which admits no laptop yet, behind TLS. With an
// edge elsewhere it peers with that, as any server at home would.
func (w *World) startEdge(ctx context.Context) error {
	service, host := w.service()
	e := &Edge{w: w, name: "edge", ns: w.Home, key: w.cfg.EdgeKey, host: host.Yggdrasil, open: service.Ports, admits: w.hostKeys(host)}
	if w.cfg.SiteFile != "" {
		e.tiers, e.as, e.open = w.cfg.SiteFile, host.Name, nil
	}
	if w.cfg.FarEdgeKey != "" {
		e.up = Peers(w.cfg.Site.Yggdrasil.Edges[1:2])
	}
	w.Edge = e
	if err := e.begin(ctx); err != nil {
		return err
	}
	return w.front(w.Home, "edge.lab.test", EdgeAddress, wsBackend)
}

// startFarEdge runs the edge in a network of its own, which admits the site's
// hosts and nobody else yet.
func (w *World) startFarEdge(ctx context.Context) error {
	_, host := w.service()
	far := w.cfg.Site.Yggdrasil.Edges[1]
	w.FarEdge = &Edge{w: w, name: "far-edge", ns: w.Far, key: w.cfg.FarEdgeKey, host: far.Key,
		admits: append([]site.Key{host.Yggdrasil}, w.hostKeys(host)...)}
	if err := w.FarEdge.begin(ctx); err != nil {
		return err
	}
	return w.front(w.Far, "far.lab.test", FarEdgeAddress, wsBackend)
}

// hostKeys are those of the site's other hosts that run here.
func (w *World) hostKeys(but site.Host) []site.Key {
	var keys []site.Key
	for _, h := range w.cfg.Site.Hosts {
		if w.Attic != nil && h.Yggdrasil != but.Yggdrasil {
			keys = append(keys, h.Yggdrasil)
		}
	}
	return keys
}

func (e *Edge) begin(ctx context.Context) (err error) {
	if e.dir, err = e.w.dir(e.name); err != nil {
		return err
	}
	return e.start(ctx)
}

// Admit lets the laptop with the given key, of the guests' tier, peer with the
// edge, as the mint does: while it runs, and nobody else's peering is touched.
func (e *Edge) Admit(ctx context.Context, key site.Key) error {
	if key.Bytes() == nil {
		return fmt.Errorf("admitting a key at the edge: %q is not 64 hex digits", key)
	}
	return e.AdmitNode(ctx, edge.Node{Key: key, Name: "laptop-" + string(key[:8]), Tier: tier.Guest})
}

// AdmitNode is Admit for a machine of any tier.
func (e *Edge) AdmitNode(ctx context.Context, n edge.Node) error {
	c, err := edge.NewClient(e.Control())
	if err != nil {
		return err
	}
	_, err = c.Admit(ctx, n)
	return err
}

// start writes the configuration and runs the node until it takes peerings.
func (e *Edge) start(ctx context.Context) error {
	c := edgeConfig{
		IfName: "ygg0", IfMTU: edgeMTU, PrivateKeyPath: e.key,
		AdminListen: "unix://" + e.Socket(), Listen: []string{},
		ControlListen: e.Control(), NodesPath: filepath.Join(e.dir, "nodes.json"),
		SitePath: e.tiers, Host: e.as,
		// Its own key first: to the library an empty list means everybody.
		AllowedPublicKeys: append([]site.Key{e.host}, e.admits...),
		Edges:             append([]Peer{}, e.up...),
		PublicPeers:       Peers(e.w.cfg.Site.Yggdrasil.Public),
		Accept:            append([]uint16{}, e.open...),
	}
	if !e.alone {
		c.Listen = append(c.Listen, "ws://"+wsBackend)
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the edge's configuration: %w", err)
	}
	file := filepath.Join(e.dir, "ygg.json")
	if err := renameio.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("writing the edge's configuration: %w", err)
	}
	cmd := exec.Command(e.w.cfg.Tools.VeilorYgg, "run", "--config", file)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+e.w.cfg.WebCA.CertFile())
	d, err := daemon.Start(e.ns, "the veilor-ygg of "+e.name, e.w.log(e.name), cmd)
	if err != nil {
		return err
	}
	e.w.keep(d)
	if !e.alone {
		return awaitNode(ctx, e.ns, d)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, nodeLimit, fmt.Errorf("has no peer after %v", nodeLimit))
	defer cancel()
	return d.Ready(ctx, func(ctx context.Context) error {
		s, err := yggdrasil.Query(ctx, e.Socket())
		if err == nil && !s.Up {
			err = errors.New("no peer answers")
		}
		return err
	})
}

// Socket is where the node's admin protocol is served.
func (e *Edge) Socket() string { return filepath.Join(e.dir, "admin.sock") }

// Control is the URL of the socket where nodes are admitted and revoked while
// the edge runs.
func (e *Edge) Control() string { return "unix://" + filepath.Join(e.dir, "control.sock") }
