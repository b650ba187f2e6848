package headscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// KeyLife is how long a pre-auth key may be redeemed.
const KeyLife = 24 * time.Hour

// maxReply bounds what is read of a reply. A lab's whole node list has a few KiB.
const maxReply = 4 << 20

// Client speaks Headscale's REST API (/api/v1, 0.28 and 0.29).
type Client struct {
	// Base is the server's URL without a path.
	Base string
	HTTP *http.Client
	Now  func() time.Time

	// bearer is the API key. It is in no error and no log.
	bearer string
}

// NewClient returns a client that authenticates with apiKey.
func NewClient(base, apiKey string, h *http.Client) *Client {
	return &Client{Base: strings.TrimSuffix(base, "/"), HTTP: h, Now: time.Now, bearer: apiKey}
}

// Key is a pre-auth key. Headscale shows Secret once, when it is made.
type Key struct {
	ID         string    `json:"id"`
	Secret     string    `json:"key"`
	Reusable   bool      `json:"reusable"`
	Used       bool      `json:"used"`
	Expiration time.Time `json:"expiration"`
	Tags       []string  `json:"aclTags"`
}

// String hides the secret.
func (k Key) String() string { return "pre-auth key " + k.ID }

// Node is a machine that has joined.
type Node struct {
	ID        string       `json:"id"`
	Name      string       `json:"givenName"`
	Addresses []netip.Addr `json:"ipAddresses"`
	Tags      []string     `json:"tags"`
	Online    bool         `json:"online"`
	LastSeen  time.Time    `json:"lastSeen"`
}

// CreateKey mints a single-use key for machines with the given tag.
func (c *Client) CreateKey(ctx context.Context, tag string) (Key, error) {
	now := c.Now()
	var reply struct {
		Key Key `json:"preAuthKey"`
	}
	// Without an expiration Headscale answers 200 with a key that is born
	// expired (0001-01-01), up to and including 0.30.
	err := c.call(ctx, http.MethodPost, "/preauthkey", map[string]any{
		"reusable": false, "ephemeral": false,
		"expiration": now.Add(KeyLife).UTC().Format(time.RFC3339), "aclTags": []string{tag},
	}, &reply)
	if err != nil {
		return Key{}, fmt.Errorf("minting a key: %w", err)
	}
	k := reply.Key
	switch {
	case k.Secret == "" || k.ID == "":
		return Key{}, errors.New("minting a key: the reply has none")
	case !k.Expiration.After(now):
		return Key{}, fmt.Errorf("minting a key: it expired on %s, before it was made", k.Expiration.Format(time.RFC3339))
	case k.Reusable || !slices.Equal(k.Tags, []string{tag}):
		return Key{}, fmt.Errorf("minting a key: asked for a single-use %s key, got reusable=%t %v", tag, k.Reusable, k.Tags)
	}
	return k, nil
}

// Keys lists all pre-auth keys, with masked secrets.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var reply struct {
		Keys []Key `json:"preAuthKeys"`
	}
	if err := c.call(ctx, http.MethodGet, "/preauthkey", nil, &reply); err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	return reply.Keys, nil
}

// ExpireKey makes a key useless, and makes sure that it is: Headscale answers
// 200 to an id that it does not know.
func (c *Client) ExpireKey(ctx context.Context, id string) error {
	if err := c.call(ctx, http.MethodPost, "/preauthkey/expire", map[string]any{"id": id}, nil); err != nil {
		return fmt.Errorf("expiring key %s: %w", id, err)
	}
	keys, err := c.Keys(ctx)
	if err != nil {
		return fmt.Errorf("expiring key %s: %w", id, err)
	}
	for _, k := range keys {
		// The server's clock is this machine's; it stores whole seconds.
		if k.ID == id && k.Expiration.Before(c.Now().Add(time.Second)) {
			return nil
		}
	}
	return fmt.Errorf("expiring key %s: the server said yes, but the key is unknown or still good", id)
}

// Nodes lists all machines.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var reply struct {
		Nodes []Node `json:"nodes"`
	}
	if err := c.call(ctx, http.MethodGet, "/node", nil, &reply); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	return reply.Nodes, nil
}

// DeleteNode removes a machine from the tailnet.
func (c *Client) DeleteNode(ctx context.Context, id string) error {
	if err := c.call(ctx, http.MethodDelete, "/node/"+url.PathEscape(id), nil, nil); err != nil {
		return fmt.Errorf("deleting node %s: %w", id, err)
	}
	return nil
}

// CreateUser adds a user, which policies may name as NAME@.
func (c *Client) CreateUser(ctx context.Context, name string) error {
	if err := c.call(ctx, http.MethodPost, "/user", map[string]any{"name": name}, nil); err != nil {
		return fmt.Errorf("adding user %s: %w", name, err)
	}
	return nil
}

// SetPolicy replaces the policy (HuJSON).
func (c *Client) SetPolicy(ctx context.Context, policy []byte) error {
	if err := c.call(ctx, http.MethodPut, "/policy", map[string]any{"policy": string(policy)}, nil); err != nil {
		return fmt.Errorf("setting the policy: %w", err)
	}
	return nil
}

// Refused is an answer that is not 2xx.
type Refused struct {
	Status  int
	Message string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("the server answered %d: %s", r.Status, r.Message)
}

func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Base+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.bearer)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		r := &Refused{Status: resp.StatusCode, Message: strings.TrimSpace(string(text))}
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &e) == nil && e.Message != "" {
			r.Message = e.Message
		}
		return r
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(text, reply); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}
