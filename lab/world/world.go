// Package world builds everything outside the laptop: an ISP with a censor in
// it, the operator's home (Headscale with DERP, the service x.veilor, a
// Yggdrasil edge) and a public Yggdrasil peer in another network. All of it is
// the real software, in network namespaces that have no route to the host.
//
//	laptop ── br0 ─┬─ tap0 (the VM)         10.88.1.10, by DHCP
//	               ├─ guest (no VM: a test)  10.88.1.10
//	               ├─ attic (a host)         10.88.1.11
//	               └───────┐
//	                      isp   10.88.1.1  10.88.3.1  10.88.5.1 ...
//	                       │    DHCP, DNS of *.lab.test; the censor
//	        ┌──────────────┼──────────────────┬─────────────────┐
//	      home            far                peer, peer2       café
//	 10.88.3.10 hs       10.88.4.20 far     10.88.5.10 peer   10.88.2.10, a router;
//	 10.88.3.20 edge                        10.88.6.10 peer2  behind it 10.89.1.0/24
//
// Far, peer2, attic, café and guest are there if asked for, and IPv6, where Twin
// says which address goes with which. The laptop can go to the café; the censor
// sees nothing of what is behind it.
// Names are in lab.test: hs.lab.test and so on.
package world

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/headscale"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/webca"
)

// Tools are the programs that the world runs.
type Tools struct {
	Headscale, Tailscaled, Tailscale string
	// VeilorYgg is the product's Yggdrasil node, here in its role as an edge.
	VeilorYgg string
	// PublicPeer is cmd/publicpeer.
	PublicPeer string
	// Dnsmasq makes a command of dnsmasq, wherever it is installed.
	Dnsmasq func(args ...string) *exec.Cmd
}

// Config says where things are. Directories are made if need be.
type Config struct {
	Tools Tools
	// Site is the lab's site. Its first service is served at home.
	Site *site.Site
	// SiteFile, if set, is the site's file: the home node's packet filter is then
	// compiled from its tiers, and only who is admitted by its control socket, as
	// of a tier, opens anything there.
	SiteFile string
	// EdgeKey and PeerKey are files with the private keys (PEM) of the home node
	// and of the public peer.
	EdgeKey, PeerKey string
	// FarEdgeKey, if set, is that of the site's second edge, which then stands in
	// a network of its own.
	FarEdgeKey string
	// Service is the certificate of the site's authority for the first service.
	Service tls.Certificate
	// WebCA is the lab's stand-in for the public web PKI.
	WebCA *webca.CA

	// Run is for what lasts as long as the world: sockets, databases. It must be
	// empty, and its path short (a socket's path has 107 bytes).
	Run string
	// Logs is for the output of every daemon.
	Logs string
	// Names is for the names of the namespaces: /run/netns.
	Names string

	// SecondPeerKey, if set, is that of a second public peer, in a network of its
	// own, which peers with the first.
	SecondPeerKey string
	// IPv6 gives everybody but the VM an address of that family, too, and the
	// ISP's customers a firewall that lets nothing begin from outside.
	IPv6 bool
	// AtticKey, if set, is the file with the private key of the site's second host,
	// which then stands in the laptop's own network and serves what the site says.
	AtticKey string
	// Guest makes a further namespace on the laptop's bridge with the laptop's
	// address, to run the laptop's programs without a VM.
	Guest bool
	// SSH has the service's host greet at port 22 as an SSH server does.
	SSH bool
	// Cafe makes another network, where the guest can go, see GoOut.
	Cafe bool
	// Progress, if set, is told what comes up next.
	Progress func(what string)
}

// World is a running world.
type World struct {
	// ISP, Home, Peer and Laptop always exist, the others only if asked for.
	ISP, Home, Far, Peer, SecondPeer, Laptop, Guest, Attic, Cafe *namespace.Namespace
	// Censor acts in ISP.
	Censor *censor.Censor
	// Headscale is the control server at home.
	Headscale *headscale.Server
	// Edge is the Yggdrasil node at home, FarEdge the one elsewhere, AtticNode the
	// attic's.
	Edge, FarEdge, AtticNode *Edge
	// AtticHost is the attic in the tailnet.
	AtticHost *Node

	cfg     Config
	closers []func()
	stop    func() bool // of the context's AfterFunc
	once    sync.Once

	mu      sync.Mutex
	daemons []*daemon.Daemon
	seats   []*namespace.Namespace
	closed  chan struct{}
}

// Start brings the world up and returns when all of it answers. It is torn down
// by Close or with ctx, whichever comes first.
func Start(ctx context.Context, cfg Config) (*World, error) {
	for _, dir := range []string{cfg.Run, cfg.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("starting the world: %w", err)
		}
	}
	if left, err := os.ReadDir(cfg.Run); err != nil || len(left) > 0 {
		return nil, fmt.Errorf("starting the world: %s is not an empty directory (%v); a world does not go on with another's state", cfg.Run, err)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	w := &World{cfg: cfg, closed: make(chan struct{})}
	if err := w.start(ctx); err != nil {
		w.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("starting the world: %w", err)
	}
	// Only now: every step of start heeds ctx itself.
	w.stop = context.AfterFunc(ctx, w.Close)
	return w, nil
}

