package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/revoke"
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
			ms = withoutPending(ms, orders)
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

// withoutPending marks as revoked whom an order is pending for.
func withoutPending(ms []tier.Machine, orders []revoke.Order) []tier.Machine {
	for i, m := range ms {
		for _, o := range orders {
			if revoke.InList(o.Subject, m) {
				ms[i].Revoked = true
			}
		}
	}
	return ms
}
