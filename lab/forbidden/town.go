// Package forbidden tries, in the lab's world of real daemons, to reach what a
// tier may not: from a guest's laptop, over each layer, while the ISP does what
// it does. Every packet is looked for where it goes, behind whatever filters
// there are, so that one without an answer is not taken for one that was
// stopped.
//
// The guest is the worst there can be: root on the laptop, who writes packets
// straight into the overlays' interfaces. At the end every door is opened and
// the same packets are sent again. Those that are then not seen would have
// proved nothing.
package forbidden

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
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/edge"
	api "github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

// The machines beside the world's own home, which is nullstone.
const (
	guest, cousin, office, onyx, stranger = "laptop", "cousin", "office", "onyx", "stranger"
)

// overlayMTU is the least that IPv6 allows (RFC 8200 §5), as the image has it.
const overlayMTU = 1280

// nodeLimit: a veilor-ygg has its interface after a second.
const nodeLimit = 30 * time.Second

// machine is one that takes part.
type machine struct {
	tier.Machine
	ns *namespace.Namespace
	// joins says that it is of the tailnet as well, host that the site has it.
	joins, host bool
	// private is the file of its Yggdrasil key.
	private string

	witness *witness
	// senders are open per layer, to write packets into its interface.
	senders map[tier.Layer]*sender
}

func (m *machine) end() matrix.End {
	if m.Tier == "" {
		return matrix.End{Name: m.Name, Class: tier.Stranger}
	}
	return matrix.End{Name: m.Name, Class: m.Tier}
}

// town is the world and the machines that are added to it.
type town struct {
	*world.World
	cfg world.Config
	// floors is the same for the conditions of the mesh's matrix.
	floors floors.Town
	// dir holds keys and the site, beside the world's own directory.
	dir    string
	policy *tier.Policy
	fleet  *tier.Fleet
	// home is first; the rest in the order of build.
	machines []*machine
	// token is the next packet's number.
	token uint16

	mu     sync.Mutex
	closes []func()
}

// newTown starts the world, and the machines in it, with their daemons.
func newTown(ctx context.Context, cfg world.Config) (*town, error) {
	if cfg.FarEdgeKey == "" || cfg.SecondPeerKey == "" || !cfg.IPv6 {
		return nil, errors.New("starting the town: it needs a wide site, or some conditions leave no layer; see outfit.Options")
	}
	cfg.Guest, cfg.AtticKey = true, ""
	t := &town{}
	if err := t.plan(&cfg); err != nil {
		return nil, err
	}
	t.cfg = cfg
	var err error
	if t.World, err = world.Start(ctx, cfg); err != nil {
		return nil, err
	}
	t.floors = floors.Town{World: t.World, Site: cfg.Site}
	// censor.Frozen counts what a connection has carried.
	err = t.ISP.Sysctl("net.netfilter.nf_conntrack_acct", "1")
	if err == nil {
		err = t.build(ctx)
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("building the town: %w", err)
	}
	return t, nil
}

func (t *town) close() {
	for i := len(t.closes) - 1; i >= 0; i-- {
		t.closes[i]()
	}
	t.World.Close()
}

func (t *town) onClose(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closes = append(t.closes, f)
}

