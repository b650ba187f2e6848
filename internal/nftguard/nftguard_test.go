package nftguard

import (
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestPace: the first is put back at once, and a program that fights gets slower
// and slower answers, until it leaves the table alone for a while.
func TestPace(t *testing.T) {
	start := time.Unix(1e9, 0)
	var p pace
	now, n := start, 0
	for now.Sub(start) < time.Hour {
		if at := p.next(now); at.After(now) {
			now = at
			continue
		}
		p.done(now)
		n++
	}
	if most := int(time.Hour/maxGap) + 10; n > most || n < most-20 {
		t.Errorf("put back %d times in an hour of fighting, want about %d", n, most)
	}
	if at := p.next(now); at.Sub(now) > maxGap {
		t.Errorf("in a fight it is away for %v, want at most %v", at.Sub(now), maxGap)
	}
	now = now.Add(calm)
	if at := p.next(now); !at.Equal(now) {
		t.Errorf("after a calm it is put back in %v, want at once", at.Sub(now))
	}
	if p.done(now); p.gap != firstGap {
		t.Errorf("after a calm the gap is %v, want %v", p.gap, firstGap)
	}
}

func TestNewer(t *testing.T) {
	for _, tt := range []struct {
		a, b uint32
		want bool
	}{{2, 1, true}, {1, 2, false}, {1, 1, false}, {0, ^uint32(0), true}} {
		if got := newer(tt.a, tt.b); got != tt.want {
			t.Errorf("newer(%d, %d) = %v", tt.a, tt.b, got)
		}
	}
}

// FuzzTake reads whatever an announcement may be.
func FuzzTake(f *testing.F) {
	name, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte("veilor_ygg\x00")}})
	f.Add(uint16(unix.NFT_MSG_DELTABLE), append([]byte{unix.NFPROTO_INET, 0, 0, 0}, name...))
	gen, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_GEN_ID, Data: []byte{0, 0, 0, 7}}, {Type: unix.NFTA_GEN_PROC_NAME, Data: []byte("nft\x00")}})
	f.Add(uint16(unix.NFT_MSG_NEWGEN), append([]byte{0, 0, 0, 0}, gen...))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		var c change
		end := c.take(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind&0xff)}, Data: data})
		if end && (len(c.tables) > 0 || len(data) < 4) {
			t.Errorf("an end that says tables: %+v", c)
		}
		if len(data) > 4 {
			a := parse(data[4:])
			expressions(a[unix.NFTA_RULE_EXPRESSIONS])
			elements(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS])
		}
	})
}
