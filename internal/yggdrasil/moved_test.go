package yggdrasil

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/veilor/veilor-os/internal/edge"
)

// noticed is the goal for an interface that was removed: from then to the end of
// the node, of which systemd makes another.
const noticed = 5 * time.Second

func TestGone(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		index int
		want  bool
	}{
		{"lo", lo.Index, false},
		{"lo", lo.Index + 1, true}, // somebody else's
		{"veilor-none", lo.Index, true},
	} {
		if err := gone(&net.Interface{Name: tt.name, Index: tt.index}); (err != nil) != tt.want {
			t.Errorf("%s with index %d: %v, want it to be gone: %t", tt.name, tt.index, err, tt.want)
		}
	}
}

// TestInterfaceRemoved: a node whose interface somebody removes ends and says why,
// so that systemd starts another, which is served.
func TestInterfaceRemoved(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED in -short: it takes some seconds")
	}
	t.Parallel()
	w, _, _ := newTown(t)
	k := w.keys("laptop")[0]
	if _, err := w.control.Admit(t.Context(), edge.Node{Key: textKey(k.pub), Name: "laptop", Tier: "guest"}); err != nil {
		t.Fatal(err)
	}
	f := w.guest(w.laptop, "laptop", k)
	w.until(patience, "the laptop is served", func() bool { return f.count() > 2 })

	began := time.Now()
	w.in(w.laptop, func() error {
		l, err := netlink.LinkByName("ygg0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	err := f.node.ends(noticed)
	if err == nil || !strings.Contains(f.node.log.String(), "the interface ygg0 is gone") {
		t.Fatalf("without its interface the node ended with %v, and says\n%s", err, f.node.log)
	}
	t.Logf("the node ended %v after its interface", time.Since(began).Round(time.Millisecond))

	again := w.guest(w.laptop, "laptop", k)
	w.until(patience, "the laptop, started anew, is served", func() bool { return again.count() > 2 })
}
