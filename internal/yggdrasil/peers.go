package yggdrasil

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/admission"
	"github.com/veilor/veilor-os/internal/peering"
	"github.com/veilor/veilor-os/internal/wss"
)

const (
	// acceptTimeout is for the library to dial the socket that we have just
	// told it of.
	acceptTimeout = 5 * time.Second
	// goneTimeout is how long the library may take to forget a peering whose
	// connection is closed. It takes about a millisecond.
	goneTimeout = 2 * time.Second
	gonePoll    = time.Millisecond
)

// unlearn is how long the node must have been without a peer before it peers with
// it anew. The library looks once a second whether it still has its parent in the
// tree (ironwood, network/router.go _doMaintenance). If that was gone and back
// between two looks, the node keeps the place in the tree that the old peering
// gave it, for up to 4 min (routerRefresh), while the parent, which counts its
// places from one after a restart, gives that same place to another node: what is
// meant for one then goes to the other.
const unlearn = 1500 * time.Millisecond

// errLeft ends a peering that the machine left.
var errLeft = errors.New("another peer is better")

// opener opens transports: *wss.Dialer, or a test's.
type opener interface {
	Dial(context.Context, wss.Target) (*wss.Conn, error)
}

// supervisor carries out what package peering decides. All its fields belong to
// the goroutine in run.
type supervisor struct {
	core  *core.Core
	key   ed25519.PrivateKey // for the tokens that edges want
	peers []Peer             // edges, then public ones
	edges int
	dial  opener
	dir   string // for the sockets between the library and us, 0700
	log   *slog.Logger
	now   func() time.Time
	skews []atomic.Int64 // by edge: how far its clock is ahead of ours
	// moved says that the machine may stand in another network, and whether it
	// was asleep.
	moved chan bool
	board *board // for those who watch
	// joined is called when a peering with the node of that key begins; it works
	// until its context ends. lost says that the one before, if there was one, was
	// not left in peace.
	joined func(ctx context.Context, key ed25519.PublicKey, lost bool)

	machine *peering.Machine
	results chan result
	dials   map[peering.ID]context.CancelFunc
	open    map[peering.ID]*transport
	link    *link
	late    bool              // the peer of link owes an answer
	peace   bool              // the last peering was left although it worked
	closed  map[int]time.Time // by peer: when the last peering ended, see parted
	failure map[int]string    // the last error of each peer that did not answer
}

// transport is an open one that is not joined.
type transport struct {
	conn *wss.Conn
	peer int
}

// link is the peering.
type link struct {
	id   peering.ID
	peer int
	conn *wss.Conn
	uri  *url.URL
	end  context.CancelCauseFunc
	done chan struct{}

	mu   sync.Mutex
	left bool // the library must not be told of it any more
}

// result is what other goroutines tell the supervisor.
type result struct {
	event peering.Event
	conn  *wss.Conn // with Opened
	peer  int
	err   error // with Failed and Down
}

// run works until ctx ends and leaves no peering behind.
func (s *supervisor) run(ctx context.Context) {
	var networks []string
	for _, p := range s.peers {
		networks = append(networks, p.Network)
	}
	s.machine = peering.New(s.edges, len(s.peers)-s.edges, rand.Float64).In(networks...)
	s.results = make(chan result)
	s.dials = map[peering.ID]context.CancelFunc{}
	s.open = map[peering.ID]*transport{}
	s.failure = map[int]string{}
	s.closed = map[int]time.Time{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var r result
		select {
		case <-ctx.Done():
			for _, t := range s.open {
				t.conn.Close()
			}
			s.leave(context.Cause(ctx))
			return
		case <-timer.C:
			r.event = peering.Tick{}
		case r = <-s.results:
			s.note(r)
		case slept := <-s.moved:
			r.event = peering.Changed{Slept: slept}
			if s.link != nil {
				go s.link.conn.Ping(ctx) // if nobody answers, the transport's watch says so
			}
		}
		for _, a := range s.machine.Step(s.now(), r.event) {
			s.do(ctx, a)
		}
		if r.conn != nil && s.open[r.event.(peering.Opened).ID] == nil && (s.link == nil || s.link.id != r.event.(peering.Opened).ID) {
			r.conn.Close() // came too late, the machine had given it up
		}
		s.publish(r.event)
		if next := s.machine.Next(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, next.Sub(s.now())))
		}
	}
}

// publish tells watchers how it is after an event.
func (s *supervisor) publish(e peering.Event) {
	switch e := e.(type) {
	case peering.Suspect:
		s.late = s.late || s.link != nil && s.link.id == e.ID
	case peering.Clear:
		s.late = s.late && s.link != nil && s.link.id != e.ID
	}
	if s.board == nil {
		return // nobody can
	}
	var state PeerState
	if s.link != nil {
		state = PeerState{Peer: s.peers[s.link.peer].Name, Late: s.late}
	}
	s.board.set(state)
}

