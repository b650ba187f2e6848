package revoke

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/headscale"
)

// A name that no node has is no proof that a machine is gone, and a node whose
// id is not written down is not deleted.
func TestTailnetByName(t *testing.T) {
	const annIs = `{"id": "7", "givenName": %q, "createdAt": "2026-11-01T00:00:00Z"}`
	for name, c := range map[string]struct {
		node    string
		s       Subject
		close   error
		check   error
		deleted bool
	}{
		"renamed":            {node: fmt.Sprintf(annIs, "zed"), s: Subject{Name: "ann"}, close: errNoNode, check: errNoNode},
		"gone":               {s: Subject{Name: "ann"}, close: errNoNode, check: errNoNode},
		"gone, id known":     {s: Subject{Name: "ann", Nodes: []string{"7"}}},
		"gone, address":      {s: ann()},
		"never in it":        {node: fmt.Sprintf(annIs, "zed"), s: Subject{Name: "ann", NoNode: true}},
		"renamed, id known":  {node: fmt.Sprintf(annIs, "zed"), s: Subject{Name: "ann", Nodes: []string{"7"}}, deleted: true},
		"not known in time":  {node: fmt.Sprintf(annIs, "ann"), s: Subject{Name: "ann"}, close: errLate},
		"its key, but no id": {s: Subject{Name: "ann", MachineKeys: []string{"mkey:07"}}},
	} {
		t.Run(name, func(t *testing.T) {
			node, deleted := c.node, false
			mux := http.NewServeMux()
			mux.HandleFunc("GET /api/v1/node", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"nodes": [%s]}`, node) })
			mux.HandleFunc("DELETE /api/v1/node/7", func(w http.ResponseWriter, _ *http.Request) {
				node, deleted = "", true
				fmt.Fprint(w, "{}")
			})
			s := httptest.NewServer(mux)
			defer s.Close()
			step := tailnetStep{headscale.NewClient(s.URL, "hskey-api-good", &http.Client{Timeout: time.Minute})}
			o := Order{At: now, Subject: c.s}
			if _, err := step.Close(t.Context(), o); err != c.close {
				t.Errorf("close: got %v, want %v", err, c.close)
			}
			if deleted != c.deleted {
				t.Errorf("deleted: %v", deleted)
			}
			if c.close == errLate {
				return // it is there, as check says
			}
			if err := step.Check(t.Context(), o); err != c.check {
				t.Errorf("check: got %v, want %v", err, c.check)
			}
		})
	}
}