// plan makes everybody's key, and the site that has the operator's machines
// among its hosts: what a laptop admits is compiled from it.
func (t *town) plan(cfg *world.Config) error {
	home := cfg.Site.Hosts[0]
	t.machines = []*machine{
		{Machine: tier.Machine{Name: home.Name, Tier: home.Tier, Yggdrasil: home.Yggdrasil}},
		{Machine: tier.Machine{Name: guest, Tier: tier.Guest}, joins: true},
		{Machine: tier.Machine{Name: cousin, Tier: tier.Guest}, joins: true},
		{Machine: tier.Machine{Name: office, Tier: tier.Infra}, joins: true, host: true},
		{Machine: tier.Machine{Name: onyx, Tier: tier.Admin}, joins: true, host: true},
		{Machine: tier.Machine{Name: stranger}},
	}
	t.dir = cfg.Run + "-town"
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return fmt.Errorf("planning the town: %w", err)
	}
	s := withoutAttic(cfg.Site)
	address := home.Tailnet
	for _, m := range t.machines[1:] {
		m.private = filepath.Join(t.dir, "key-"+m.Name)
		key, err := yggdrasil.MakeKey(m.private)
		if err != nil {
			return fmt.Errorf("planning the town: %w", err)
		}
		m.Yggdrasil = site.Key(hex.EncodeToString(key.Public().(ed25519.PublicKey)))
		if m.host {
			// Headscale allots in order, and hosts join first.
			address = address.Next()
			s.Hosts = append(s.Hosts, site.Host{Name: m.Name, Tier: m.Tier, Tailnet: address, Yggdrasil: m.Yggdrasil})
		}
	}
	text, err := s.Inline()
	if err != nil {
		return fmt.Errorf("planning the town: %w", err)
	}
	cfg.Site, cfg.SiteFile = &s, filepath.Join(t.dir, "site.yaml")
	if err := os.WriteFile(cfg.SiteFile, text, 0o644); err != nil {
		return fmt.Errorf("planning the town: %w", err)
	}
	t.policy, err = tier.New(&s)
	return err
}

// withoutAttic is a site with the first of its hosts only: those of the town have
// the place of a second one in the order in which Headscale allots addresses.
func withoutAttic(from *site.Site) site.Site {
	s := *from
	s.Hosts = slices.Clone(s.Hosts[:1])
	gone := map[string]bool{}
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(v site.Service) bool {
		gone[v.Name] = v.Host != s.Hosts[0].Name
		return gone[v.Name]
	})
	s.Tiers = slices.Clone(s.Tiers)
	for i := range s.Tiers {
		reach := &s.Tiers[i].Reach
		*reach = slices.DeleteFunc(slices.Clone(*reach), func(r string) bool {
			target, _, _ := strings.Cut(r, ":")
			return gone[target]
		})
	}
	return s
}

