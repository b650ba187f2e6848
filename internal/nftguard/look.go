package nftguard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fingerprint is how a table looks: its flags, chains, rules, sets and their
// elements, without what counts.
type fingerprint [sha256.Size]byte

// absent is the fingerprint of no table.
var absent fingerprint

// stateful are the expressions that the packets change; they decide nothing in
// our tables.
var stateful = []string{"counter", "last"}

// change is one transaction that somebody made.
type change struct {
	tables []Table
	// all says that it is not known which tables it touched.
	all bool
	gen uint32
	// by is the name of the program.
	by string
}

func (c change) touches(t Table) bool { return c.all || slices.Contains(c.tables, t) }

// listen reads announcements until the connection is closed.
func listen(ctx context.Context, conn *netlink.Conn, changes chan<- change) error {
	var c change
	tell := func() bool {
		select {
		case changes <- c:
			c = change{}
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		msgs, err := conn.Receive()
		if errors.Is(err, unix.ENOBUFS) { // there were too many
			if c = (change{all: true}); !tell() {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if c.take(m) && !tell() {
				return nil
			}
		}
	}
}

// take adds an announcement to the transaction, and says whether it was its end.
func (c *change) take(m netlink.Message) (end bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		c.all = true
		return false
	}
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_GEN_ID:
				c.gen = ad.Uint32()
			case unix.NFTA_GEN_PROC_NAME:
				c.by = ad.String()
			}
		}
		return true
	}
	for ad.Next() {
		// The first attribute of everything that lies in a table is its name
		// (linux/netfilter/nf_tables.h).
		if ad.Type() == unix.NFTA_TABLE_NAME {
			t := Table{nftables.TableFamily(m.Data[0]), ad.String()}
			if !slices.Contains(c.tables, t) {
				c.tables = append(c.tables, t)
			}
			return false
		}
	}
	return false
}

// generation is the number of the transaction that made the ruleset what it is.
func generation(conn *netlink.Conn) (uint32, error) {
	msgs, err := conn.Execute(message(unix.NFT_MSG_GETGEN, netlink.Request, unix.NFPROTO_UNSPEC))
	if err != nil {
		return 0, fmt.Errorf("reading the generation of the packet filter: %w", err)
	}
	for _, m := range msgs {
		var c change
		if c.take(m) {
			return c.gen, nil
		}
	}
	return 0, errors.New("reading the generation of the packet filter: the kernel did not say")
}

// look reads a table, and the generation in which it looks so.
func look(conn *netlink.Conn, t Table) (f fingerprint, gen uint32, err error) {
	for range looks {
		before, err := generation(conn)
		if err != nil {
			return absent, 0, err
		}
		f, err = read(conn, t)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR) {
			return absent, 0, fmt.Errorf("reading the packet filter %s: %w", t.Name, err)
		}
		after, err2 := generation(conn)
		if err2 != nil {
			return absent, 0, err2
		}
		if err == nil && before == after {
			return f, after, nil
		}
	}
	return absent, 0, fmt.Errorf("reading the packet filter %s: it changes all the time", t.Name)
}

