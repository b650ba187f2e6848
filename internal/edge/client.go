package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
)

// askTimeout is for one request. The slowest, a revocation, writes a file,
// changes the packet filter and looks through all sockets: milliseconds on a
// quiet machine.
const askTimeout = 10 * time.Second

// ErrRevoked means that the node was revoked, which is for ever: the machine
// needs a new key.
var ErrRevoked = errors.New("this node was revoked")

// Client asks the server that listens at a Unix socket.
type Client struct {
	socket string
	http   http.Client
}

// New returns a client of the server whose control socket is at path.
func New(path string) *Client {
	c := &Client{socket: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true, // the server may be another one next time
	}
	return c
}

// State asks who is admitted, revoked and connected.
func (c *Client) State(ctx context.Context) (State, error) {
	var s State
	if err := c.do(ctx, http.MethodGet, NodesPath, nil, &s); err != nil {
		return State{}, fmt.Errorf("asking the edge: %w", err)
	}
	return s, nil
}

// Admit lets a node in from now on. Admitting one that is in changes its name
// and tier to those given. The error is ErrRevoked for one that was revoked.
func (c *Client) Admit(ctx context.Context, n Node) error {
	if err := n.Check(); err != nil {
		return fmt.Errorf("admitting at the edge: %w", err)
	}
	body, err := json.Marshal(Order{n.Name, n.Tier})
	if err != nil {
		return err
	}
	var got Node
	if err := c.do(ctx, http.MethodPut, NodesPath+"/"+string(n.Key), body, &got); err != nil {
		return fmt.Errorf("admitting at the edge: %w", err)
	}
	if got != n {
		return fmt.Errorf("admitting at the edge: it says %v where %v was asked for; is it of another version?", got, n)
	}
	return nil
}

// Revoke takes a node off for ever, whether it was ever admitted or not. When
// it returns without an error, the node's peering and flows are closed and the
// server will not forget that it was revoked.
func (c *Client) Revoke(ctx context.Context, key site.Key) (Closed, error) {
	k, err := ParseKey(string(key))
	if err != nil {
		return Closed{}, fmt.Errorf("revoking at the edge: %w", err)
	}
	var done Closed
	if err := c.do(ctx, http.MethodDelete, NodesPath+"/"+string(k), nil, &done); err != nil {
		return Closed{}, fmt.Errorf("revoking at the edge: %w", err)
	}
	if done.Key != k {
		return Closed{}, fmt.Errorf("revoking at the edge: it answers about %.8s… where %.8s… was asked for; is it of another version?", done.Key, k)
	}
	return done, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://edge"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var oe *net.OpError
		if errors.As(err, &oe) && oe.Op == "dial" {
			return fmt.Errorf("nobody answers on %s: %w; is veilor-ygg running with a ControlListen, and are you root or of its group? (`systemctl status veilor-ygg`)", c.socket, oe.Err)
		}
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	switch {
	case err != nil:
		return err
	case len(data) > MaxBody:
		return fmt.Errorf("it answers with more than %d bytes", MaxBody)
	case resp.StatusCode != http.StatusOK:
		var r Refusal
		if json.Unmarshal(data, &r) != nil || r.Error == "" {
			r.Error = resp.Status
		}
		if resp.StatusCode == http.StatusConflict {
			return fmt.Errorf("%w: %s", ErrRevoked, strings.TrimPrefix(r.Error, ErrRevoked.Error()+": "))
		}
		return errors.New(r.Error)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("reading its answer: %w", err)
	}
	return nil
}