func (t *town) build(ctx context.Context) error {
	t.machines[0].ns, t.machines[1].ns = t.Home, t.Guest
	t.cfg.Progress("machines of every tier")
	for i, m := range t.machines {
		if m.ns == nil {
			if err := t.connect(m, i); err != nil {
				return err
			}
		}
	}
	for _, m := range t.machines[1:] {
		if m.Tier == "" {
			continue
		}
		if err := t.admit(ctx, m); err != nil {
			return err
		}
	}
	for _, m := range t.machines {
		if m.host {
			if err := t.join(ctx, m); err != nil {
				return err
			}
		}
	}
	var g errgroup.Group
	for _, m := range t.machines[1:] {
		g.Go(func() error { return t.startYggdrasil(ctx, m) })
		if m.joins && !m.host {
			g.Go(func() error { return t.join(ctx, m) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := t.load(ctx); err != nil {
		return err
	}
	for _, m := range t.machines {
		var err error
		if m.witness, err = newWitness(m.ns); err != nil {
			return fmt.Errorf("watching %s: %w", m.Name, err)
		}
		t.onClose(m.witness.close)
		m.senders = map[tier.Layer]*sender{}
		for l, name := range interfaces {
			if l == tier.Tailnet && m.Tier == "" {
				continue // it has no key, and so no such interface
			}
			s, err := newSender(m.ns, name)
			if err != nil {
				return fmt.Errorf("opening %s of %s: %w", name, m.Name, err)
			}
			m.senders[l] = s
			t.onClose(s.close)
		}
	}
	return nil
}

// interfaces are those of the overlays.
var interfaces = map[tier.Layer]string{tier.Tailnet: packetfilter.TailnetInterface, tier.Yggdrasil: packetfilter.YggdrasilInterface}

// connect gives a machine a network of its own behind the ISP. The censor acts
// on the guest's leg only.
func (t *town) connect(m *machine, n int) error {
	ns, err := namespace.New(m.Name, namespace.Options{Dir: t.cfg.Names, ResolvConf: "nameserver 10.88.1.1\n"})
	if err != nil {
		return err
	}
	m.ns = ns
	t.onClose(func() { ns.Close() })
	router := netip.AddrFrom4([4]byte{10, 88, byte(10 + n), 1})
	err = namespace.Cable(
		namespace.End{In: t.ISP, Name: "to-" + m.Name, Addresses: []string{router.String() + "/24"}},
		namespace.End{In: ns, Name: "eth0", Addresses: []string{router.Next().String() + "/24"}})
	if err != nil {
		return err
	}
	return ns.Gateway(router.AsSlice())
}

// admit lets a machine peer with every edge, as one of its tier.
func (t *town) admit(ctx context.Context, m *machine) error {
	n := edge.Node{Key: m.Yggdrasil, Name: m.Name, Tier: m.Tier}
	return errors.Join(t.Edge.AdmitNode(ctx, n), t.FarEdge.AdmitNode(ctx, n))
}

// startYggdrasil runs the product's node, as the image has it: one peer, and a
// stranger's with no edge to go to.
func (t *town) startYggdrasil(ctx context.Context, m *machine) error {
	dir := filepath.Join(t.cfg.Run, "ygg-"+m.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	edges := t.cfg.Site.Yggdrasil.Edges
	if m.Tier == "" {
		edges = nil
	}
	socket := filepath.Join(dir, "admin.sock")
	config := map[string]any{
		"IfName": interfaces[tier.Yggdrasil], "IfMTU": overlayMTU, "PrivateKeyPath": m.private, "AdminListen": "unix://" + socket,
		"Listen": []string{}, "AllowedPublicKeys": t.cfg.Site.PeerKeys(),
		"Edges": world.Peers(edges), "PublicPeers": world.Peers(t.cfg.Site.Yggdrasil.Public), "Accept": []int{},
	}
	switch {
	case m.host:
		config["SitePath"], config["Host"] = t.cfg.SiteFile, m.Name
	case m.Tier != "":
		config["SitePath"], config["Tier"] = t.cfg.SiteFile, m.Tier
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "ygg.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(t.cfg.Tools.VeilorYgg, "run", "--config", file)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+t.cfg.WebCA.CertFile())
	d, err := daemon.Start(m.ns, "veilor-ygg of "+m.Name, filepath.Join(t.cfg.Logs, "ygg-"+m.Name+".log"), cmd)
	if err != nil {
		return err
	}
	t.onClose(d.Stop)
	ctx, cancel := context.WithTimeoutCause(ctx, nodeLimit, fmt.Errorf("has no peer after %v", nodeLimit))
	defer cancel()
	return d.Ready(ctx, func(ctx context.Context) error {
		s, err := yggdrasil.Query(ctx, socket)
		if err == nil && !s.Up {
			err = errors.New("no peer answers")
		}
		return err
	})
}

// join joins a machine to the tailnet with a key of its tier.
func (t *town) join(ctx context.Context, m *machine) error {
	key, err := t.Headscale.API.CreateKey(ctx, t.policy.Tag(m.Tier))
	if err != nil {
		return err
	}
	_, err = t.Join(ctx, m.ns, m.Name, key)
	return err
}

// load does what `veilor-forge policy load` does: the policy of the site and of
// the machines that the tailnet has, with all its tests.
func (t *town) load(ctx context.Context) error {
	nodes, err := t.Headscale.API.Nodes(ctx)
	if err != nil {
		return err
	}
	ms, err := api.Machines(t.policy, nodes)
	if err != nil {
		return err
	}
	for i := range ms {
		for _, m := range t.machines {
			if ms[i].Name == m.Name {
				ms[i].Yggdrasil, m.Tailnet = m.Yggdrasil, ms[i].Tailnet
			}
		}
	}
	if t.fleet, err = t.policy.Fleet(ms...); err != nil {
		return err
	}
	d, err := acl.Compile(t.fleet)
	if err != nil {
		return err
	}
	l, err := t.Headscale.API.LoadPolicy(ctx, d)
	if err != nil {
		return err
	}
	if l.Step != api.Whole || len(l.Untested) > 0 {
		return fmt.Errorf("loading the policy: %v, untested: %v", l.Step, l.Untested)
	}
	return nil
}
