package headscale

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// Evicted says what was there to be removed, by id.
type Evicted struct {
	Nodes, Keys []string
}

// Evict removes every node that matches, and the ways back in: the pre-auth
// keys that those nodes joined with and the further ones named, as far as they
// can still be redeemed. Then it makes sure that none of it is left. A node is
// deleted and never only given another tag: for as long as it is a node it keeps
// its session keys, and its live flows.
//
// It may be called again, and goes on where it was stopped: keys are expired
// before the nodes that lead to them are deleted, so that no key is lost, and a
// machine that was deleted has none to come back with.
func (c *Client) Evict(ctx context.Context, match func(Node) bool, keys []string) (Evicted, error) {
	var gone Evicted
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return gone, err
	}
	nodes = slices.DeleteFunc(nodes, func(n Node) bool { return !match(n) })
	keys = slices.Clone(keys)
	for _, n := range nodes {
		if n.PreAuthKey != nil {
			keys = append(keys, n.PreAuthKey.ID)
		}
	}
	if gone.Keys, err = c.expireLive(ctx, keys); err != nil {
		return gone, err
	}
	for _, n := range nodes {
		if err := c.deleteNode(ctx, n.ID); err != nil {
			return gone, err
		}
		gone.Nodes = append(gone.Nodes, n.ID)
	}
	after, err := c.Nodes(ctx)
	if err != nil {
		return gone, err
	}
	for _, n := range after {
		if match(n) {
			return gone, fmt.Errorf("deleting node %s: the server said yes, but it is still there", n.ID)
		}
	}
	return gone, nil
}

// expireLive expires those of the keys that a machine could still join with. One
// that the server does not know opens nothing.
func (c *Client) expireLive(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	all, err := c.Keys(ctx)
	if err != nil {
		return nil, err
	}
	var done []string
	for _, k := range all {
		if !slices.Contains(ids, k.ID) || slices.Contains(done, k.ID) || !k.Live(c.Now()) {
			continue
		}
		if err := c.ExpireKey(ctx, k.ID); err != nil {
			return done, err
		}
		done = append(done, k.ID)
	}
	return done, nil
}

// deleteNode asks for it. What code an unknown id gets differs by version, so a
// refusal is looked into by the caller, who reads the list again; but one that
// has no way in, or that leaves the node, is an error at once.
func (c *Client) deleteNode(ctx context.Context, id string) error {
	err := c.call(ctx, http.MethodDelete, "/node/"+url.PathEscape(id), nil, nil)
	if err == nil {
		return nil
	}
	var refused *Refused
	if !errors.As(err, &refused) || errors.Is(err, ErrUnauthorized) {
		return fmt.Errorf("deleting node %s: %w", id, err)
	}
	nodes, listErr := c.Nodes(ctx)
	if listErr != nil || slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == id }) {
		return fmt.Errorf("deleting node %s: %w", id, err)
	}
	return nil
}
