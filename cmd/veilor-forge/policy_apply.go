package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/revoke"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

func policyApply() *cobra.Command {
	var at fleetFlags
	var host, queue string
	c := &cobra.Command{
		Use:   "apply",
		Short: "Put this server's packet filter of the tailnet in force",
		Long: `apply loads the nftables that "policy render --as packetfilter --layer tailnet"
shows, in one transaction: until the new table is in force the old one is, and if
it fails the old one stays. Running it again changes nothing but what the site or
the list says anew. It asks no server: while Headscale is down, "policy revoke
--here" closes this machine with it at once.

A machine that an order to revoke is pending for is revoked, whatever the list
says; for all others the list is asked, so revoke with --machines.
(veilor-ygg loads the packet filter of Yggdrasil by itself.)

As a unit, /etc/systemd/system/veilor-policy.service:
  [Unit]
  Description=Packet filter of the tailnet
  Before=tailscaled.service
  [Service]
  Type=oneshot
  RemainAfterExit=yes
  ExecStart=/usr/bin/veilor-forge policy apply --site /etc/veilor/site.yaml --machines /var/lib/veilor-forge/machines.json --host nullstone
  ExecReload=/usr/bin/veilor-forge policy apply --site /etc/veilor/site.yaml --machines /var/lib/veilor-forge/machines.json --host nullstone
  [Install]
  WantedBy=multi-user.target`,
		Example: `  veilor-forge policy apply --host nullstone --machines machines.json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := at.policy()
			if err != nil {
				return err
			}
			ms, err := at.listed()
			if err != nil {
				return err
			}
			if queue == "" {
				if queue, err = queueDir(); err != nil {
					return err
				}
			}
			// An order that cannot be read names nobody; all the others count.
			orders, lost := (&revoke.Queue{Dir: queue}).Pending()
			ms = withoutPending(ms, p.Site().Hosts, orders)
			f, err := p.Fleet(ms...)
			if err != nil {
				return err
			}
			self, err := machineNamed(f, host, "this machine's packet filter")
			if err != nil {
				return err
			}
			t, err := packetfilter.Compile(f, self, tier.Tailnet)
			if err != nil {
				return err
			}
			if err := t.Load(); err != nil {
				return err
			}
			revoked := 0
			for _, m := range f.Machines() {
				if m.Revoked {
					revoked++
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "table %s is in force: %d machines, %d of them revoked\n", t.Name, len(f.Machines()), revoked)
			return lost
		},
	}
	at.flags(c)
	c.Flags().StringVar(&host, "host", "", "`name` of this machine in the site")
	c.Flags().StringVar(&queue, "queue", "", "`directory` of the orders to revoke (default: as policy revoke has it)")
	return c
}

// withoutPending marks as revoked whom an order is pending for, and adds the
// hosts of the site that are.
func withoutPending(ms []tier.Machine, hosts []site.Host, orders []revoke.Order) []tier.Machine {
	pending := func(m tier.Machine) bool {
		return slices.ContainsFunc(orders, func(o revoke.Order) bool { return isPending(o, m) })
	}
	for i, m := range ms {
		ms[i].Revoked = m.Revoked || pending(m)
	}
	for _, h := range hosts {
		m := tier.Machine{Name: h.Name, Tier: h.Tier, Yggdrasil: h.Yggdrasil}
		if h.Tailnet.IsValid() {
			m.Tailnet = []netip.Addr{h.Tailnet}
		}
		if !pending(m) {
			continue
		}
		if i := slices.IndexFunc(ms, func(m tier.Machine) bool { return m.Name == h.Name }); i >= 0 {
			ms[i].Revoked = true
		} else {
			ms = append(ms, tier.Machine{Name: h.Name, Tier: h.Tier, Revoked: true})
		}
	}
	return ms
}

// isPending says whether an order is about a machine: it may be known there by
// another name, or by its id only. Its addresses are its own until the tailnet
// has confirmed; then Headscale may give them to the next machine.
func isPending(o revoke.Order, m tier.Machine) bool {
	return revoke.InList(o.Subject, m) ||
		slices.ContainsFunc(o.Open(), func(p revoke.Place) bool { return p.Kind == revoke.Tailnet }) &&
			slices.ContainsFunc(m.Tailnet, func(a netip.Addr) bool { return slices.Contains(o.Subject.Addresses, a) })
}
