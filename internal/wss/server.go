package wss

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxInbound bounds the transports that a server holds at once: each costs
	// two goroutines and some 100 KiB of buffers.
	maxInbound = 4096
	// headerTimeout bounds how long a client may take over its request; the
	// library's own listener has the same 10 s.
	headerTimeout = 10 * time.Second
)

// Server receives transports as WebSocket upgrades. TLS is ended before it, by
// a reverse proxy on the same machine.
type Server struct {
	// Admit says, before a request is upgraded, whether it may be, and how its
	// transport then gets to the node. Who is refused sees what anybody sees
	// where there is no page.
	Admit func(*http.Request) (Node, error)
	Log   *slog.Logger

	mu   sync.Mutex
	open int
}

// Node opens a connection to the node. If that is an [Asker], it is given a way to
// ask.
type Node func(context.Context) (net.Conn, error)

// Asker is a node's connection that wants to be able to ask whether the other side
// of its transport is still there.
type Asker interface {
	// Ask is called once, before the connection is used. ping returns when the
	// other side has answered, or with an error when its context ends before that.
	Ask(ping func(context.Context) error)
}

type wireKey struct{}

// Serve accepts on l until ctx ends. It returns nil then.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       headerTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, wireKey{}, c)
		},
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	err := h.Serve(meterListener{l})
	if errors.Is(err, http.ErrServerClosed) && ctx.Err() != nil {
		return nil
	}
	return err
}

// meterListener makes accepted connections countable.
type meterListener struct{ net.Listener }

func (l meterListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newMeter(c), nil
}

// ServeHTTP upgrades a request and carries the peering until it ends. /health
// and /healthz answer 200, as the library's own listener does.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/health" || r.URL.Path == "/healthz" {
		w.Write([]byte("OK"))
		return
	}
	open, err := s.Admit(r)
	if err != nil {
		s.Log.Debug("inbound peering refused", "why", err)
		http.NotFound(w, r)
		return
	}
	if !s.enter() {
		http.Error(w, "too many peerings", http.StatusServiceUnavailable)
		return
	}
	defer s.leave()
	wire, ok := r.Context().Value(wireKey{}).(*meter)
	if !ok {
		http.Error(w, "not served by wss.Server", http.StatusInternalServerError)
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{Subprotocol}})
	if err != nil {
		return // Accept has answered
	}
	if ws.Subprotocol() != Subprotocol {
		ws.Close(websocket.StatusPolicyViolation, "client must speak the "+Subprotocol+" subprotocol")
		return
	}
	c := &Conn{ws: ws, wire: wire}
	defer c.Close()
	node, err := open(r.Context())
	if err != nil {
		s.Log.Error("passing an inbound peering to the node", "err", err)
		return
	}
	if a, ok := node.(Asker); ok {
		a.Ask(c.Ping)
	}
	// Who is at the other end is the handshake's business, and where they are
	// nobody's: no address is logged.
	err = c.Bridge(r.Context(), node, nil)
	s.Log.Debug("inbound peering ended", "why", err)
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= maxInbound {
		return false
	}
	s.open++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
}