// note keeps what a result brings and says it to the log.
func (s *supervisor) note(r result) {
	name := s.peers[r.peer].Name
	switch e := r.event.(type) {
	case peering.Opened:
		if s.dials[e.ID] != nil {
			s.open[e.ID] = &transport{conn: r.conn, peer: r.peer}
			delete(s.failure, r.peer)
		}
		delete(s.dials, e.ID)
	case peering.Failed:
		if s.dials[e.ID] != nil {
			level := slog.LevelInfo
			if s.failure[r.peer] == r.err.Error() {
				level = slog.LevelDebug // a day offline must not fill the journal
			}
			s.failure[r.peer] = r.err.Error()
			s.log.Log(context.Background(), level, "peer does not answer", "peer", name, "err", r.err)
		}
		delete(s.dials, e.ID)
	case peering.Down:
		if s.link != nil && s.link.id == e.ID {
			s.log.Warn("peering ended", "peer", name, "why", r.err)
			s.leave(r.err)
			s.parted(r.peer, e.Silent)
			s.peace = false
		}
	case peering.Suspect:
		s.log.Info("peer is late", "peer", name)
	case peering.Clear:
		s.log.Info("peer answers again", "peer", name)
	}
}

func (s *supervisor) tell(ctx context.Context, r result) {
	select {
	case s.results <- r:
	case <-ctx.Done():
		if r.conn != nil {
			r.conn.Close()
		}
	}
}

func (s *supervisor) do(ctx context.Context, a peering.Action) {
	switch a := a.(type) {
	case peering.Dial:
		dctx, cancel := context.WithCancel(ctx)
		s.dials[a.ID] = cancel
		go func() {
			defer cancel()
			conn, err := s.reach(dctx, a.Peer)
			if err != nil {
				s.tell(ctx, result{event: peering.Failed{ID: a.ID}, peer: a.Peer, err: err})
				return
			}
			s.tell(ctx, result{event: peering.Opened{ID: a.ID}, peer: a.Peer, conn: conn})
		}()
	case peering.Drop:
		if cancel := s.dials[a.ID]; cancel != nil {
			cancel()
			delete(s.dials, a.ID)
		}
		if t := s.open[a.ID]; t != nil {
			t.conn.Close()
			delete(s.open, a.ID)
		}
	case peering.Leave:
		peer := s.link.peer
		s.log.Info("leaving peer", "peer", s.peers[peer].Name)
		s.leave(errLeft)
		s.parted(peer, a.Silent)
		s.peace = !a.Silent
	case peering.Join:
		t := s.open[a.ID]
		delete(s.open, a.ID)
		if err := s.join(ctx, a.ID, t); err != nil {
			t.conn.Close()
			s.log.Error("joining peer", "peer", s.peers[t.peer].Name, "err", err)
			go s.tell(ctx, result{event: peering.Down{ID: a.ID}, peer: t.peer, err: err})
		}
	}
}

// parted notes that a peer knows of the end of its peering. Whoever fell silent
// most likely does not: it still holds the place in the tree that it gave us.
func (s *supervisor) parted(peer int, silent bool) {
	if !silent {
		s.closed[peer] = s.now()
	}
}

// reach opens a transport to a peer. An edge is shown a token of our key, which
// says when it was made: if the edge refuses us and its clock differs from ours,
// it is asked once more, by its clock.
func (s *supervisor) reach(ctx context.Context, peer int) (*wss.Conn, error) {
	p := s.peers[peer]
	if peer >= s.edges {
		return s.dial.Dial(ctx, wss.Target{URL: p.URL, Address: p.Address})
	}
	there := func() time.Time { return s.now().Add(time.Duration(s.skews[peer].Load())) }
	for again := false; ; again = true {
		token, err := admission.Issue(s.key, p.Key, there())
		if err != nil {
			return nil, err
		}
		target := wss.Target{URL: p.URL, Address: p.Address, Verify: true, Header: http.Header{}}
		admission.Attach(target.Header, token)
		conn, err := s.dial.Dial(ctx, target)
		var refused *wss.RefusedError
		if !errors.As(err, &refused) || again {
			return conn, err
		}
		skew, ok := admission.Skew(refused.Header, there())
		if !ok && refused.Status == http.StatusNotFound {
			return nil, fmt.Errorf("%w; does it admit this machine? (its key: `veilor-ygg address`)", err)
		}
		if !ok {
			return nil, err
		}
		s.skews[peer].Add(int64(skew))
		s.log.Warn("the edge's clock differs from ours", "peer", p.Name, "ahead", time.Duration(s.skews[peer].Load()).Round(time.Second))
	}
}

// join gives the library a socket to dial and bridges it to the transport.
//
// The socket is new for every peering and takes one connection, and CallPeer,
// unlike AddPeer, dials once: the library cannot make a second peering of it.
func (s *supervisor) join(ctx context.Context, id peering.ID, t *transport) error {
	path := filepath.Join(s.dir, strconv.FormatUint(uint64(id), 10)+".sock")
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("opening a socket for the node: %w", err)
	}
	lctx, end := context.WithCancelCause(ctx)
	l := &link{id: id, peer: t.peer, conn: t.conn, uri: linkURL(s.peers[t.peer], path), end: end, done: make(chan struct{})}
	s.link, s.late = l, false
	kind := "edge"
	if t.peer >= s.edges {
		kind = "public"
	}
	s.log.Info("peering", "peer", s.peers[t.peer].Name, "kind", kind)
	wait, lost := s.closed[t.peer].Add(unlearn).Sub(s.now()), !s.peace
	go func() {
		err := s.bridge(lctx, wait, lost, lis, t, l)
		close(l.done)
		s.tell(ctx, result{event: peering.Down{ID: id, Silent: silent(err)}, peer: t.peer, err: err})
	}()
	return nil
}

