package revocation

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

// firstHost is the last byte of the first seat's address in 10.88.1.0/24.
const firstHost = 20

// seat is a place on the laptop's side of the ISP where one guest after another
// can be.
type seat struct {
	ns *namespace.Namespace
}

func (r *run) seat(i int) (*seat, error) {
	ns, err := r.w.Seat(fmt.Sprintf("seat%d", i), netip.AddrFrom4([4]byte{10, 88, 1, byte(firstHost + i)}))
	return &seat{ns}, err
}

// guest is a laptop of the guests' tier: tailscaled and veilor-ygg.
type guest struct {
	name string
	ns   *namespace.Namespace
	node *world.Node
	ygg  *daemon.Daemon
	key  site.Key
	// tailnet and yggdrasil are the watches of its two layers.
	tailnet, yggdrasil *watch
}

// join makes a guest at a seat and waits until its flows live on both layers.
func (r *run) join(ctx context.Context, s *seat, name string) (*guest, error) {
	g := &guest{name: name, ns: s.ns}
	if err := r.joinYggdrasil(ctx, g); err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	key, err := r.w.Headscale.API.CreateKey(ctx, "tag:guest")
	if err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	if g.node, err = r.w.Join(ctx, g.ns, name, key); err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	tailnet, ygg := r.w.ServiceAddresses()
	g.tailnet, g.yggdrasil = r.watch(g.ns, tailnet), r.watch(g.ns, ygg)
	for layer, w := range map[string]*watch{"the tailnet": g.tailnet, "Yggdrasil": g.yggdrasil} {
		if err := w.alive(ctx); err != nil {
			return nil, fmt.Errorf("joining %s: over %s: %w", name, layer, errors.Join(err, g.node.Exited(), g.ygg.Exited()))
		}
	}
	return g, nil
}

// joinYggdrasil runs its veilor-ygg and has the edge admit it, as the mint does.
func (r *run) joinYggdrasil(ctx context.Context, g *guest) error {
	dir := filepath.Join(r.cfg.Dir, g.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, "key.pem")
	private, err := yggdrasil.MakeKey(keyFile)
	if err != nil {
		return err
	}
	g.key = site.Key(hex.EncodeToString(private.Public().(ed25519.PublicKey)))
	if _, err := r.edge.Admit(ctx, edge.Node{Key: g.key, Name: g.name, Tier: "guest"}); err != nil {
		return err
	}
	s := r.cfg.World.Site
	text, err := json.Marshal(map[string]any{
		"IfName": "ygg0", "IfMTU": 1280, "PrivateKeyPath": keyFile, "AdminListen": "unix://" + filepath.Join(dir, "admin.sock"),
		"Listen": []string{}, "AllowedPublicKeys": s.PeerKeys(), "Edges": world.Peers(s.Yggdrasil.Edges), "PublicPeers": world.Peers(s.Yggdrasil.Public), "Accept": []int{},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "ygg.json")
	if err := renameio.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(r.cfg.World.Tools.VeilorYgg, "run", "--config", file)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+r.cfg.World.WebCA.CertFile())
	g.ygg, err = daemon.Start(g.ns, "the veilor-ygg of "+g.name, filepath.Join(r.cfg.World.Logs, "ygg-"+g.name+".log"), cmd)
	return err
}

// addresses are the guest's, as the server sees them.
func (g *guest) addresses() []netip.Addr {
	return []netip.Addr{g.node.Address, world.Address(g.key)}
}

// stop ends its programs.
func (g *guest) stop() {
	g.tailnet.stop()
	g.yggdrasil.stop()
	g.node.Stop()
	g.ygg.Stop()
}

// signal is for both of its programs: SIGSTOP is a machine that is suspended.
func (g *guest) signal(s syscall.Signal) error {
	for _, d := range []*daemon.Daemon{g.node.Daemon, g.ygg} {
		if err := syscall.Kill(d.PID(), s); err != nil {
			return fmt.Errorf("sending %v to %s: %w", s, d.Name, err)
		}
	}
	return nil
}
