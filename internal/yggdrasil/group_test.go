package yggdrasil

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

// TestGroup: an edge and two laptops share a password; a third machine, though
// the edge lets it in, gets no answer from it, until it is given the password.
func TestGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED in -short: it takes more than a minute")
	}
	t.Parallel()
	w, _, edgeYgg := newTown(t)
	admit := func(name string) node {
		t.Helper()
		k := w.keys(name)[0]
		if _, err := w.control.Admit(t.Context(), edge.Node{Key: textKey(k.pub), Name: name, Tier: "guest"}); err != nil {
			t.Fatal(err)
		}
		return k
	}
	var members []*flow
	for i, name := range []string{"anna", "boris"} {
		members = append(members, w.guest(w.leg(60+i), name, admit(name)))
	}
	serve := func() {
		t.Helper()
		for i, f := range members {
			n := f.count()
			w.until(patience, fmt.Sprintf("member %d is served", i), func() bool { return f.count() > n+5 })
		}
	}
	serve()

	stranger, ns, file := admit("stranger"), w.leg(62), filepath.Join(w.dir, "brought")
	p, _ := w.ygg(ns, "stranger", wire{
		PrivateKeyPath: stranger.path, Edges: []wirePeer{w.edgePeer}, GroupPasswordPath: file, SitePath: w.site, Tier: "guest",
	}, "SSL_CERT_FILE="+w.cert)
	w.until(patience, "the stranger has a link", func() bool {
		l, err := w.control.Nodes(t.Context())
		return err == nil && l.Connected(textKey(stranger.pub))
	})
	serve() // while the stranger asks: whatever the network needs to find its shape is there
	for range 5 {
		if err := w.dial(ns, 443); err == nil {
			t.Fatal("the edge answers a machine without the password")
		}
	}
	serve()

	text, err := os.ReadFile(w.group)
	w.must(err)
	if _, err := ygggroup.Write(file, text); err != nil {
		t.Fatal(err)
	}
	// Read once a minute; then the node starts anew.
	took := w.until(2*patience, "the machine is served, now that it has the password", func() bool { return w.dial(ns, 443) == nil })
	t.Logf("served %v after the password was brought", took.Round(1e8))
	for i, f := range members {
		if opens, lost := f.state(); opens != 1 || len(lost) != 0 {
			t.Errorf("member %d: %d connections, %v; want its first one undisturbed", i, opens, lost)
		}
	}
	secret := strings.TrimSpace(string(text))
	for name, log := range map[string]string{"stranger": p.log.String(), "edge": edgeYgg.log.String(), "member": members[0].node.log.String()} {
		if strings.Contains(log, secret) {
			t.Errorf("the log of the %s has the password", name)
		}
	}
}