func (w *World) start(ctx context.Context) error {
	w.cfg.Progress("networks")
	if err := w.network(); err != nil {
		return err
	}
	var err error
	if w.Censor, err = censor.New(w.ISP.FD(), toLaptop); err != nil {
		return err
	}
	w.cfg.Progress("DNS, Headscale, Yggdrasil edge and public peer")
	var g errgroup.Group
	g.Go(w.startDNS)
	g.Go(func() error { return w.startHeadscale(ctx) })
	g.Go(func() error { return w.startPeers(ctx) })
	g.Go(func() error { return w.startEdge(ctx) })
	if w.Far != nil {
		g.Go(func() error { return w.startFarEdge(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	w.cfg.Progress("the service's host joins the tailnet")
	service, host := w.service()
	if _, err := w.joinHost(ctx, w.Home, host); err != nil {
		return err
	}
	if w.Attic != nil {
		w.cfg.Progress("a host in the laptop's own network")
		if err := w.startAttic(ctx); err != nil {
			return err
		}
	}
	if err := w.loadPolicy(ctx); err != nil {
		return err
	}
	if w.cfg.SSH {
		if err := w.greet(); err != nil {
			return err
		}
	}
	return w.startService(w.Home, service)
}

// startHeadscale runs the control server with the policy of the site's tiers.
func (w *World) startHeadscale(ctx context.Context) error {
	dir, err := w.dir("hs")
	if err != nil {
		return err
	}
	host := w.cfg.Site.ControlHost()
	cert, key, err := w.cfg.WebCA.Files(host)
	if err != nil {
		return err
	}
	srv, err := headscale.Start(ctx, w.Home, headscale.Config{
		Binary: w.cfg.Tools.Headscale, Dir: dir, Log: w.log("headscale"), Host: host, Address: Control,
		CertFile: cert, KeyFile: key, RootFile: w.cfg.WebCA.CertFile(), IPv6: w.control6(),
	})
	if err != nil {
		return err
	}
	w.keep(srv.Daemon)
	w.Headscale = srv
	if w.cfg.IPv6 {
		if err := w.startControl6(); err != nil {
			return err
		}
	}
	return w.loadPolicy(ctx)
}

// loadPolicy puts the policy of the site's tiers in force. Its tests run for the
// tiers that have a machine by then.
func (w *World) loadPolicy(ctx context.Context) error {
	tiers, err := tier.New(w.cfg.Site)
	if err != nil {
		return err
	}
	fleet, err := tiers.Fleet()
	if err != nil {
		return err
	}
	policy, err := acl.Compile(fleet)
	if err != nil {
		return err
	}
	_, err = w.Headscale.API.LoadPolicy(ctx, policy)
	return err
}

// service is the site's first service and its host.
func (w *World) service() (site.Service, site.Host) {
	v := w.cfg.Site.Services[0]
	h, _ := w.cfg.Site.Host(v.Host)
	return v, h
}

// ServiceAddresses are where the first service really is: on the tailnet and in
// Yggdrasil.
func (w *World) ServiceAddresses() (tailnet, yggdrasil netip.Addr) {
	v, _ := w.service()
	return w.AddressesOf(v)
}

// AddressesOf are where one of the site's services really is.
func (w *World) AddressesOf(v site.Service) (tailnet, yggdrasil netip.Addr) {
	h, _ := w.cfg.Site.Host(v.Host)
	return h.Tailnet, Address(h.Yggdrasil)
}

// StopControl ends the control server and its relay, as when their machine is
// gone; StartControl has it again, with all that it knew.
func (w *World) StopControl() {
	w.drop(w.Headscale.Daemon)
	w.Headscale.Stop()
}

// StartControl ends StopControl.
func (w *World) StartControl(ctx context.Context) error {
	if err := w.Headscale.Restart(ctx); err != nil {
		return err
	}
	w.keep(w.Headscale.Daemon)
	return nil
}

// Healthy returns an error if a daemon has ended by itself.
func (w *World) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, d := range w.daemons {
		errs = append(errs, d.Exited())
	}
	return errors.Join(errs...)
}

// Close ends every process and removes every namespace of the world.
func (w *World) Close() {
	w.once.Do(func() {
		defer close(w.closed)
		if w.stop != nil {
			w.stop()
		}
		w.mu.Lock()
		daemons, closers := w.daemons, w.closers
		w.daemons, w.closers = nil, nil
		w.mu.Unlock()
		if w.Censor != nil {
			w.Censor.Close()
		}
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
		var wg sync.WaitGroup
		for _, d := range daemons {
			wg.Go(d.Stop)
		}
		wg.Wait()
		for _, ns := range w.namespaces() {
			ns.Close()
		}
	})
	<-w.closed
}

// namespaces are all that there are, the ISP last.
func (w *World) namespaces() []*namespace.Namespace {
	w.mu.Lock()
	all := slices.Clone(w.seats)
	w.mu.Unlock()
	for _, ns := range []*namespace.Namespace{w.Guest, w.Attic, w.Laptop, w.Cafe, w.SecondPeer, w.Peer, w.Far, w.Home, w.ISP} {
		if ns != nil {
			all = append(all, ns)
		}
	}
	return all
}

// keep has d stopped with the world.
func (w *World) keep(d *daemon.Daemon) {
	w.mu.Lock()
	w.daemons = append(w.daemons, d)
	w.mu.Unlock()
}

// drop forgets d, which somebody else has stopped.
func (w *World) drop(d *daemon.Daemon) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, have := range w.daemons {
		if have == d {
			w.daemons = append(w.daemons[:i:i], w.daemons[i+1:]...)
			return
		}
	}
}

// onClose has f called before the daemons are stopped.
func (w *World) onClose(f func()) {
	w.mu.Lock()
	w.closers = append(w.closers, f)
	w.mu.Unlock()
}

func (w *World) log(name string) string { return filepath.Join(w.cfg.Logs, name+".log") }

// dir makes a private directory for one daemon.
func (w *World) dir(name string) (string, error) {
	d := filepath.Join(w.cfg.Run, name)
	if err := os.Mkdir(d, 0o700); err != nil {
		return "", fmt.Errorf("making a directory for %s: %w", name, err)
	}
	return d, nil
}
