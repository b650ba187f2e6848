package world

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/site"
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

// startPeer runs the public peer: upstream's library and nothing of ours.
func (w *World) startPeer(ctx context.Context) error {
	cmd := exec.Command(w.cfg.Tools.PublicPeer, "--key", w.cfg.PeerKey, "--listen", "ws://"+wsBackend)
	d, err := daemon.Start(w.Peer, "publicpeer", w.log("publicpeer"), cmd)
	if err != nil {
		return err
	}
	w.keep(d)
	if err := awaitNode(ctx, w.Peer, d); err != nil {
		return err
	}
	return w.front(w.Peer, "peer.lab.test", PeerAddress, wsBackend)
}

// awaitNode waits until the node takes peerings.
func awaitNode(ctx context.Context, ns *namespace.Namespace, d *daemon.Daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, nodeLimit, fmt.Errorf("takes no peerings after %v", nodeLimit))
	defer cancel()
	h := &http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}}
	return d.Ready(ctx, daemon.Healthy(h, "http://"+wsBackend+"/health"))
}

// Edge is a Yggdrasil node that takes peerings of admitted laptops. The one at
// home hosts the service, too.
type Edge struct {
	w    *World
	name string // "edge-1", as the site calls it
	ns   *namespace.Namespace
	dir  string
	key  string   // file with its private key
	host site.Key // its public key
	up   []Peer   // edges that it peers with itself
	open []uint16 // ports of its own address
	// tiers is the site file whose tiers say what is open instead, for the host
	// of this name.
	tiers, as string

	mu     sync.Mutex
	node   *daemon.Daemon
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

// startEdge runs the home node, which admits nobody yet, behind TLS. With an
// edge elsewhere it peers with that, as any server at home would.
func (w *World) startEdge(ctx context.Context) error {
	service, host := w.service()
	e := &Edge{w: w, name: "edge", ns: w.Home, key: w.cfg.EdgeKey, host: host.Yggdrasil, open: service.Ports}
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

// startFarEdge runs the edge in a network of its own, which admits the home node
// and nobody else yet.
func (w *World) startFarEdge(ctx context.Context) error {
	_, host := w.service()
	far := w.cfg.Site.Yggdrasil.Edges[1]
	w.FarEdge = &Edge{w: w, name: "far-edge", ns: w.Far, key: w.cfg.FarEdgeKey, host: far.Key, admits: []site.Key{host.Yggdrasil}}
	if err := w.FarEdge.begin(ctx); err != nil {
		return err
	}
	return w.front(w.Far, "far.lab.test", FarEdgeAddress, wsBackend)
}

func (e *Edge) begin(ctx context.Context) (err error) {
	if e.dir, err = e.w.dir(e.name); err != nil {
		return err
	}
	return e.start(ctx)
}

// Admit lets the laptop with the given key peer with the edge. The node is
// restarted: the library reads its allow-list once, when it starts. Peerings
// that stood are dialled anew by the other side, within 2 s to 5 s.
func (e *Edge) Admit(ctx context.Context, key site.Key) error {
	if key.Bytes() == nil {
		return fmt.Errorf("admitting a key at the edge: %q is not 64 hex digits", key)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if slices.Contains(e.admits, key) {
		return nil
	}
	e.admits = append(e.admits, key)
	e.w.drop(e.node)
	e.node.Stop()
	if err := e.start(ctx); err != nil {
		return fmt.Errorf("admitting a key at the edge: %w", err)
	}
	return nil
}

// start writes the configuration and runs the node until it takes peerings.
func (e *Edge) start(ctx context.Context) error {
	c := edgeConfig{
		IfName: "ygg0", IfMTU: edgeMTU, PrivateKeyPath: e.key,
		AdminListen: "unix://" + e.Socket(), Listen: []string{"ws://" + wsBackend},
		ControlListen: e.Control(), NodesPath: filepath.Join(e.dir, "nodes.json"),
		SitePath: e.tiers, Host: e.as,
		// Its own key first: to the library an empty list means everybody.
		AllowedPublicKeys: append([]site.Key{e.host}, e.admits...),
		Edges:             append([]Peer{}, e.up...),
		PublicPeers:       Peers(e.w.cfg.Site.Yggdrasil.Public),
		Accept:            append([]uint16{}, e.open...),
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
	e.node = d
	e.w.keep(d)
	return awaitNode(ctx, e.ns, d)
}

// Socket is where the node's admin protocol is served.
func (e *Edge) Socket() string { return filepath.Join(e.dir, "admin.sock") }

// Control is the URL of the socket where nodes are admitted and revoked while
// the edge runs.
func (e *Edge) Control() string { return "unix://" + filepath.Join(e.dir, "control.sock") }
