// Package edge speaks with a veilor-ygg that serves (an edge, or a server that
// is in Yggdrasil itself) about who is admitted: on its control socket, as
// HTTP/JSON.
//
//	GET    /v1/nodes        -> State
//	PUT    /v1/nodes/{key}  <- {"name":"anna","tier":"guest"}   -> Node
//	DELETE /v1/nodes/{key}  -> Closed
//
// Every request may be repeated. An answer is given when what it says is in
// force and on disk. A refusal is {"error":"…"} with a status of 4xx or 5xx.
package edge

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
)

// DefaultSocket is where a server's veilor-ygg listens for orders.
const DefaultSocket = "/run/veilor-ygg/control.sock"

// NodesPath is the path of the list; a node's own is under it, by its key.
const NodesPath = "/v1/nodes"

// MaxBody bounds a request or an answer: 10^4 nodes have about 2 MB.
const MaxBody = 16 << 20

// Node is an admitted node.
type Node struct {
	// Key is its public key in Yggdrasil, which is also its address there.
	Key site.Key `json:"key"`
	// Name is what people call the machine; Tier its tier in the site.
	Name string `json:"name,omitempty"`
	Tier string `json:"tier,omitempty"`
}

// Order is the body of the request that admits a node.
type Order struct {
	Name string `json:"name,omitempty"`
	Tier string `json:"tier,omitempty"`
}

// Link is a peering that stands.
type Link struct {
	Key   site.Key  `json:"key"`
	Since time.Time `json:"since"`
}

// State is whom a server admits, whom never again, and who is peering with it.
// All are sorted by key.
type State struct {
	Nodes   []Node     `json:"nodes"`
	Revoked []site.Key `json:"revoked"`
	Links   []Link     `json:"links"`
}

// Closed is what a revocation ended.
type Closed struct {
	Key         site.Key `json:"key"`
	LinksClosed int      `json:"links_closed"`
	FlowsClosed int      `json:"flows_closed"`
}

// Refusal is the body of an answer that is none.
type Refusal struct {
	Error string `json:"error"`
}

const keyDigits = 64

// ParseKey reads a node's public key and gives it in lower case.
func ParseKey(text string) (site.Key, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(text) != keyDigits {
		return "", fmt.Errorf("%.80q is no public key; write the %d hex digits that `veilor-ygg address` prints", text, keyDigits)
	}
	return site.Key(hex.EncodeToString(b)), nil
}

// names is what a name or a tier may be: what a site and a list of machines
// take, and nothing that a terminal or a log would act upon.
var names = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)

// Check says what is wrong with a node, or nil.
func (n Node) Check() error {
	if _, err := ParseKey(string(n.Key)); err != nil {
		return err
	}
	if string(n.Key) != strings.ToLower(string(n.Key)) {
		return fmt.Errorf("key %.80q has capitals; write it in lower case", n.Key)
	}
	if n.Name != "" && !names.MatchString(n.Name) {
		return fmt.Errorf("%.80q is no name of a machine; use letters, digits and -, at most 63", n.Name)
	}
	if n.Tier != "" && !names.MatchString(n.Tier) {
		return fmt.Errorf("%.80q is no name of a tier; write one of the site's, for example guest", n.Tier)
	}
	return nil
}
