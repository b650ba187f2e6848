package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

func directoryReserve() *cobra.Command {
	var keys []string
	var out, laptop, address, groupFile string
	var number int64
	var edge directory.ReservedEdge
	c := &cobra.Command{
		Use:   "reserve",
		Short: "Give one laptop an edge that is in no list, or the group's password, and sign it",
		Long: `reserve writes a file that gives one laptop, named by its Yggdrasil key, an edge
that the directory does not name: what is not published is not blocked by a list.
Each maintainer signs the same file; as many must as for the directory. The
laptop takes it with "veilor mesh import", offline.

The first call names laptop and edge; later calls, with the file there, add
signatures only. --number must grow with each new file for a laptop, and each
replaces the one before. A file can be imported for 90 days.

--group-password-file puts the password of the site's Yggdrasil nodes into it, with
an edge or alone. The file then is a secret of the site: hand it over as you would
a key, and delete it afterwards. All nodes must have the same password at the same
time, or they do not answer each other over the fallback; the tailnet does not
mind. So let them change by the clock. Write the day into the file, 0600, the same
for all (GroupPasswordPath on servers):

  from 2026-12-01T00:00:00Z
  THE PASSWORD, as from: openssl rand -base64 32

Put it onto the servers and give it to every laptop before that day. Nothing
changes until then, and at that moment everywhere within a minute. A laptop that
does not have it by then is without the fallback until it imports it. For the next
password add its day and itself below, and hand the file out again.`,
		Example: `  veilor-forge directory reserve --out laptop.pem --for KEY --number 1 --name reserve-1 --url wss://shop.example.org/ --address 192.0.2.7:443 --edge-key KEY --network AS64500 --key ~/veilor-keys/directory-1.key
  veilor-forge directory reserve --out laptop.pem --key ~/veilor-keys/directory-2.key
  veilor-forge directory reserve --out laptop.pem --for KEY --number 2 --group-password-file group --key ~/veilor-keys/directory-1.key`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var list *directory.Envelope
			text, err := os.ReadFile(out)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				if laptop == "" {
					return usageError{fmt.Errorf("%s is not there; name the laptop with --for KEY to begin it", out)}
				}
				var edges []directory.ReservedEdge
				if edge.Name+edge.URL+edge.Key+address != "" || groupFile == "" {
					at, err := netip.ParseAddrPort(address)
					if err != nil {
						return usageError{fmt.Errorf("--address: %w; write for example 192.0.2.7:443", err)}
					}
					edge.NodeAddress.Name, edge.NodeAddress.Address = edge.Name, at
					edges = append(edges, edge)
				}
				var group []byte
				if groupFile != "" {
					g, err := ygggroup.Read(groupFile)
					if err != nil {
						return err
					}
					group = g.Text()
				}
				if list, err = directory.NewReserve(laptop, number, edges, group, time.Now()); err != nil {
					return err
				}
			case err != nil:
				return fmt.Errorf("reading the reserve edges: %w", err)
			case laptop != "" || groupFile != "":
				return usageError{fmt.Errorf("%s is there already; leave --for and --group-password-file out to sign it, or name another file", out)}
			default:
				packet, err := directory.Unpack(text)
				if err != nil {
					return err
				}
				if list = packet.Reserve; list == nil {
					return usageError{fmt.Errorf("%s is a directory, not a list of reserve edges", out)}
				}
			}
			for _, file := range keys {
				k, err := signing.Load(file, passphrase)
				if err != nil {
					return err
				}
				signer, err := k.Signer()
				if err != nil {
					return fmt.Errorf("reading %s: %w", file, err)
				}
				if err := list.Sign(signer); err != nil {
					return err
				}
			}
			packed, err := list.Pack()
			if err != nil {
				return err
			}
			if err := renameio.WriteFile(out, packed, 0o600, renameio.IgnoreUmask()); err != nil {
				return fmt.Errorf("writing the reserve edges: %w", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d signatures\n", out, len(list.Signatures))
			return err
		},
	}
	f := c.Flags()
	f.StringArrayVar(&keys, "key", nil, "private key `file`; may be given several times")
	f.StringVar(&out, "out", "", "`file` to write, or to add a signature to")
	f.StringVar(&laptop, "for", "", "the laptop's Yggdrasil `key`, which its \"veilor status --json\" prints")
	f.Int64Var(&number, "number", 1, "`number` of the file, larger than that of the last for this laptop")
	f.StringVar(&edge.Name, "name", "", "`name` of the edge")
	f.StringVar(&edge.URL, "url", "", "`URL` that the TLS client says")
	f.StringVar(&edge.Key, "edge-key", "", "the edge's Yggdrasil `key`")
	f.StringVar(&address, "address", "", "`IP:PORT` of the edge")
	f.StringVar(&edge.NodeAddress.Network, "network", "", "AS or hoster of the edge, in `words`")
	f.StringVar(&groupFile, "group-password-file", "", "`file`, 0600, with the password that the site's Yggdrasil nodes share")
	require(c, "out", "key")
	return c
}
