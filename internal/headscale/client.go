// Package headscale speaks Headscale's REST API (/api/v1) as 0.28 and 0.29
// serve it and as 0.30 is going to: gRPC is going away there, and errors change
// their form and codes (RFC 9457 problems, 404 and 409 for what was 500).
//
// Headscale says yes to things that it did not do. What must be true after a
// call is therefore read back before the call returns.
package headscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// KeyLife is how long a pre-auth key may be redeemed.
	KeyLife = 24 * time.Hour
	// maxReply bounds what is read of a reply. A node takes about 2 KB, so this
	// is a tailnet of 3*10^4 machines.
	maxReply = 64 << 20
	// maxMessage bounds what of an error is shown.
	maxMessage = 2000

	// Headscale's own HTTP server drops an answer that it has not written after 30 s
	// (hscontrol/app.go, WriteTimeout). It computes for every pair of nodes, so that
	// with some thousands of them no answer to a new policy ever comes, and the policy
	// is in force nevertheless. An answer that is lost after patience is one of those;
	// storeLimit is how long the policy may take, askAgain the time between two looks.
	patience   = 25 * time.Second
	storeLimit = 20 * time.Minute
	askAgain   = 5 * time.Second
)

// Client is authenticated with an API key.
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
	return &Client{Base: strings.TrimSuffix(base, "/"), HTTP: h, Now: time.Now, bearer: strings.TrimSpace(apiKey)}
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

// Live says whether a machine could still join with the key. One that the server
// has stored without an expiration (it shows none) can.
func (k Key) Live(now time.Time) bool {
	return (k.Reusable || !k.Used) && (k.Expiration.IsZero() || k.Expiration.After(now))
}

// String hides the secret.
func (k Key) String() string { return "pre-auth key " + k.ID }

