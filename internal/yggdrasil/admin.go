package yggdrasil

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"

	"github.com/veilor/veilor-os/internal/listen"
	"github.com/veilor/veilor-os/internal/nftguard"
)

// The admin socket speaks the library's protocol (src/admin/admin.go), but it
// is ours: the library's own lets whoever can open it add a second peer, and
// ends the whole process when the path is taken. Ours only answers questions,
// so every user of the machine may ask.
const (
	// adminTimeout is how long one request may take to arrive and its answer to
	// be taken.
	adminTimeout = 5 * time.Second
	// maxRequest and maxReply bound a message. An edge with a thousand guests
	// answers getPeers with some 400 KiB.
	maxRequest = 4 << 10
	maxReply   = 8 << 20
	// maxAdmin is how many may ask at once. Who asks for something is answered
	// within milliseconds; who says nothing for long makes room for the next.
	maxAdmin = 16
)

// PeerEntry is one peering in the answer to getPeers: the library's, and the
// name that the configuration gives the peer.
type PeerEntry struct {
	Name string `json:"name,omitempty"`
	admin.PeerEntry
}

// selfReply is the answer to getSelf: the library's, and how the packet filters
// fare.
type selfReply struct {
	admin.GetSelfResponse
	Filters nftguard.Tally `json:"packet_filters"`
}

type peersReply struct {
	Peers []PeerEntry `json:"peers"`
}

// adminServer answers questions about a node.
type adminServer struct {
	core    *core.Core
	list    net.Listener
	log     *slog.Logger
	filters func() nftguard.Tally
	asking  asking
	// board is what watchers are told, of which there are at most maxWatch.
	board    *board
	watching chan struct{}
	done     <-chan struct{}
}

// listenAdmin takes the path over from a process that is gone, and refuses if
// one still answers there.
func listenAdmin(ctx context.Context, path string, c *core.Core) (*adminServer, error) {
	l, err := listen.Unix(ctx, path, 0o666, "the admin socket", "veilor-ygg")
	if err != nil {
		return nil, err
	}
	return &adminServer{
		core: c, list: l, log: slog.New(slog.DiscardHandler), filters: func() (t nftguard.Tally) { return t },
		board: newBoard(), watching: make(chan struct{}, maxWatch), done: ctx.Done(),
	}, nil
}

// serve answers until the listener is closed.
func (s *adminServer) serve() {
	var complained time.Time
	for {
		conn, err := s.list.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a full table of files, mostly: that passes
			if now := time.Now(); complained.IsZero() || now.Sub(complained) > listen.ComplainEvery {
				complained = now
				s.log.Warn("who asks on the admin socket has to wait: the connection cannot be accepted now", "err", err)
			}
			if !listen.Pause(s.done) {
				return
			}
			continue
		}
		s.asking.add(conn)
		go func() {
			defer func() { conn.Close(); s.asking.remove(conn) }()
			s.talk(conn)
		}()
	}
}

// asking is who is connected, the longest first. Every user of the machine may
// connect and say nothing, so whoever comes is heard: of too many, the one that is
// there longest is hung up on.
type asking struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (a *asking) add(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.conns) == maxAdmin {
		a.conns[0].Close()
		a.conns = slices.Delete(a.conns, 0, 1)
	}
	a.conns = append(a.conns, conn)
}

func (a *asking) remove(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = slices.DeleteFunc(a.conns, func(c net.Conn) bool { return c == conn })
}

func (s *adminServer) talk(conn net.Conn) {
	enc := json.NewEncoder(conn)
	for {
		conn.SetDeadline(time.Now().Add(adminTimeout))
		var req admin.AdminSocketRequest
		// A decoder for each request, so that the bound is for each too; a
		// client that keeps the connection waits for each answer.
		if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&req); err != nil {
			if !errors.Is(err, io.EOF) {
				enc.Encode(admin.AdminSocketResponse{Status: "error", Error: "failed to find request"})
			}
			return
		}
		resp := admin.AdminSocketResponse{Status: "success", Request: req}
		var answer any
		var err error
		if strings.EqualFold(req.Name, watchRequest) {
			if err = s.stream(conn, req); err == nil {
				return
			}
		} else {
			answer, err = s.answer(req.Name)
		}
		if err == nil {
			resp.Response, err = json.Marshal(answer)
		}
		if err != nil {
			resp.Status, resp.Error = "error", err.Error()
		}
		if enc.Encode(resp) != nil || !req.KeepAlive {
			return
		}
	}
}

func (s *adminServer) answer(name string) (any, error) {
	switch strings.ToLower(name) {
	case "":
		return nil, errors.New("no request specified")
	case "list":
		return admin.ListResponse{List: []admin.ListEntry{
			{Command: "getPeers", Description: "Show directly connected peers"},
			{Command: "getSelf", Description: "Show details about this node"},
			{Command: "list", Description: "List available commands"},
			{Command: watchRequest, Description: "Show the one dialled peer, now and whenever it is another"},
		}}, nil
	case "getself":
		self, subnet := s.core.GetSelf(), s.core.Subnet()
		return selfReply{admin.GetSelfResponse{
			PublicKey: hex.EncodeToString(self.Key), IPAddress: s.core.Address().String(),
			Subnet: subnet.String(), RoutingEntries: self.RoutingEntries,
		}, s.filters()}, nil
	case "getpeers":
		return s.peers(), nil
	}
	return nil, fmt.Errorf("unknown action %q, try \"list\"; this socket changes nothing, edit the configuration instead", name)
}

func (s *adminServer) peers() peersReply {
	r := peersReply{Peers: []PeerEntry{}}
	for _, p := range s.core.GetPeers() {
		e := PeerEntry{PeerEntry: admin.PeerEntry{
			URI: p.URI, Inbound: p.Inbound, Port: p.Port, Priority: uint64(p.Priority), Cost: p.Cost,
			// Up only with a key: before that the handshake is under way.
			Up:      p.Up && len(p.Key) > 0,
			RXBytes: admin.DataUnit(p.RXBytes), TXBytes: admin.DataUnit(p.TXBytes),
			RXRate: admin.DataUnit(p.RXRate), TXRate: admin.DataUnit(p.TXRate),
			Uptime: p.Uptime.Seconds(), Latency: max(p.Latency, 0),
		}}
		if len(p.Key) > 0 {
			e.PublicKey, e.IPAddress = hex.EncodeToString(p.Key), Address(p.Key).String()
		}
		if u, err := url.Parse(p.URI); err == nil && !p.Inbound {
			e.Name = u.Host // see linkURL
		}
		r.Peers = append(r.Peers, e)
	}
	return r
}
