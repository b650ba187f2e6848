package world

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/namespace"
)

// joinLimit: a join takes 3 s here, 10 s on a loaded machine.
const joinLimit = 60 * time.Second

// Node is a machine of the tailnet that runs as processes, not in the VM.
type Node struct {
	*daemon.Daemon
	// Socket is tailscaled's.
	Socket string
	// Address is its IPv4 address in the tailnet.
	Address netip.Addr

	w         *World
	ns        *namespace.Namespace
	name, dir string
	tailscale string
}

// Join runs tailscaled in ns and joins it as name with the given key.
func (w *World) Join(ctx context.Context, ns *namespace.Namespace, name string, key headscale.Key) (*Node, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, joinLimit, fmt.Errorf("not joined after %v", joinLimit))
	defer cancel()
	dir, err := w.dir("ts-" + name)
	if err != nil {
		return nil, err
	}
	n := &Node{Socket: filepath.Join(dir, "sock"), w: w, ns: ns, name: name, dir: dir, tailscale: w.cfg.Tools.Tailscale}
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	// The key goes by a file: arguments are everybody's to read.
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte(key.Secret), 0o600); err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	defer os.Remove(file)
	_, err = n.Tailscale(ctx, "up", "--login-server", w.cfg.Site.Control.URL, "--auth-key", "file:"+file,
		"--accept-dns=false", "--hostname", name, "--timeout", joinLimit.String())
	if err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	out, err := n.Tailscale(ctx, "ip", "-4")
	if err != nil {
		return nil, fmt.Errorf("asking for the address of %s: %w", name, err)
	}
	if n.Address, err = netip.ParseAddr(strings.TrimSpace(out)); err != nil {
		return nil, fmt.Errorf("asking for the address of %s: %w", name, err)
	}
	return n, nil
}

// start runs tailscaled until it answers on its socket.
func (n *Node) start(ctx context.Context) error {
	cmd := exec.Command(n.w.cfg.Tools.Tailscaled, "--no-logs-no-support", "--tun=tailscale0", "--port=41641",
		"--statedir="+n.dir, "--state="+filepath.Join(n.dir, "state"), "--socket="+n.Socket)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+n.w.cfg.WebCA.CertFile(), "TS_NO_LOGS_NO_SUPPORT=1", "TS_DEBUG_FIREWALL_MODE=nftables")
	d, err := daemon.Start(n.ns, "tailscaled of "+n.name, n.w.log("tailscaled-"+n.name), cmd)
	if err != nil {
		return err
	}
	n.Daemon = d
	n.w.keep(d)
	return d.Ready(ctx, func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Restart ends tailscaled and runs it anew with what it knew.
func (n *Node) Restart(ctx context.Context) error {
	n.w.drop(n.Daemon)
	n.Daemon.Stop()
	return n.start(ctx)
}

// Tailscale runs the tailscale program against the node and returns what it
// printed.
func (n *Node) Tailscale(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, n.tailscale, append([]string{"--socket=" + n.Socket}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.ns.Run(cmd); err != nil {
		return out.String(), fmt.Errorf("tailscale %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// joinHost joins one of the site's hosts in ns, with a key of its tier, and sees
// to it that it got the address that the site says: Headscale allots them in
// order.
func (w *World) joinHost(ctx context.Context, ns *namespace.Namespace, h site.Host) (*Node, error) {
	tag := ""
	for _, t := range w.cfg.Site.Tiers {
		if t.Name == h.Tier {
			tag = t.Tag
		}
	}
	key, err := w.Headscale.API.CreateKey(ctx, tag)
	if err != nil {
		return nil, err
	}
	n, err := w.Join(ctx, ns, h.Name, key)
	if err != nil {
		return nil, err
	}
	if n.Address != h.Tailnet {
		return nil, fmt.Errorf("joining %s: it got %s, the site says %s", h.Name, n.Address, h.Tailnet)
	}
	return n, nil
}
