package yggdrasil

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/peering"
)

// TestWatchPeer: watchers are told of changes, not of the beginning, and the end of
// the node ends the watch.
func TestWatchPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	if err := Watch(t.Context(), path, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no node: %v, want ErrNotRunning", err)
	}
	c, _ := testNode(t)
	ctx, stop := context.WithCancel(t.Context())
	s, err := listenAdmin(ctx, path, c)
	if err != nil {
		t.Fatal(err)
	}
	go s.serve()
	defer s.list.Close()
	s.board.set(PeerState{Peer: "edge-1"})

	told, done := make(chan PeerState), make(chan error, maxWatch)
	watch := func(ctx context.Context) {
		done <- Watch(ctx, path, func(p PeerState) { told <- p })
	}
	go watch(t.Context())
	// What is set before the first answer is the beginning too.
	for begun, n := false, 0; !begun; n++ {
		s.board.set(PeerState{Peer: "edge-1", Late: n%2 == 0})
		select {
		case <-told:
			begun = true
		default:
		}
	}
	s.board.set(PeerState{Peer: "edge-2"})
	for p := range told {
		if p.Peer == "edge-2" {
			break
		}
	}

	// Others may watch too, but not many, and whoever leaves makes room.
	others, leave := context.WithCancel(t.Context())
	for range maxWatch - 1 {
		go watch(others)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(s.watching) < maxWatch {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatalf("a watch that is not one too many: %v", err)
		}
	}
	full := Watch(t.Context(), path, nil)
	if full == nil || !strings.Contains(full.Error(), "too many") {
		t.Errorf("one too many: %v", full)
	}
	leave()
	for range maxWatch - 1 {
		if err := <-done; err == nil {
			t.Error("a watch ended without an error")
		}
	}
	stop()
	if err := <-done; err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("the node ended: %v", err)
	}
}

// TestPublish: what the supervisor knows is what watchers are told.
func TestPublish(t *testing.T) {
	s := &supervisor{board: newBoard(), peers: []Peer{{Name: "edge-1"}}}
	is := func(what string, want PeerState) {
		t.Helper()
		if got, _ := s.board.get(); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	s.publish(peering.Suspect{ID: 1})
	is("no peering", PeerState{})
	s.link = &link{id: 1}
	s.publish(peering.Suspect{ID: 1})
	is("late", PeerState{Peer: "edge-1", Late: true})
	s.publish(peering.Clear{ID: 7})
	is("another is not", PeerState{Peer: "edge-1", Late: true})
	s.publish(peering.Clear{ID: 1})
	is("not any more", PeerState{Peer: "edge-1"})
	s.link = nil
	s.publish(peering.Down{ID: 1})
	is("gone", PeerState{})
}
