package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/site"
)

// startDaemon runs the daemon with all its files in root and its resolver on the
// address, until the test ends, and returns once it listens.
func startDaemon(t *testing.T, root, siteFile, resolver string) (*app, netip.AddrPort) {
	t.Helper()
	a := defaults()
	a.root, a.site, a.meshSocket = root, siteFile, filepath.Join(root, "mesh.sock")
	a.tailscaledSocket, a.yggSocket = filepath.Join(root, "t"), filepath.Join(root, "ygg.sock")
	a.timeline, a.quietFile = filepath.Join(root, "timeline"), filepath.Join(root, "quiet")
	probe, err := net.ListenPacket("udp", resolver)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(probe.LocalAddr().String())
	probe.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.serve(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)), at) }()
	ended := false
	t.Cleanup(func() {
		cancel()
		if ended {
			return
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", a.meshSocket)
		if err == nil {
			c.Close()
			return a, at
		}
		select {
		case <-tick.C:
		case err := <-done:
			ended = true
			t.Fatal(err)
		}
	}
}

// TestFollow: what `veilor mesh import` brings is served at once by the daemon that
// runs; nobody else may tell it to.
func TestFollow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: the daemon obeys nobody else; run `sudo go test ./cmd/veilor`")
	}
	v := testSite(t)
	at := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 83, 0, last}) }
	v.Services[0].Loopback = at(201)
	going := v.Services[0]
	going.Name, going.Loopback = "going.veilor", at(202)
	v.Services = append(v.Services, going)
	v.Tiers[0].Reach = append(v.Tiers[0].Reach, "going.veilor:443")
	now := time.Now()
	s := newSigners(t)
	f, packed := s.publish(t, directory.Files{}, v, now)
	l := newImporter(t, v, packed)

	a, resolver := startDaemon(t, l.root, l.site, "127.83.0.203:0")
	// finds says whether a name has that address, and whether somebody listens.
	finds := func(name string, addr netip.Addr) bool {
		c := dns.Client{Timeout: 5 * time.Second}
		m, _, err := c.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(name+".", dns.TypeA), resolver.String())
		if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != addr.String() {
			return false
		}
		conn, err := net.Dial("tcp", netip.AddrPortFrom(addr, 443).String())
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	if !finds("going.veilor", at(202)) {
		t.Fatal("a service is not served from the start")
	}
	untouched, err := net.Dial("tcp", at(201).String()+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer untouched.Close()

	later := v.Services[0]
	later.Name, later.Loopback = "later.veilor", at(204)
	v.Services = []site.Service{later, v.Services[0]}
	_, newer := s.publish(t, f, v, now)
	var out, errs bytes.Buffer
	cli := defaults()
	cli.euid = a.euid
	code := cli.run([]string{"--root", l.root, "--site", l.site, "--mesh-socket", a.meshSocket, "--ygg-socket", a.yggSocket, "mesh", "import", "-"}, bytes.NewReader(newer), &out, &errs)
	if code != 0 || errs.Len() > 0 || !strings.Contains(out.String(), "In force now") {
		t.Fatalf("exit %d\n%s%s", code, &out, &errs)
	}
	if !finds("later.veilor", at(204)) {
		t.Error("a service of the newer directory is not served")
	}
	if finds("going.veilor", at(202)) {
		t.Error("a service that is gone from the directory is served")
	}
	if _, err := net.Dial("tcp", at(202).String()+":443"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("its address: %v, want a refusal", err)
	}
	untouched.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := untouched.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection to a service that stays: %v, want silence", err)
	}
	// By the command the answer must name the new service as well.
	if _, stdout, stderr := l.veilor(nil, "--mesh-socket", a.meshSocket, "mesh", "explain", "later"); !strings.Contains(stdout, "later.veilor") {
		t.Errorf("explain: %s%s", stdout, stderr)
	}
}
