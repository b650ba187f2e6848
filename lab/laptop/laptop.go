// Package laptop runs a laptop's own programs as processes in a namespace of the
// world: tailscaled, veilor-ygg and veilor-mesh, as the image's units
// run them but for systemd's fences. It boots in seconds where the VM takes
// minutes.
package laptop

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

// readyLimit is for a daemon to answer on its socket; a second here.
const readyLimit = 20 * time.Second

// Config says what the laptop is made of.
type Config struct {
	// In is where it is; Name is its own, and Tier whose key it joins with. They
	// are the world's guest, "guest" and the guests' if they are not set.
	In         *namespace.Namespace
	Name, Tier string
	// Veilor and VeilorYgg are the product's programs.
	Veilor, VeilorYgg string
	// Site and SiteFile are the site that its image carries.
	Site     *site.Site
	SiteFile string
	// Roots is a PEM file of the certificates that its system trusts.
	Roots string
	// Dir is for keys, sockets and state. It must be empty, and its path short.
	Dir string
	// Logs is for the output of every daemon.
	Logs string
}

// Laptop is a joined laptop.
type Laptop struct {
	// Node is its tailscaled.
	Node *world.Node
	// Key is its public Yggdrasil key.
	Key site.Key

	cfg       Config
	ygg, mesh *daemon.Daemon
}

// Start joins a laptop with a key of its tier and waits until its programs answer.
func Start(ctx context.Context, w *world.World, cfg Config) (*Laptop, error) {
	if cfg.In == nil {
		cfg.In = w.Guest
	}
	cfg.Name, cfg.Tier = cmp.Or(cfg.Name, "guest"), cmp.Or(cfg.Tier, tier.Guest)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	l := &Laptop{cfg: cfg}
	private, err := yggdrasil.MakeKey(l.at("key.pem"))
	if err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	l.Key = site.Key(hex.EncodeToString(private.Public().(ed25519.PublicKey)))
	for _, e := range []*world.Edge{w.Edge, w.FarEdge, w.AtticNode} {
		if e == nil {
			continue
		}
		if err := e.AdmitNode(ctx, edge.Node{Key: l.Key, Name: cfg.Name, Tier: cfg.Tier}); err != nil {
			return nil, fmt.Errorf("starting the laptop: %w", err)
		}
	}
	if err := l.configure(); err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	if err := l.pin(); err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	policy, err := tier.New(cfg.Site)
	if err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	key, err := w.Headscale.API.CreateKey(ctx, policy.Tag(cfg.Tier))
	if err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	if l.Node, err = w.Join(ctx, cfg.In, cfg.Name, key); err != nil {
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	if err := l.run(ctx); err != nil {
		l.Stop()
		return nil, fmt.Errorf("starting the laptop: %w", err)
	}
	return l, nil
}

func (l *Laptop) at(name string) string { return filepath.Join(l.cfg.Dir, name) }

// configure writes what the image has at /usr/share/veilor/ygg.json, with this
// laptop's paths.
func (l *Laptop) configure() error {
	text, err := json.Marshal(map[string]any{
		"IfName": "ygg0", "IfMTU": 1280, "PrivateKeyPath": l.at("key.pem"), "AdminListen": "unix://" + l.at("ygg.sock"),
		"Listen": []string{}, "AllowedPublicKeys": l.cfg.Site.PeerKeys(), "Accept": []int{},
		"Edges": world.Peers(l.cfg.Site.Yggdrasil.Edges), "PublicPeers": world.Peers(l.cfg.Site.Yggdrasil.Public),
	})
	if err != nil {
		return err
	}
	return renameio.WriteFile(l.at("ygg.json"), text, 0o600)
}

// pin does what veilor-pins.service does, in an /etc/hosts of the laptop's own.
func (l *Laptop) pin() error {
	for link, to := range map[string]string{"root/proc": "/proc", "root/sys": "/sys"} {
		if err := errors.Join(os.MkdirAll(l.at("root/etc"), 0o755), os.Symlink(to, l.at(link))); err != nil {
			return err
		}
	}
	hosts := l.at("root/etc/hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		return err
	}
	if _, err := l.Veilor("mesh", "pin"); err != nil {
		return err
	}
	// The namespace's thread has mounts of its own; its processes inherit them.
	return l.cfg.In.Do(func() error { return unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, "") })
}

