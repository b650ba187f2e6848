package yggdrasil

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/nftguard"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/internal/yggfilter"
)

const (
	// tunGone is how long the kernel may take to remove the TUN after its last
	// descriptor is closed; it takes milliseconds.
	tunGone = 2 * time.Second
	tunPoll = 10 * time.Millisecond
)

// walls are the packet filters in front of the interface: package yggfilter's
// always, and before it the tiers' (package packetfilter) if the configuration
// names a site. Every change replaces a whole table in one transaction, so that
// they always say what the roster says; connection tracking is not part of a
// table, and live flows stay.
type walls struct {
	name   string // of the interface
	accept []uint16
	policy *tier.Policy // nil: no tiers
	self   tier.Machine
	// guard loads them, and puts them back when somebody else changes them.
	guard *nftguard.Guard
}

func newWalls(cfg *Config) (*walls, error) {
	w := &walls{name: cfg.IfName, accept: cfg.Accept}
	if cfg.SitePath == "" {
		return w, nil
	}
	s, err := site.Load(cfg.SitePath)
	if err != nil {
		return nil, err
	}
	if w.policy, err = tier.New(s); err != nil {
		return nil, fmt.Errorf("reading the tiers of %s: %w", cfg.SitePath, err)
	}
	w.self.Tier = cfg.Tier
	if cfg.Host != "" {
		h, ok := s.Host(cfg.Host)
		if !ok {
			return nil, fmt.Errorf("reading the tiers of %s: this machine, %q, is no host there; correct Host in the configuration, or add it to the site", cfg.SitePath, cfg.Host)
		}
		w.self = tier.Machine{Name: h.Name, Tier: h.Tier, Yggdrasil: h.Yggdrasil}
	}
	if !slices.Contains(w.policy.Tiers(), w.self.Tier) {
		return nil, fmt.Errorf("reading the tiers of %s: it has no tier %q; write one of %s as Tier in the configuration", cfg.SitePath, w.self.Tier, strings.Join(w.policy.Tiers(), ", "))
	}
	return w, nil
}

// fleet is everybody who is known, as the tiers see them.
func (w *walls) fleet(nodes []edge.Node, revoked []site.Key) (*tier.Fleet, error) {
	base, err := w.policy.Fleet()
	if err != nil {
		return nil, err
	}
	hosts := map[site.Key]tier.Machine{}
	for _, m := range base.Machines() {
		if m.Yggdrasil != "" {
			key, err := edge.ParseKey(string(m.Yggdrasil))
			if err != nil {
				return nil, err
			}
			hosts[key] = m
		}
	}
	var more []tier.Machine
	for _, n := range nodes {
		host, ok := hosts[n.Key]
		switch {
		case !ok:
			// Two machines may be called the same; a key is nobody else's.
			more = append(more, tier.Machine{Name: string(n.Key), Tier: n.Tier, Yggdrasil: n.Key})
		case n.Tier != "" && n.Tier != host.Tier:
			return nil, fmt.Errorf("this is the key of %s, which the site has in tier %s", host.Name, host.Tier)
		}
	}
	for _, k := range revoked {
		m := tier.Machine{Name: string(k), Yggdrasil: k}
		if host, ok := hosts[k]; ok {
			m = host
		}
		m.Revoked = true
		more = append(more, m)
	}
	return w.policy.Fleet(more...)
}

// compile makes the tables; tiers is nil if there are none.
func (w *walls) compile(nodes []edge.Node, revoked []site.Key) (f yggfilter.Filter, tiers *packetfilter.Table, err error) {
	f = yggfilter.Filter{Interface: w.name, Accept: w.accept}
	if w.policy == nil {
		for _, n := range nodes {
			f.From = append(f.From, addressOf(n.Key))
		}
		for _, k := range revoked {
			f.Revoked = append(f.Revoked, addressOf(k))
		}
		return f, nil, nil
	}
	fleet, err := w.fleet(nodes, revoked)
	if err != nil {
		return f, nil, err
	}
	t, err := packetfilter.Compile(fleet, w.self, tier.Yggdrasil)
	if err != nil {
		return f, nil, err
	}
	// Who is of a tier may open what the tiers' table has let pass; who is in
	// none opens nothing, should that table be gone.
	f.AcceptAll = true
	for _, m := range fleet.Machines() {
		a := m.YggdrasilAddress()
		switch {
		case !a.IsValid(), w.self.Name != "" && m.Name == w.self.Name:
		case m.Revoked:
			f.Revoked = append(f.Revoked, a)
		case m.Tier != "":
			f.From = append(f.From, a)
		}
	}
	return f, &t, nil
}

// raise puts the tables in force.
func (w *walls) raise(nodes []edge.Node, revoked []site.Key) error {
	f, tiers, err := w.compile(nodes, revoked)
	if err != nil {
		return fmt.Errorf("compiling the packet filter: %w", err)
	}
	if tiers != nil {
		t := nftguard.Table{Family: nftables.TableFamilyINet, Name: tiers.Name}
		if err := w.guard.Put(t, func() error { return tiers.Load() }); err != nil {
			return err
		}
	}
	return w.guard.Put(nftguard.Table{Family: nftables.TableFamilyINet, Name: yggfilter.Table}, func() error { return f.Load() })
}

// Kept is a packet filter of another part of veilor that the node keeps as well,
// since it has the right to and runs anyway.
type Kept struct {
	Table nftguard.Table
	// Program loads it; whatever that one changes is right.
	Program string
	// Load puts it back, or finds that it should not be.
	Load func() error
}

// fall takes them away, but only once there is nothing left to filter.
func (w *walls) fall(log *slog.Logger) {
	tick := time.NewTicker(tunPoll)
	defer tick.Stop()
	late := time.NewTimer(tunGone)
	defer late.Stop()
	for {
		if _, err := net.InterfaceByName(w.name); err != nil {
			break
		}
		select {
		case <-tick.C:
		case <-late.C:
			log.Warn("the interface is still there, so its packet filter stays", "interface", w.name)
			return
		}
	}
	err := yggfilter.Unload()
	if w.policy != nil {
		err = errors.Join(err, packetfilter.Unload(packetfilter.TableName(tier.Yggdrasil)))
	}
	if err != nil {
		log.Error("removing the packet filter", "err", err)
	}
}

func addressOf(k site.Key) netip.Addr {
	return tier.Machine{Yggdrasil: k}.YggdrasilAddress()
}