// silent says whether the end of a bridge is that nobody answered any more.
// The library ends a peering for two reasons: its key is not the pinned one,
// which it sees at once, or 3 s without an answer behind a front end that still
// acknowledges (ironwood, network/config.go peerTimeout).
func silent(err error) bool {
	return errors.Is(err, wss.ErrSilent) || errors.Is(err, wss.ErrLocal)
}

// call tells the library of a peering after the wait, unless it is left before.
func (s *supervisor) call(ctx context.Context, wait time.Duration, l *link) error {
	timer := time.NewTimer(max(0, wait))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left {
		return context.Cause(ctx)
	}
	if err := s.core.CallPeer(l.uri, ""); err != nil {
		return fmt.Errorf("telling the node of the peer: %w", err)
	}
	return nil
}

func (s *supervisor) bridge(ctx context.Context, wait time.Duration, lost bool, lis *net.UnixListener, t *transport, l *link) error {
	defer t.conn.Close()
	if err := s.call(ctx, wait, l); err != nil {
		lis.Close()
		return err
	}
	lis.SetDeadline(time.Now().Add(acceptTimeout))
	local, err := lis.AcceptUnix()
	lis.Close() // removes the file: nobody else can come
	if err != nil {
		return fmt.Errorf("waiting for the node: %w", err)
	}
	defer local.Close()
	if err := ours(local); err != nil {
		return err
	}
	// The wall clock, not s.now: what is measured is the kernel's.
	go keepalive(ctx, t.conn, rand.Float64, time.After)
	jctx, parted := context.WithCancel(ctx)
	var joined sync.WaitGroup
	joined.Go(func() { s.joined(jctx, s.peers[l.peer].Key, lost) })
	defer joined.Wait() // before the next peering begins
	defer parted()
	return t.conn.Bridge(ctx, local, func(late bool) {
		e := peering.Event(peering.Clear{ID: l.id})
		if late {
			e = peering.Suspect{ID: l.id}
		}
		s.tell(ctx, result{event: e, peer: l.peer})
	})
}

// line is what keepalive needs of a transport.
type line interface {
	Idle() (time.Duration, error)
	Ping(context.Context) error
}

// keepalive speaks on an idle line until ctx ends, so that a NAT on the way
// remembers it, and so that a line that died in silence is found before it is
// needed: what nobody acknowledges makes the transport's watch suspicious.
func keepalive(ctx context.Context, l line, rand func() float64, after func(time.Duration) <-chan time.Time) {
	k := peering.NewKeepalive(rand)
	_, wait := k.Step(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-after(wait):
		}
		idle, err := l.Idle()
		if err != nil {
			return // closed
		}
		var speak bool
		if speak, wait = k.Step(idle); speak {
			go l.Ping(ctx) // whether it is answered is the watch's business
		}
	}
}

// ours says whether the other end of a Unix socket is this process. The
// directory is closed to others already; root could still come first.
func ours(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("asking who dialled our socket: %w", cerr)
	}
	if int(cred.Pid) != os.Getpid() {
		return fmt.Errorf("process %d dialled a socket that is meant for the node", cred.Pid)
	}
	return nil
}

// leave ends the peering, if there is one, and returns when the library has
// forgotten it: before that another must not begin.
func (s *supervisor) leave(why error) {
	l := s.link
	if l == nil {
		return
	}
	s.link = nil
	l.mu.Lock()
	l.left = true
	l.mu.Unlock()
	if err := s.core.RemovePeer(l.uri, ""); err != nil && !errors.Is(err, core.ErrLinkNotConfigured) && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("removing the peer", "err", err)
	}
	l.end(why)
	tick := time.NewTicker(gonePoll)
	defer tick.Stop()
	late := time.NewTimer(goneTimeout)
	defer late.Stop()
	for s.known(l) {
		select {
		case <-tick.C:
		case <-late.C:
			s.log.Error("the node still holds a peering that has ended", "peer", s.peers[l.peer].Name)
			return
		}
	}
}

// known says whether the library still has the link.
func (s *supervisor) known(l *link) bool {
	bare := *l.uri
	bare.RawQuery = "" // as the library lists it (core/link.go urlForLinkInfo)
	for _, p := range s.core.GetPeers() {
		if p.URI == bare.String() {
			return true
		}
	}
	return false
}

// linkURL is what the library dials. It uses only the path; the host carries the
// peer's name to its log and to getPeers.
func linkURL(p Peer, path string) *url.URL {
	return &url.URL{Scheme: "unix", Host: p.Name, Path: path, RawQuery: "key=" + hex.EncodeToString(p.Key)}
}
