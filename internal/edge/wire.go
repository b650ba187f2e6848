package edge

import (
	"encoding/hex"
	"fmt"
	"regexp"

	"github.com/veilor/veilor-os/internal/site"
)

// NodesPath is the path of the list; a node's own is under it, by its key.
const NodesPath = "/v1/nodes"

// Order is the body of the request that admits a node.
type Order struct {
	Name string `json:"name"`
	Tier string `json:"tier"`
}

// Refusal is the body of an answer that is none.
type Refusal struct {
	Error string `json:"error"`
}

// ParseKey reads a node's public key and gives it in lower case, as it is
// everywhere else.
func ParseKey(text string) (site.Key, error) {
	b := site.Key(text).Bytes()
	if b == nil {
		return "", fmt.Errorf("%.80q is no public key; write the 64 hex digits that `veilor-ygg address` prints", text)
	}
	return site.Key(hex.EncodeToString(b)), nil
}

// names is what a name or a tier may be: what a site and a list of machines
// take, and nothing that a terminal or a log would act upon.
var names = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)

// Check says what is wrong with an order, or nil.
func (o Order) Check() error {
	if o.Name != "" && !names.MatchString(o.Name) {
		return fmt.Errorf("%.80q is no name of a machine; use letters, digits and -, at most 63", o.Name)
	}
	if o.Tier != "" && !names.MatchString(o.Tier) {
		return fmt.Errorf("%.80q is no name of a tier; write one of the site's, for example guest", o.Tier)
	}
	return nil
}