// run starts veilor-ygg and veilor-mesh.
func (l *Laptop) run(ctx context.Context) error {
	for _, p := range []struct {
		to     **daemon.Daemon
		name   string
		socket string
		args   []string
	}{
		{&l.ygg, "veilor-ygg", l.at("ygg.sock"), []string{l.cfg.VeilorYgg, "run", "--config", l.at("ygg.json")}},
		{&l.mesh, "veilor-mesh", l.at("mesh.sock"), l.veilor("mesh", "run", "--debug")},
	} {
		cmd := exec.Command(p.args[0], p.args[1:]...)
		state := l.at(p.name)
		if err := os.MkdirAll(state, 0o700); err != nil {
			return err
		}
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+l.cfg.Roots, "STATE_DIRECTORY="+state)
		d, err := daemon.Start(l.cfg.In, p.name+" of "+l.cfg.Name, filepath.Join(l.cfg.Logs, p.name+"-"+l.cfg.Name+".log"), cmd)
		if err != nil {
			return err
		}
		*p.to = d
	}
	limited, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not ready after %v", readyLimit))
	defer cancel()
	var g errgroup.Group
	for d, socket := range map[*daemon.Daemon]string{l.ygg: l.at("ygg.sock"), l.mesh: l.at("mesh.sock")} {
		g.Go(func() error {
			return d.Ready(limited, func(ctx context.Context) error {
				c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
				if err == nil {
					c.Close()
				}
				return err
			})
		})
	}
	return g.Wait()
}

// veilor is a command line of the laptop's veilor.
func (l *Laptop) veilor(args ...string) []string {
	line := []string{l.cfg.Veilor, "--root", l.at("root"), "--site", l.cfg.SiteFile, "--mesh-socket", l.at("mesh.sock"), "--ygg-socket", l.at("ygg.sock")}
	if l.Node != nil { // it has joined
		line = append(line, "--tailscaled-socket", l.Node.Socket)
	}
	return append(line, args...)
}

// Veilor runs veilor on the laptop and returns what it printed.
func (l *Laptop) Veilor(args ...string) (string, error) {
	line := l.veilor(args...)
	cmd := exec.Command(line[0], line[1:]...)
	var out, errs lines
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := l.cfg.In.Run(cmd); err != nil {
		return string(out), fmt.Errorf("veilor %s: %w: %s", args[0], err, errs)
	}
	return string(out), nil
}

type lines []byte

func (l *lines) Write(p []byte) (int, error) { *l = append(*l, p...); return len(p), nil }

// Restart ends all of its programs and runs them anew: what a reboot does.
func (l *Laptop) Restart(ctx context.Context) error {
	l.halt()
	if err := l.Node.Restart(ctx); err != nil {
		return fmt.Errorf("restarting the laptop: %w", err)
	}
	if err := l.run(ctx); err != nil {
		return fmt.Errorf("restarting the laptop: %w", err)
	}
	return nil
}

// Sleep stops its programs where they are, as a suspended machine does; Wake has
// them go on.
func (l *Laptop) Sleep() error { return l.signal(syscall.SIGSTOP) }

// Wake ends Sleep.
func (l *Laptop) Wake() error { return l.signal(syscall.SIGCONT) }

func (l *Laptop) signal(s syscall.Signal) error {
	var errs []error
	for _, d := range []*daemon.Daemon{l.Node.Daemon, l.ygg, l.mesh} {
		errs = append(errs, syscall.Kill(d.PID(), s))
	}
	return errors.Join(errs...)
}

// Namespace is where it is.
func (l *Laptop) Namespace() *namespace.Namespace { return l.cfg.In }

// Exited says that a program has ended by itself, and how.
func (l *Laptop) Exited() error {
	return errors.Join(l.Node.Exited(), l.ygg.Exited(), l.mesh.Exited())
}

func (l *Laptop) halt() {
	for _, d := range []*daemon.Daemon{l.mesh, l.ygg} {
		if d != nil {
			d.Stop()
		}
	}
}

// Stop ends its programs; tailscaled ends with the world.
func (l *Laptop) Stop() { l.halt() }
