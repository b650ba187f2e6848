// Package wss carries a Yggdrasil peering over WebSocket over TLS over TCP.
//
// The Yggdrasil library can do that itself, but it asks DNS, cannot set address
// and SNI apart, does not verify certificates, and learns after 3 s and more
// that a path is dead. So the library speaks to a Unix socket and this package
// carries the bytes: a [Dialer] opens the transport, a [Server] receives it
// (behind somebody else's TLS), and [Conn.Bridge] joins it to the library.
//
// On the wire it is what yggdrasil-go v0.5.14 src/core/link_ws.go speaks:
// subprotocol "ygg-ws", binary messages whose boundaries mean nothing.
package wss

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// Subprotocol is what both sides must offer (yggdrasil-go, link_ws.go).
const Subprotocol = "ygg-ws"

const (
	// dialTimeout is for TCP, TLS and the upgrade together. The library gives
	// 5 s to each of its own dials (core/link_unix.go).
	dialTimeout = 5 * time.Second
	// notSent is how much unsent data the kernel may hold for us
	// (TCP_NOTSENT_LOWAT). More would only queue where Yggdrasil, which drops
	// the oldest of the fullest flow, cannot see it.
	notSent = 128 << 10
	// maxReason is how much of a refusing server's answer an error may quote.
	maxReason = 120
)

var (
	// ErrSilent ends a bridge whose other side no longer answers.
	ErrSilent = errors.New("no answer from the other side")
	// ErrLocal ends a bridge that the node itself closed: the peer's key was
	// not the pinned one, or the peering was removed.
	ErrLocal = errors.New("closed by this node")
	// ErrRemote ends a bridge that the other side closed.
	ErrRemote = errors.New("closed by the other side")
)

// Target is where a Dialer goes.
type Target struct {
	// URL is a wss URL. Its host is the SNI (unless it is an IP address) and the
	// Host header; it is never resolved.
	URL *url.URL
	// Address is where the TCP connection goes.
	Address netip.AddrPort
	// Verify demands a certificate for the URL's host that the system trusts.
	// Public peers have self-made ones; who they are is proven by their
	// Yggdrasil key in the handshake that follows, so for them it is off.
	Verify bool
	// Header is sent with the request besides what an upgrade needs.
	Header http.Header
}

// Dialer opens transports. The zero value is ready.
type Dialer struct {
	// Roots replace the system's roots.
	Roots *x509.CertPool
}

// Dial opens a transport, or says why not. ctx bounds the dial only.
func (d *Dialer) Dial(ctx context.Context, t Target) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c := &Conn{acks: true}
	connect := func(ctx context.Context, _, _ string) (net.Conn, error) {
		nd := net.Dialer{KeepAlive: -1} // the watch does it better, see watch.go
		raw, err := nd.DialContext(ctx, "tcp", t.Address.String())
		if err != nil {
			return nil, err
		}
		c.wire = newMeter(raw)
		tc, err := handshake(ctx, c.wire, t.URL.Hostname(), d.Roots, t.Verify)
		if err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS with %s: %w", t.URL.Hostname(), err)
		}
		return tc, nil
	}
	ws, resp, err := websocket.Dial(ctx, t.URL.String(), &websocket.DialOptions{
		Subprotocols: []string{Subprotocol},
		HTTPHeader:   t.Header,
		HTTPClient: &http.Client{
			Transport: &http.Transport{
				Proxy:             nil, // an environment variable must not reroute a peering
				DialTLSContext:    connect,
				DisableKeepAlives: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		if c.wire != nil {
			c.wire.Close()
		}
		return nil, dialError(t, resp, err)
	}
	c.ws = ws
	if ws.Subprotocol() != Subprotocol {
		c.Close()
		return nil, fmt.Errorf("opening %s at %s: the server does not speak %s: not a Yggdrasil peer", t.URL.Redacted(), t.Address, Subprotocol)
	}
	if err := c.tune(); err != nil {
		c.Close()
		return nil, fmt.Errorf("setting up the connection to %s: %w", t.Address, err)
	}
	return c, nil
}

// RefusedError is the error of a dial that a server answered, but not with an
// upgrade.
type RefusedError struct {
	Status int
	Header http.Header
	text   string
}

func (e *RefusedError) Error() string { return e.text }

// dialError words a failed dial: the path of our own layers out, the cause in.
func dialError(t Target, resp *http.Response, err error) error {
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		why := resp.Status
		if b, _ := io.ReadAll(io.LimitReader(resp.Body, maxReason)); len(b) > 0 {
			why += " (" + strings.TrimSpace(strings.ToValidUTF8(string(b), "?")) + ")"
		}
		return &RefusedError{Status: resp.StatusCode, Header: resp.Header,
			text: fmt.Sprintf("opening %s at %s: the server answered %q instead of a WebSocket", t.URL.Redacted(), t.Address, why)}
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("opening %s at %s: %w", t.URL.Redacted(), t.Address, err)
}

// Conn is an open transport that carries nothing yet.
type Conn struct {
	ws   *websocket.Conn
	wire *meter // the TCP connection under it
	acks bool   // wire ends at the peer's own front end, so its TCP state counts
	sent atomic.Uint64
	dead time.Duration
	once sync.Once
}

// tune sets the TCP options that the watch relies on.
func (c *Conn) tune() error {
	info, err := c.wire.tcpInfo()
	if err != nil {
		return err
	}
	c.dead = deadAfter(time.Duration(info.Rtt) * time.Microsecond)
	return c.wire.control(func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(c.dead.Milliseconds())); err != nil {
			return fmt.Errorf("setting TCP_USER_TIMEOUT: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent); err != nil {
			return fmt.Errorf("setting TCP_NOTSENT_LOWAT: %w", err)
		}
		return nil
	})
}

// Close ends the transport at once, without a farewell: over a path that is
// dead one would only wait.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.wire.Close() // first, or TLS would try to write its own farewell
		if c.ws != nil {
			c.ws.CloseNow()
		}
	})
	return nil
}

// Bridge carries bytes between the transport and local until one side ends or
// ctx does, and closes both. suspect is told (from one goroutine) when an answer
// is overdue and when it came after all; it may be nil. The error is never nil:
// one of ErrLocal, ErrRemote, ErrSilent, a network error or the cause of ctx.
func (c *Conn) Bridge(ctx context.Context, local net.Conn, suspect func(bool)) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if suspect == nil {
		suspect = func(bool) {}
	}
	// Not ctx: its end would make websocket close with a handshake.
	remote := websocket.NetConn(context.WithoutCancel(ctx), c.ws, websocket.MessageBinary)
	var wg sync.WaitGroup
	wg.Go(func() { end(carry(counter{remote, &c.sent}, local, ErrLocal)) })
	wg.Go(func() { end(carry(local, remote, ErrRemote)) })
	wg.Go(func() {
		if err := c.watch(ctx, suspect); err != nil {
			end(err)
		}
	})
	<-ctx.Done()
	local.Close()
	c.Close()
	wg.Wait()
	return context.Cause(ctx)
}

// counter counts what is about to be written.
type counter struct {
	io.Writer
	n *atomic.Uint64
}

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(uint64(len(p)))
	return c.Writer.Write(p)
}

// carry copies src to dst until src ends, which is then ended, or an error.
func carry(dst io.Writer, src io.Reader, ended error) error {
	_, err := io.Copy(dst, src)
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return ended
	case errors.Is(err, unix.ETIMEDOUT): // TCP_USER_TIMEOUT
		return ErrSilent
	case websocket.CloseStatus(err) != -1:
		return fmt.Errorf("%w: %w", ErrRemote, err)
	}
	return err
}
