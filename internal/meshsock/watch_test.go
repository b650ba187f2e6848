package meshsock

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// watched serves a hub at /watch whose answer is a number.
func watched(t *testing.T, path string) (h *Hub, n *atomic.Int64, stop func()) {
	t.Helper()
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h, n = NewHub(ctx), new(atomic.Int64)
	ended := make(chan error, 1)
	go func() {
		ended <- Server{Handler: h.Handler(func() any { return n.Load() }), Allow: func(uint32) bool { return true }}.Serve(ctx, l)
	}()
	stop = func() {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not stop while somebody watches")
		}
	}
	t.Cleanup(stop)
	return h, n, stop
}

// follow watches and passes the numbers on.
func follow(t *testing.T, c Client) (<-chan int64, <-chan error) {
	t.Helper()
	numbers, ended := make(chan int64, 100), make(chan error, 1)
	go func() {
		ended <- c.Watch(t.Context(), "/watch", func(line []byte) error {
			var i int64
			err := json.Unmarshal(line, &i)
			numbers <- i
			return err
		})
	}()
	return numbers, ended
}

func next(t *testing.T, numbers <-chan int64) int64 {
	t.Helper()
	select {
	case i := <-numbers:
		return i
	case <-time.After(time.Minute):
		t.Fatal("the watcher is told nothing")
		return 0
	}
}

func TestWatch(t *testing.T) {
	c := Client{filepath.Join(t.TempDir(), "sock")}
	h, n, stop := watched(t, c.Path)
	numbers, ended := follow(t, c)
	if i := next(t, numbers); i != 0 {
		t.Fatalf("first %d", i)
	}
	// A thousand changes are few lines, and the last of them is told.
	lines := 0
	for i := range int64(1000) {
		n.Store(i + 1)
		h.Wake()
	}
	for next(t, numbers) != 1000 {
		lines++
	}
	if lines > 10 {
		t.Errorf("%d lines for one burst", lines)
	}
	stop()
	if err := <-ended; !errors.Is(err, ErrEnded) {
		t.Errorf("Watch = %v", err)
	}
}

func TestWatchBounds(t *testing.T) {
	c := Client{filepath.Join(t.TempDir(), "sock")}
	watched(t, c.Path)
	for range maxWatching {
		numbers, _ := follow(t, c)
		next(t, numbers)
	}
	_, ended := follow(t, c)
	if err := <-ended; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "too many watch at once") {
		t.Errorf("Watch = %v", err)
	}
}

// TestAwait: the socket's directory comes late, the socket later, and both may go
// again, as systemd does it.
func TestAwait(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "veilor")
	c := Client{filepath.Join(dir, "sock")}
	await := func() <-chan error {
		done := make(chan error, 1)
		go func() { done <- c.Await(t.Context()) }()
		return done
	}
	for range 2 {
		done := await()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, stop := watched(t, c.Path)
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it waits for a socket that answers")
		}
		stop()
		if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Await(ctx) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Await = %v", err)
	}
}
