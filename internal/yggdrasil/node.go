// Package yggdrasil runs a Yggdrasil node from the upstream library, as veilor
// wants it: one peer at a time (package peering), over a transport of its own
// (package wss), behind a packet filter that is there first (package
// yggfilter). It also knows the node's configuration, key and address, and asks
// a running node how it is ([Query]).
package yggdrasil

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Arceliar/ironwood/network"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/tun"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/admission"
	"github.com/veilor/veilor-os/internal/nftguard"
	"github.com/veilor/veilor-os/internal/wss"
)

const tunDevice = "/dev/net/tun"

// Run runs a node until ctx ends. ready is called once its TUN is up and its
// sockets listen; a peer it may not have yet. also are packet filters that it
// keeps beside its own.
func Run(ctx context.Context, cfg *Config, log *slog.Logger, ready func(), also ...Kept) error {
	key, made, err := EnsureKey(cfg.PrivateKeyPath)
	if err != nil {
		return err
	}
	addr := Address(key.Public().(ed25519.PublicKey))
	log.Info("node", "address", addr, "newKey", made, "groupPassword", cfg.Group != Secret{})
	if err := preflight(cfg.IfName); err != nil {
		return err
	}
	people, err := openRoster(cfg.NodesPath, cfg.AllowedPublicKeys)
	if err != nil {
		return err
	}
	outer, err := newWalls(cfg)
	if err != nil {
		return err
	}
	if outer.guard, err = nftguard.Open(log, nil); err != nil {
		return err
	}
	// Before the interface: there is no moment in which it stands open. It is
	// not taken away on failure either. Who may peer may also come in through the
	// public network; nobody else.
	if err := outer.raise(people.list()); err != nil {
		outer.guard.Close()
		return err
	}
	for _, k := range also {
		if err := outer.guard.Adopt(k.Table, k.Program, k.Load); err != nil {
			outer.guard.Close()
			return err
		}
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := outer.guard.Run(ctx); err != nil {
			stop(err)
		}
	})
	lib := &logger{to: log.With("from", "yggdrasil")}
	node, err := newCore(cfg, key, lib)
	if err != nil {
		return err
	}
	gate := &door{
		verify: admission.NewVerifier(key.Public().(ed25519.PublicKey), time.Now(), people.admits),
		admits: people.admits, lookUp: node.SendLookup, now: time.Now,
	}
	traffic := newPackets(node, time.Now)
	if cfg.Server() {
		traffic.heard = gate.heard
		node.PacketConn.PacketConn.Debug.SetDebugLookupLogger(func(l network.DebugLookupInfo) {
			gate.heard(l.Key)
			traffic.sought(l.Key, l.Target, people.admits)
		})
	}
	iface, err := tun.New(traffic, lib, tun.InterfaceName(cfg.IfName), tun.InterfaceMTU(cfg.IfMTU))
	if err != nil {
		node.Stop()
		return tunError(cfg.IfName, err)
	}
	defer func() {
		stop(nil)
		wg.Wait()
		lib.stopping.Store(true)
		iface.Stop()
		node.Stop()
		outer.fall(log)
	}()
	ours, err := net.InterfaceByName(cfg.IfName)
	if err != nil {
		return fmt.Errorf("looking at the interface %s that we made: %w", cfg.IfName, err)
	}

	dir, err := socketDir(cfg.AdminSocket)
	if err != nil {
		return err
	}
	adm, err := listenAdmin(ctx, cfg.AdminSocket, node)
	if err != nil {
		return err
	}
	adm.log, adm.filters = log, outer.guard.Tally
	context.AfterFunc(ctx, func() { adm.list.Close() })
	wg.Go(adm.serve)
	for _, l := range cfg.Listen {
		if err := receive(ctx, l, node, gate, dir, log, &wg, stop); err != nil {
			return err
		}
	}
	if cfg.ControlSocket != "" {
		k := &keeper{roster: people, walls: outer, door: gate, log: log, flows: closeFlows}
		l, err := listenControl(ctx, cfg.ControlSocket)
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := k.serveControl(ctx, l); err != nil {
				stop(err)
			}
		})
	}
	// Who takes no peerings has one link only.
	leaf := len(cfg.Listen) == 0
	s := &supervisor{
		core: node, key: key, peers: cfg.Peers(), edges: len(cfg.Edges), dial: new(wss.Dialer),
		joined: func(ctx context.Context, peer ed25519.PublicKey, lost bool) { traffic.joined(ctx, peer, leaf && lost) },
		dir:    dir, log: log, now: time.Now, skews: make([]atomic.Int64, len(cfg.Edges)),
		moved: make(chan bool), board: adm.board,
	}
	wg.Go(func() { s.run(ctx) })
	wg.Go(func() {
		watchNetwork(ctx, log, s.moved, func() {
			if err := gone(ours); err != nil {
				stop(err)
			}
		})
	})
	ready()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func newCore(cfg *Config, key ed25519.PrivateKey, lib *logger) (*core.Core, error) {
	opts := []core.SetupOption{
		core.NodeInfoPrivacy(true),
		// We dial addresses that the configuration has checked already; this is
		// for whatever else the library may ever dial.
		core.PeerFilter(func(ip net.IP) bool {
			a, ok := netip.AddrFromSlice(ip)
			return ok && !Overlay(a.Unmap())
		}),
	}
	if cfg.Group != (Secret{}) {
		opts = append(opts, core.GroupPassword(cfg.Group.text))
	}
	// No AllowedPublicKey: that list cannot change while the node runs. Whoever
	// comes to the library's sockets has been through our door.
	node, err := core.New(&tls.Certificate{PrivateKey: key}, lib, opts...)
	if err != nil {
		return nil, fmt.Errorf("starting the node: %w", err)
	}
	return node, nil
}

