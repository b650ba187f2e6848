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

// Edge is the Yggdrasil node at home: it takes peerings of admitted laptops and
// hosts the service.
type Edge struct {
	w   *World
	dir string

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
	Listen            []string
	AllowedPublicKeys []site.Key
	Edges             []edgePeer
	PublicPeers       []edgePeer
	Accept            []uint16
}

type edgePeer struct {
	Name    string
	URL     string
	Address netip.AddrPort
	Key     site.Key
}

// startEdge runs the home node, which admits nobody yet, behind TLS.
func (w *World) startEdge(ctx context.Context) error {
	dir, err := w.dir("edge")
	if err != nil {
		return err
	}
	w.Edge = &Edge{w: w, dir: dir}
	if err := w.Edge.start(ctx); err != nil {
		return err
	}
	return w.front(w.Home, "edge.lab.test", EdgeAddress, wsBackend)
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
	service, host := e.w.service()
	c := edgeConfig{
		IfName: "ygg0", IfMTU: edgeMTU, PrivateKeyPath: e.w.cfg.EdgeKey,
		AdminListen: "unix://" + e.Socket(), Listen: []string{"ws://" + wsBackend},
		// Its own key first: to the library an empty list means everybody.
		AllowedPublicKeys: append([]site.Key{host.Yggdrasil}, e.admits...),
		Edges:             []edgePeer{},
		Accept:            service.Ports,
	}
	for _, p := range e.w.cfg.Site.Yggdrasil.Public {
		c.PublicPeers = append(c.PublicPeers, edgePeer(p))
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
	d, err := daemon.Start(e.w.Home, "the edge's veilor-ygg", e.w.log("edge"), cmd)
	if err != nil {
		return err
	}
	e.node = d
	e.w.keep(d)
	return awaitNode(ctx, e.w.Home, d)
}

// Socket is where the node's admin protocol is served.
func (e *Edge) Socket() string { return filepath.Join(e.dir, "admin.sock") }
