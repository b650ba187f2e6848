package packetfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// ErrNoTable means that the table is not in force, and so revokes nobody.
var ErrNoTable = errors.New("no such table is in force")

// Revoke moves addresses into the revoked sets of a table in force and out of
// every other, in one transaction, and reads back that they are. Live flows end
// with the next packet, since the revoked are dropped before what is
// established; package flows closes what still waits for one.
func Revoke(table string, addrs []netip.Addr, opts ...nftables.ConnOption) error {
	fail := func(err error) error { return fmt.Errorf("revoking in the packet filter: %w", err) }
	c, err := open(opts)
	if err != nil {
		return fail(err)
	}
	members, err := readSets(c, table)
	if err != nil {
		return fail(err)
	}
	for s, have := range members {
		var in, out []netip.Addr
		for _, a := range addrs {
			switch fits := a.Is6() == (s.KeyType.Bytes == nftables.TypeIP6Addr.Bytes); {
			case !fits:
			case strings.HasPrefix(s.Name, "revoked"):
				in = append(in, a)
			case have[a]:
				out = append(out, a)
			}
		}
		if len(in) > 0 {
			if err := c.SetAddElements(s, elements(in)); err != nil {
				return fail(err)
			}
		}
		if len(out) > 0 {
			if err := c.SetDeleteElements(s, elements(out)); err != nil {
				return fail(err)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fail(fmt.Errorf("%w%s", err, hint(err)))
	}
	// Say yes only to what is.
	members, err = readSets(c, table)
	if err != nil {
		return fail(err)
	}
	revoked := map[netip.Addr]bool{}
	for s, have := range members {
		for a := range have {
			switch {
			case strings.HasPrefix(s.Name, "revoked"):
				revoked[a] = true
			case slices.Contains(addrs, a):
				return fail(fmt.Errorf("%s is still in set %s", a, s.Name))
			}
		}
	}
	for _, a := range addrs {
		if !revoked[a] {
			return fail(fmt.Errorf("%s is in no revoked set of table %s; is it an address of that overlay?", a, table))
		}
	}
	return nil
}

func readSets(c *nftables.Conn, table string) (map[*nftables.Set]map[netip.Addr]bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table })
	if i < 0 {
		return nil, fmt.Errorf("%s: %w; start what loads it", table, ErrNoTable)
	}
	sets, err := c.GetSets(tables[i])
	if err != nil {
		return nil, err
	}
	out := map[*nftables.Set]map[netip.Addr]bool{}
	for _, s := range sets {
		es, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("reading set %s: %w", s.Name, err)
		}
		have := map[netip.Addr]bool{}
		for _, e := range es {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				have[a] = true
			}
		}
		out[s] = have
	}
	return out, nil
}