// read is one look, which may be of a table that changes meanwhile.
func read(conn *netlink.Conn, t Table) (fingerprint, error) {
	d := digest{sha256.New()}
	there := false
	err := d.each(conn, t, unix.NFT_MSG_GETTABLE, nil, func(a attributes) {
		if a.text(unix.NFTA_TABLE_NAME) == t.Name {
			there = true
			d.add("table", a[unix.NFTA_TABLE_FLAGS])
		}
	})
	if err != nil || !there {
		return absent, err
	}
	err = d.each(conn, t, unix.NFT_MSG_GETCHAIN, nil, func(a attributes) {
		if a.text(unix.NFTA_CHAIN_TABLE) == t.Name {
			d.add("chain", a[unix.NFTA_CHAIN_NAME], a[unix.NFTA_CHAIN_TYPE], a[unix.NFTA_CHAIN_HOOK], a[unix.NFTA_CHAIN_POLICY])
		}
	})
	if err != nil {
		return absent, err
	}
	in := []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(t.Name), 0)}}
	err = d.each(conn, t, unix.NFT_MSG_GETRULE, in, func(a attributes) {
		if a.text(unix.NFTA_RULE_TABLE) == t.Name {
			d.add("rule", append([][]byte{a[unix.NFTA_RULE_CHAIN]}, expressions(a[unix.NFTA_RULE_EXPRESSIONS])...)...)
		}
	})
	if err != nil {
		return absent, err
	}
	var sets []string
	err = d.each(conn, t, unix.NFT_MSG_GETSET, in, func(a attributes) {
		if a.text(unix.NFTA_SET_TABLE) == t.Name {
			sets = append(sets, a.text(unix.NFTA_SET_NAME))
			d.add("set", a[unix.NFTA_SET_NAME], a[unix.NFTA_SET_FLAGS], a[unix.NFTA_SET_KEY_LEN])
		}
	})
	if err != nil {
		return absent, err
	}
	for _, s := range sets {
		var all [][]byte
		of := append(slices.Clone(in), netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s), 0)})
		err := d.each(conn, t, unix.NFT_MSG_GETSETELEM, of, func(a attributes) {
			all = append(all, elements(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS])...)
		})
		if err != nil {
			return absent, err
		}
		slices.SortFunc(all, bytes.Compare) // a set has no order
		d.add("elements of "+s, all...)
	}
	return fingerprint(d.Sum(nil)), nil
}

// digest hashes parts so that no two lists of them are alike.
type digest struct{ hash.Hash }

func (d digest) add(what string, parts ...[]byte) {
	for _, p := range append([][]byte{[]byte(what)}, parts...) {
		d.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		d.Write(p)
	}
	d.Write([]byte{0xff, 0xff, 0xff, 0xff})
}

// each asks for a list of t's family and hands over every entry.
func (digest) each(conn *netlink.Conn, t Table, kind uint16, in []netlink.Attribute, do func(attributes)) error {
	msgs, err := conn.Execute(message(kind, netlink.Request|netlink.Dump, byte(t.Family), in...))
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if len(m.Data) >= 4 && m.Data[0] == byte(t.Family) {
			do(parse(m.Data[4:]))
		}
	}
	return nil
}

// message is a question to nf_tables: struct nfgenmsg and attributes
// (linux/netfilter/nfnetlink.h).
func message(kind uint16, flags netlink.HeaderFlags, family byte, in ...netlink.Attribute) netlink.Message {
	data, _ := netlink.MarshalAttributes(in) // names of ours are short enough
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	}
}

// attributes are the values of one level, by type.
type attributes map[uint16][]byte

func (a attributes) text(typ uint16) string { return string(bytes.TrimRight(a[typ], "\x00")) }

func parse(data []byte) attributes {
	a := attributes{}
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return a
	}
	for ad.Next() {
		a[ad.Type()] = ad.Bytes()
	}
	return a
}

// list takes a nested list of entries apart.
func list(data []byte) (entries [][]byte) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return [][]byte{data}
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_LIST_ELEM {
			entries = append(entries, ad.Bytes())
		}
	}
	return entries
}

// expressions are a rule's, without those that count.
func expressions(data []byte) (out [][]byte) {
	for _, e := range list(data) {
		if !slices.Contains(stateful, parse(e).text(unix.NFTA_EXPR_NAME)) {
			out = append(out, e)
		}
	}
	return out
}

// elements are those of a set, each as bytes that say what it is.
func elements(data []byte) (out [][]byte) {
	for _, e := range list(data) {
		a, d := parse(e), digest{sha256.New()}
		d.add("element", a[unix.NFTA_SET_ELEM_KEY], a[unix.NFTA_SET_ELEM_DATA], a[unix.NFTA_SET_ELEM_FLAGS], a[keyEnd])
		out = append(out, d.Sum(nil))
	}
	return out
}

// keyEnd is NFTA_SET_ELEM_KEY_END (linux/netfilter/nf_tables.h).
const keyEnd = 10
