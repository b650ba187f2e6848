// Package timeline remembers what happened to the services: a bounded ring of
// events, kept in a file over restarts, so that "why was it slow yesterday
// evening" has an answer.
package timeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/forward"
)

const (
	// Most is how many events are kept, the newest. A day with a flapping
	// network has some tens.
	Most = 500
	// maxFile bounds what is read of the file; 500 events have 100 kB.
	maxFile = 1 << 20
	// saveEvery is the least time between two writes of the file. A machine
	// that is switched off hard loses at most that.
	saveEvery = 10 * time.Second
)

// Ring is the memory. It is safe for concurrent use.
type Ring struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	events []forward.News
	dirty  chan struct{}
}

// Open reads the ring in path. A file that is missing, damaged or too large is
// no reason not to run: the ring is then empty, and what is wrong is logged. An
// empty path keeps the ring in memory alone.
func Open(path string, log *slog.Logger) *Ring {
	r := &Ring{path: path, log: log, dirty: make(chan struct{}, 1)}
	if path == "" {
		return r
	}
	events, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the timeline starts anew", "err", err)
	}
	r.events = events
	return r
}

func read(path string) ([]forward.News, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the timeline: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("reading the timeline: %s has %d bytes, which we did not write", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the timeline: %w", err)
	}
	events, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("reading the timeline: %s: %w", path, err)
	}
	return events, nil
}

// parse reads one JSON event a line and keeps the newest.
func parse(data []byte) ([]forward.News, error) {
	var events []forward.News
	for line := range bytes.Lines(data) {
		var e forward.News
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events[max(0, len(events)-Most):], nil
}

// Add remembers an event. It does not block.
func (r *Ring) Add(e forward.News) {
	e.At = e.At.Truncate(time.Millisecond)
	r.mu.Lock()
	r.events = append(r.events, e)
	if len(r.events) > Most {
		r.events = slices.Clone(r.events[len(r.events)-Most:])
	}
	r.mu.Unlock()
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// Events are all that are remembered, the oldest first.
func (r *Ring) Events() []forward.News {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Keep writes the file whenever something was added, at most every ten seconds,
// until ctx ends, and then once more. That the file cannot be written is logged
// once and ends nothing.
func (r *Ring) Keep(ctx context.Context) {
	if r.path == "" {
		return
	}
	complained := false
	save := func() {
		if err := r.save(); err != nil && !complained {
			r.log.Warn("the timeline is lost at the next restart", "err", err)
			complained = true
		}
	}
	for {
		select {
		case <-ctx.Done():
			save()
			return
		case <-r.dirty:
			save()
		}
		pause := time.NewTimer(saveEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			save()
			return
		}
	}
}

func (r *Ring) save() error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, e := range r.Events() {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("writing the timeline: %w", err)
		}
	}
	if err := renameio.WriteFile(r.path, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the timeline: %w", err)
	}
	return nil
}
