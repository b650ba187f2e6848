package yggdrasil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
)

const (
	// watchRequest is the question to which the admin socket answers again and
	// again: at once, and whenever the answer is another. The library has none
	// like it.
	watchRequest = "watchPeer"
	// maxWatch is how many may watch at once. On a laptop veilor-mesh does.
	maxWatch = 4
)

// PeerState is what a watcher is told.
type PeerState struct {
	// Peer is the name of the dialled peer, empty while there is none.
	Peer string `json:"peer"`
	// Late says that it owes an answer for longer than is usual.
	Late bool `json:"late,omitempty"`
}

// board holds the state for those who watch.
type board struct {
	mu      sync.Mutex
	state   PeerState
	changed chan struct{} // closed and replaced with every change
}

func newBoard() *board { return &board{changed: make(chan struct{})} }

func (b *board) set(s PeerState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s != b.state {
		b.state = s
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// get returns the state and a channel that is closed when it is another.
func (b *board) get() (PeerState, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.changed
}

// stream answers a watcher until it goes away or done is closed.
func (s *adminServer) stream(conn net.Conn, req admin.AdminSocketRequest) error {
	select {
	case s.watching <- struct{}{}:
		defer func() { <-s.watching }()
	default:
		return errors.New("too many watch already")
	}
	s.asking.remove(conn) // it is counted here
	conn.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, conn) // it says nothing more, and ends some day
	}()
	enc := json.NewEncoder(conn)
	for {
		state, changed := s.board.get()
		answer, err := json.Marshal(state)
		if err != nil {
			return err
		}
		conn.SetWriteDeadline(time.Now().Add(adminTimeout))
		if enc.Encode(admin.AdminSocketResponse{Status: "success", Request: req, Response: answer}) != nil {
			return nil
		}
		select {
		case <-changed:
		case <-gone:
			return nil
		case <-s.done:
			return nil
		}
	}
}

// Watch calls changed whenever the node on the admin socket at path has another
// peer, or none, or waits for its answer, until ctx ends or the node does. The
// error is ErrNotRunning if nobody answers there.
func Watch(ctx context.Context, path string, changed func(PeerState)) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("watching yggdrasil: %w (%s)", ErrNotRunning, path)
	case err != nil:
		return fmt.Errorf("watching yggdrasil: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(admin.AdminSocketRequest{Name: watchRequest, Arguments: json.RawMessage("{}"), KeepAlive: true}); err != nil {
		return fmt.Errorf("watching yggdrasil: %w", err)
	}
	// What the node says in a year must not count as one answer.
	limited := &io.LimitedReader{R: conn}
	dec := json.NewDecoder(limited)
	for first := true; ; first = false {
		limited.N = maxRequest
		var state PeerState
		if err := readReply(dec, &state); err != nil {
			return fmt.Errorf("watching yggdrasil: %w", err)
		}
		if !first {
			changed(state)
		}
	}
}
