package meshsock

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// maxWatching is how many may watch at a time: each person who is logged in
	// has one, and half of the places to ask stay free.
	maxWatching = maxAsking / 2
	// watchPause is the least time between two lines to the same watcher. A
	// layer that goes down tells of itself several times at once.
	watchPause = 200 * time.Millisecond
	// watchWrite is how long a watcher may take to read a line. Who does not
	// read is let go, and asks anew when it lives again.
	watchWrite = 5 * time.Second
)

// Hub wakes those who watch. Any number of changes while a watcher is being
// written to are one to it, so that nothing piles up.
type Hub struct {
	done <-chan struct{}

	mu       sync.Mutex
	watchers map[chan struct{}]bool
}

// NewHub makes a hub whose watchers are let go when ctx ends; an answer that goes
// on for ever would keep the server from stopping.
func NewHub(ctx context.Context) *Hub {
	return &Hub{done: ctx.Done(), watchers: map[chan struct{}]bool{}}
}

// Wake says that something changed. It does not block.
func (h *Hub) Wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		select {
		case w <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// Handler answers with what now returns, as one line of JSON: at once, and again
// after each change, until the watcher goes or the hub ends.
func (h *Hub) Handler(now func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		changed := make(chan struct{}, 1)
		h.mu.Lock()
		full := len(h.watchers) >= maxWatching
		if !full {
			h.watchers[changed] = true
		}
		h.mu.Unlock()
		if full {
			http.Error(w, "too many watch at once", http.StatusServiceUnavailable)
			return
		}
		defer func() {
			h.mu.Lock()
			delete(h.watchers, changed)
			h.mu.Unlock()
		}()
		w.Header().Set("Content-Type", "application/x-ndjson")
		control := http.NewResponseController(w)
		enc := json.NewEncoder(w)
		pause := time.NewTimer(0)
		defer pause.Stop()
		<-pause.C
		for {
			control.SetWriteDeadline(time.Now().Add(watchWrite)) // that it cannot is seen below
			if enc.Encode(now()) != nil || control.Flush() != nil {
				return
			}
			pause.Reset(watchPause)
			for _, next := range []func() bool{
				func() bool { return wait(r.Context(), h.done, pause.C) },
				func() bool { return wait(r.Context(), h.done, changed) },
			} {
				if !next() {
					return
				}
			}
		}
	}
}

// wait is true when c speaks, and false when either of the others ends before.
func wait[T any](ctx context.Context, done <-chan struct{}, c <-chan T) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
	case <-done:
	}
	return false
}

// ErrEnded says that the daemon ended an answer that has no end: it stopped, or
// found that nobody reads.
var ErrEnded = errors.New("it stopped answering")

// Watch asks for path and gives each line of the answer to line, until ctx ends,
// the daemon stops ([ErrEnded]) or line returns an error.
func (c Client) Watch(ctx context.Context, path string, line func([]byte) error) error {
	resp, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		data, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // its status says enough
		return refusal(resp, data)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		if err := line(bytes.Clone(lines.Bytes())); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, errors.Is(err, io.ErrUnexpectedEOF):
		return ErrEnded
	default:
		return fmt.Errorf("reading its answer: %w", err)
	}
}