// Node is a machine that has joined.
type Node struct {
	// ID is never given out twice.
	ID   string `json:"id"`
	Name string `json:"givenName"`
	// MachineKey ("mkey:…") stays when the machine joins again.
	MachineKey string    `json:"machineKey"`
	CreatedAt  time.Time `json:"createdAt"`
	// PreAuthKey is what it joined with, if the server still has it.
	PreAuthKey *Key         `json:"preAuthKey"`
	Addresses  []netip.Addr `json:"ipAddresses"`
	Tags       []string     `json:"tags"`
	Online     bool         `json:"online"`
	LastSeen   time.Time    `json:"lastSeen"`
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
		// The server's clock may be a little ahead; it stores whole seconds.
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

// DeleteNode removes a machine from the tailnet, and makes sure that it is gone.
// A node that is gone already is no error.
func (c *Client) DeleteNode(ctx context.Context, id string) error {
	if err := c.deleteNode(ctx, id); err != nil {
		return err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("deleting node %s: %w", id, err)
	}
	if slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == id }) {
		return fmt.Errorf("deleting node %s: the server said yes, but it is still there", id)
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

// Policy reads the policy (HuJSON) as it was set. ErrNoPolicy means that there
// is none, and that everything is open.
func (c *Client) Policy(ctx context.Context) ([]byte, error) {
	var reply struct {
		Policy string `json:"policy"`
	}
	err := c.call(ctx, http.MethodGet, "/policy", nil, &reply)
	var refused *Refused
	if errors.As(err, &refused) && (refused.Status == http.StatusNotFound || strings.Contains(refused.Message, "policy not found")) {
		return nil, fmt.Errorf("reading the policy: %w", ErrNoPolicy)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	if strings.TrimSpace(reply.Policy) == "" {
		return nil, fmt.Errorf("reading the policy: %w", ErrNoPolicy)
	}
	return []byte(reply.Policy), nil
}

// SetPolicy replaces the policy (HuJSON). If the server takes it and its answer is
// lost, it is asked until it has it.
func (c *Client) SetPolicy(ctx context.Context, policy []byte) error {
	err := c.call(ctx, http.MethodPut, "/policy", map[string]any{"policy": string(policy)}, nil)
	var refused *Refused
	if errors.As(err, &refused) && strings.Contains(refused.Message, "update is disabled") {
		err = fmt.Errorf("%w; set policy.mode: database in its configuration, or give it the text of `veilor-forge policy render` as its file", err)
	}
	if errors.Is(err, errLost) && c.stored(ctx, policy) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("setting the policy: %w", err)
	}
	return nil
}

// stored waits until the server has the policy; false means that it does not get it.
func (c *Client) stored(ctx context.Context, policy []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		have, err := c.Policy(ctx)
		if err == nil && string(have) == string(policy) {
			return true
		}
		if err != nil && !errors.Is(err, ErrNoPolicy) {
			return false // it is not busy but gone
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// CheckPolicy asks the server (from 0.29) whether it would take a policy: its
// grammar, and its tests against the nodes there are. Nothing changes. An older
// server gives ErrUnsupported.
func (c *Client) CheckPolicy(ctx context.Context, policy []byte) error {
	err := c.call(ctx, http.MethodPost, "/policy/check", map[string]any{"policy": string(policy)}, nil)
	var refused *Refused
	if errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusMethodNotAllowed || refused.Status == http.StatusNotImplemented) {
		return fmt.Errorf("checking the policy: %w", ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("checking the policy: %w", err)
	}
	return nil
}

// What a caller may want to know of an error.
var (
	// ErrNoPolicy: the server has no policy, and so everything is open.
	ErrNoPolicy = errors.New("the server has no policy: every machine may open every other")
	// ErrUnsupported: the server is too old for the call.
	ErrUnsupported = errors.New("the server does not know this call; it is older than 0.29")
	// errLost: the server was asked and did not answer in its time.
	errLost = errors.New("the server has the request and gave no answer")
	// ErrUnauthorized: the API key is wrong or expired.
	ErrUnauthorized = errors.New("the API key is wrong or expired; make one with `headscale apikeys create`")
)

// Refused is an answer that is not 2xx.
type Refused struct {
	Status  int
	Message string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("the server answered %d: %s", r.Status, r.Message)
}

// Is makes 401 and 403 an ErrUnauthorized.
func (r *Refused) Is(target error) bool {
	return target == ErrUnauthorized && (r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden)
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
	began, asked := c.Now(), false
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(w httptrace.WroteRequestInfo) { asked = w.Err == nil },
	}))
	resp, err := c.HTTP.Do(req)
	if err != nil {
		if asked && ctx.Err() == nil && c.Now().Sub(began) >= patience {
			err = fmt.Errorf("%w (%w)", errLost, err)
		}
		return err
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
		r := &Refused{Status: resp.StatusCode, Message: message(text)}
		if errors.Is(r, ErrUnauthorized) {
			return fmt.Errorf("%w (%w)", ErrUnauthorized, r)
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

// message finds the words in the body of an error. Three forms are known:
//
//	Unauthorized                                          plain, for 401
//	{"code": 13, "message": "…", "details": []}           grpc-gateway, to 0.29
//	{"title": "…", "status": 404, "detail": "…",
//	 "errors": [{"message": "…", "location": "…"}]}       RFC 9457, from 0.30
func message(body []byte) string {
	var e struct {
		Message string `json:"message"`
		Title   string `json:"title"`
		Detail  string `json:"detail"`
		Errors  []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	text := strings.TrimSpace(string(body))
	if json.Unmarshal(body, &e) == nil {
		switch {
		case e.Message != "":
			text = e.Message
		case e.Detail != "":
			text = e.Detail
		case e.Title != "":
			text = e.Title
		}
		for _, x := range e.Errors {
			text = strings.TrimSpace(text + "; " + strings.TrimSpace(x.Location+" "+x.Message))
		}
	}
	if text == "" {
		return "nothing more"
	}
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + " …"
	}
	return text
}
