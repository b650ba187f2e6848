package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/yggdrasil"
)

// A node runs on while nothing changes, starts anew with other peers, and ends
// with what it ends with.
func TestFollow(t *testing.T) {
	cfgs := make(chan *yggdrasil.Config, 1)
	one, two := &yggdrasil.Config{Edges: []yggdrasil.Peer{{Name: "one"}}}, &yggdrasil.Config{Edges: []yggdrasil.Peer{{Name: "two"}}}
	read := func() *yggdrasil.Config { c := <-cfgs; cfgs <- c; return c }
	cfgs <- one
	tick := make(chan time.Time)
	started := make(chan string)
	fail := errors.New("the interface is gone")
	end := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- follow(t.Context(), read, tick, func(ctx context.Context, c *yggdrasil.Config) error {
			started <- c.Edges[0].Name
			select {
			case <-ctx.Done():
				return nil
			case <-end:
				return fail
			}
		})
	}()
	if got := <-started; got != "one" {
		t.Fatalf("started with %s", got)
	}
	tick <- time.Time{}
	same := *one
	<-cfgs
	cfgs <- &same
	tick <- time.Time{}
	select {
	case got := <-started:
		t.Fatalf("started anew with %s, though nothing changed", got)
	default:
	}
	<-cfgs
	cfgs <- two
	tick <- time.Time{}
	if got := <-started; got != "two" {
		t.Fatalf("started with %s", got)
	}
	close(end)
	if err := <-done; !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
}

// Without a site file, or on an edge, the configuration counts.
func TestDialledByConfiguration(t *testing.T) {
	cfg := &yggdrasil.Config{Edges: []yggdrasil.Peer{{Name: "one"}}}
	if got := dialled(cfg, filepath.Join(t.TempDir(), "none.yaml"), t.TempDir(), slog.New(slog.DiscardHandler)); got != cfg {
		t.Errorf("%+v", got)
	}
}
