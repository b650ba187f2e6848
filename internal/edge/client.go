// Package edge is how an edge is told whom it admits: the types of its control
// socket, and a client.
//
//	GET    /v1/nodes        who is admitted, who is revoked, who is connected
//	PUT    /v1/nodes/KEY    admit; again is the same; 409 for a revoked key
//	DELETE /v1/nodes/KEY    revoke, and close what is open; again is the same
//
// The socket is a file, for root and its group; an edge elsewhere is reached by
// forwarding it (ssh -L PATH:PATH HOST), and so by whoever may log in there.
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
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
)

const (
	// callLimit is for one call. An edge answers in milliseconds; writing its
	// list to a slow disk and closing thousands of flows takes a second.
	callLimit = 10 * time.Second
	// maxReply bounds what is read of an answer: 10^5 nodes have about 15 MB.
	maxReply = 64 << 20
	// maxMessage bounds what of an error is shown.
	maxMessage = 1000
)

// Node is somebody that an edge admits.
type Node struct {
	Key  site.Key `json:"key"`
	Name string   `json:"name"`
	Tier string   `json:"tier"`
}

// Link is a peering that stands.
type Link struct {
	Key   site.Key  `json:"key"`
	Since time.Time `json:"since"`
}

// List is what an edge knows.
type List struct {
	Nodes   []Node     `json:"nodes"`
	Revoked []site.Key `json:"revoked"`
	Links   []Link     `json:"links"`
}

// Admits says whether the key may peer and send.
func (l List) Admits(key site.Key) bool {
	return slices.ContainsFunc(l.Nodes, func(n Node) bool { return n.Key == key })
}

// Connected says whether a peering with the key stands.
func (l List) Connected(key site.Key) bool {
	return slices.ContainsFunc(l.Links, func(k Link) bool { return k.Key == key })
}

// Closed is what a revocation ended.
type Closed struct {
	Key   site.Key `json:"key"`
	Links int      `json:"links_closed"`
	Flows int      `json:"flows_closed"`
}

// ErrRevoked means that the key was revoked and is not admitted again.
var ErrRevoked = errors.New("this key was revoked; the laptop must make a new one")

// Refused is an answer that is not 2xx.
type Refused struct {
	Status  int
	Message string
}

func (r *Refused) Error() string { return fmt.Sprintf("the edge answered %d: %s", r.Status, r.Message) }

// Is makes 409 an ErrRevoked.
func (r *Refused) Is(target error) bool {
	return target == ErrRevoked && r.Status == http.StatusConflict
}

// Client speaks to one edge.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the socket at address: "unix:///PATH".
func NewClient(address string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is no control socket; write unix:///run/veilor-ygg/control.sock", address)
	}
	c := &Client{socket: u.Path}
	c.http = &http.Client{Timeout: callLimit, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		},
		// One call an hour: nothing is gained by keeping the connection.
		DisableKeepAlives: true,
	}}
	return c, nil
}

// String is the address.
func (c *Client) String() string { return "unix://" + c.socket }

// Nodes lists what the edge knows.
func (c *Client) Nodes(ctx context.Context) (List, error) {
	var l List
	if err := c.call(ctx, http.MethodGet, "", nil, &l); err != nil {
		return List{}, fmt.Errorf("asking the edge whom it admits: %w", err)
	}
	return l, nil
}

// Admit lets a node peer and send. It may be called again.
func (c *Client) Admit(ctx context.Context, n Node) (Node, error) {
	var reply Node
	if n.Key.Bytes() == nil {
		return reply, fmt.Errorf("admitting %s at the edge: %q is not 64 hex digits", n.Name, n.Key)
	}
	body := struct {
		Name string `json:"name"`
		Tier string `json:"tier"`
	}{n.Name, n.Tier}
	if err := c.call(ctx, http.MethodPut, "/"+string(n.Key), body, &reply); err != nil {
		return reply, fmt.Errorf("admitting %s at the edge: %w", n.Name, err)
	}
	return reply, nil
}

// Revoke forgets a key for good and ends what is open with it. It may be called
// again.
func (c *Client) Revoke(ctx context.Context, key site.Key) (Closed, error) {
	var reply Closed
	if key.Bytes() == nil {
		return reply, fmt.Errorf("revoking a key at the edge: %q is not 64 hex digits", key)
	}
	if err := c.call(ctx, http.MethodDelete, "/"+string(key), nil, &reply); err != nil {
		return reply, fmt.Errorf("revoking a key at the edge: %w", err)
	}
	return reply, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://edge/v1/nodes"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		var outer *url.Error // its URL is one of our own making
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return fmt.Errorf("%s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if len(text) > maxReply {
		return fmt.Errorf("reading the answer: it has more than %d bytes", maxReply)
	}
	if resp.StatusCode/100 != 2 {
		return &Refused{Status: resp.StatusCode, Message: message(text)}
	}
	if err := json.Unmarshal(text, reply); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// message finds the words in the body of an error: {"error": "…"}, or a text.
func message(body []byte) string {
	var e struct {
		Error string `json:"error"`
	}
	text := strings.TrimSpace(string(body))
	if json.Unmarshal(body, &e) == nil && e.Error != "" {
		text = e.Error
	}
	if text == "" {
		return "nothing more"
	}
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + " …"
	}
	return text
}