// preflight gives the usual reasons why a TUN cannot be made their own words.
func preflight(name string) error {
	if f, err := os.OpenFile(tunDevice, os.O_RDWR, 0); err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			return fmt.Errorf("making the interface %s: this kernel has no %s; run `modprobe tun`", name, tunDevice)
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("making the interface %s: no access to %s; a unit needs DeviceAllow=%s rw", name, tunDevice, tunDevice)
		}
		return fmt.Errorf("making the interface %s: %w", name, err)
	} else {
		f.Close()
	}
	caps := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		return fmt.Errorf("asking for our capabilities: %w", err)
	}
	if caps[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("making the interface %s: it needs CAP_NET_ADMIN; start veilor-ygg.service, or run as root", name)
	}
	if _, err := net.InterfaceByName(name); err == nil {
		return fmt.Errorf("making the interface %s: there is one already: another Yggdrasil? Stop it (`systemctl status veilor-ygg yggdrasil`) or set another IfName", name)
	}
	return nil
}

func tunError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("making the interface %s: it is taken: %w", name, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("setting up the interface %s: %w; is IPv6 off? (`sysctl net.ipv6.conf.all.disable_ipv6` must be 0)", name, err)
	}
	return fmt.Errorf("making the interface %s: %w", name, err)
}

// socketDir makes the directory for the sockets between the library and us,
// beside the admin socket, empty and closed to others.
func socketDir(adminSocket string) (string, error) {
	dir := filepath.Join(filepath.Dir(adminSocket), "link")
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clearing our sockets: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("making the directory of our sockets: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the directory of our sockets: %w", err)
	}
	return dir, nil
}

// receive takes inbound peerings on a loopback address. The library's own
// listener could, but it never looks whether a guest is still there, and whom it
// admits is fixed.
func receive(ctx context.Context, at netip.AddrPort, node *core.Core, gate *door, dir string, log *slog.Logger, wg *sync.WaitGroup, stop context.CancelCauseFunc) error {
	path := filepath.Join(dir, fmt.Sprintf("in-%d.sock", at.Port()))
	if _, err := node.Listen(&url.URL{Scheme: "unix", Path: path}, ""); err != nil {
		return fmt.Errorf("opening the node's socket for peerings: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("listening for peerings: %w; is another veilor-ygg running, or the port another's? (`ss -ltnp`)", err)
	}
	s := &wss.Server{Log: log, Admit: gate.admit(path)}
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			stop(fmt.Errorf("listening for peerings: %w", err))
		}
	})
	return nil
}
