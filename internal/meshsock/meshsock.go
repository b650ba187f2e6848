// Package meshsock is veilor-mesh's socket: HTTP with JSON on a unix socket, for
// root and the people who log in.
//
// The kernel says who asks (SO_PEERCRED, unix(7)); a daemon that was broken into
// learns nothing from it. What changes something is for root alone. A person
// becomes root by run0, which asks polkit; so there are no rules of our own.
package meshsock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/listen"
)

// Path is where veilor-mesh listens.
const Path = "/run/veilor/mesh.sock"

const (
	// maxAsking is how many may ask at once. A person and a few programs of the
	// desktop do.
	maxAsking = 16
	// maxOpen is how many may be connected; whoever comes then is hung up on.
	maxOpen = 4 * maxAsking
	// headerLimit ends a client that does not ask.
	headerLimit = 5 * time.Second
	// stopLimit is how long open questions may take when the daemon stops.
	stopLimit = 3 * time.Second
	// maxAnswer bounds what a client reads: 500 events of a timeline have
	// 100 kB.
	maxAnswer = 1 << 20
	// maxQuestion bounds what a server reads.
	maxQuestion = 4 << 10
)

// Listen opens the socket. It takes the path over from a process that is gone.
// Everybody may connect; Serve looks at who it is and can then say why not.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	return listen.Unix(ctx, path, 0o666, "the status socket", "veilor-mesh")
}

// Server answers on the socket.
type Server struct {
	// Handler answers who is let in.
	Handler http.Handler
	// Allow says whether a user may ask.
	Allow func(uid uint32) bool
}

// asker is the context key of who asks.
type asker struct{}

// User is who asks; ok is false if that is not known.
func User(r *http.Request) (uid uint32, ok bool) {
	uid, ok = r.Context().Value(asker{}).(uint32)
	return uid, ok
}

// RootOnly refuses everybody else.
func RootOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if uid, ok := User(r); !ok || uid != 0 {
			http.Error(w, "only root may do that", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// Serve answers until ctx ends.
func (s Server) Serve(ctx context.Context, l net.Listener) error {
	asking := make(chan struct{}, maxAsking)
	srv := &http.Server{
		ReadHeaderTimeout: headerLimit, IdleTimeout: headerLimit, MaxHeaderBytes: 4 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if uid, err := peer(c); err == nil {
				ctx = context.WithValue(ctx, asker{}, uid)
			}
			return ctx
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if uid, ok := User(r); !ok || !s.Allow(uid) {
				http.Error(w, "only root and people who log in may ask", http.StatusForbidden)
				return
			}
			select {
			case asking <- struct{}{}:
				defer func() { <-asking }()
			default:
				http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxQuestion)
			s.Handler.ServeHTTP(w, r)
		}),
	}
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		if srv.Shutdown(limit) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(&bounded{l, make(chan struct{}, maxOpen)}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answering on the status socket: %w", err)
	}
	return nil
}

// peer asks the kernel who is at the other end.
func peer(c net.Conn) (uint32, error) {
	if b, ok := c.(*boundedConn); ok {
		c = b.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("asking who it is: not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	return cred.Uid, nil
}

// bounded accepts so many connections at a time.
type bounded struct {
	net.Listener
	open chan struct{}
}

// Accept hangs up on who comes while it is full: to them that is an answer
// without a word, and they may try again.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.open <- struct{}{}:
			return &boundedConn{Conn: c, open: b.open, held: make(chan struct{}, 1)}, nil
		default:
			c.Close()
		}
	}
}

type boundedConn struct {
	net.Conn
	open, held chan struct{}
}

// Close gives the place back, once.
func (c *boundedConn) Close() error {
	select {
	case c.held <- struct{}{}:
		<-c.open
	default:
	}
	return c.Conn.Close()
}

// Answer writes v as JSON.
func Answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // the asker is gone or reads it
}

// Client asks.
type Client struct{ Path string }

// ErrNotFound says that the daemon knows nothing of what was asked for.
var ErrNotFound = errors.New("not found")

// Get asks for path and reads the answer into out.
func (c Client) Get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Post tells in.
func (c Client) Post(ctx context.Context, path string, in any) error {
	return c.do(ctx, http.MethodPost, path, in, nil)
}

func (c Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.ask(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading its answer: %w", err)
	}
	if err := refusal(resp, data); err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("reading its answer: %w", err)
	}
	return nil
}

// ask sends a question and returns the answer with its body unread.
func (c Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Path)
		},
	}}
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://mesh"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("nobody listens on %s", filepath.Clean(c.Path))
	case errors.Is(err, context.DeadlineExceeded):
		return nil, errors.New("no answer in time")
	}
	return resp, err
}

// refusal is what an answer that is none says; nil if it is one.
func refusal(resp *http.Response, data []byte) error {
	switch why := strings.TrimSpace(string(data)); {
	case resp.StatusCode == http.StatusNotFound:
		return ErrNotFound
	case resp.StatusCode/100 == 2:
		return nil
	case why != "" && len(why) < 200:
		return refused("it says: " + why)
	}
	return refused("it says " + strings.ToLower(resp.Status))
}

// ErrRefused says that the daemon runs and does not answer this: to nobody, to this
// user, or not now.
var ErrRefused = errors.New("refused")

// refused is an ErrRefused in the daemon's words.
type refused string

func (r refused) Error() string   { return string(r) }
func (refused) Is(err error) bool { return err == ErrRefused }
