package headscale

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// registry is a Headscale of nodes and keys, which can fail at any call.
type registry struct {
	nodes []map[string]any
	keys  []map[string]any
	// calls are what was asked, in order.
	calls []string
	// fail answers a call in its own way, if it says so.
	fail func(w http.ResponseWriter, call string) bool
}

const past, later = "2020-01-01T00:00:00Z", "2126-01-01T00:00:00Z"

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1")
	g.calls = append(g.calls, call)
	if g.fail != nil && g.fail(w, call) {
		return
	}
	switch {
	case call == "GET /node":
		json.NewEncoder(w).Encode(map[string]any{"nodes": g.nodes})
	case call == "GET /preauthkey":
		json.NewEncoder(w).Encode(map[string]any{"preAuthKeys": g.keys})
	case call == "POST /preauthkey/expire":
		var body struct{ ID string }
		json.NewDecoder(r.Body).Decode(&body)
		for _, k := range g.keys {
			if k["id"] == body.ID {
				k["expiration"] = past
			}
		}
		fmt.Fprint(w, "{}")
	case strings.HasPrefix(call, "DELETE /node/"):
		id := strings.TrimPrefix(call, "DELETE /node/")
		have := len(g.nodes)
		g.nodes = slices.DeleteFunc(g.nodes, func(n map[string]any) bool { return n["id"] == id })
		if len(g.nodes) == have {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"code": 5, "message": "node not found", "details": []}`)
			return
		}
		fmt.Fprint(w, "{}")
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func key(id string, reusable, used bool, expiration string) map[string]any {
	return map[string]any{"id": id, "key": "hskey-auth-***", "reusable": reusable, "used": used, "expiration": expiration}
}

func member(id, name, machine, keyID string) map[string]any {
	return map[string]any{"id": id, "givenName": name, "machineKey": "mkey:" + machine, "createdAt": "2026-11-23T12:00:00Z",
		"preAuthKey": map[string]any{"id": keyID}}
}

func town() *registry {
	return &registry{
		nodes: []map[string]any{member("1", "ann", "aa", "11"), member("2", "bob", "bb", "12"), member("3", "ann-phone", "aa", "13")},
		keys: []map[string]any{
			key("11", false, true, later),  // spent
			key("12", true, true, later),   // bob's
			key("13", true, true, later),   // can be used once more
			key("14", false, false, later), // named by the caller, not redeemed
			key("15", false, false, past),  // over
			key("16", false, false, later), // somebody else's
		},
	}
}

func connect(t *testing.T, g *registry) *Client {
	t.Helper()
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	return NewClient(s.URL, apiKey, s.Client())
}

func anns(n Node) bool { return n.MachineKey == "mkey:aa" }

func left(g *registry) (nodes, live []string) {
	for _, n := range g.nodes {
		nodes = append(nodes, n["id"].(string))
	}
	for _, k := range g.keys {
		e, _ := time.Parse(time.RFC3339, k["expiration"].(string))
		if (Key{Reusable: k["reusable"].(bool), Used: k["used"].(bool), Expiration: e}).Live(time.Now()) {
			live = append(live, k["id"].(string))
		}
	}
	return nodes, live
}

func TestEvict(t *testing.T) {
	g := town()
	c := connect(t, g)
	gone, err := c.Evict(t.Context(), anns, []string{"14", "15", "99"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Evicted{Nodes: []string{"1", "3"}, Keys: []string{"13", "14"}}, gone); diff != "" {
		t.Error(diff)
	}
	nodes, live := left(g)
	if diff := cmp.Diff([][]string{{"2"}, {"12", "16"}}, [][]string{nodes, live}); diff != "" {
		t.Errorf("what is left: %s", diff)
	}
	if i, j := slices.Index(g.calls, "DELETE /node/1"), slices.Index(g.calls, "POST /preauthkey/expire"); j > i {
		t.Errorf("a node was deleted before its way back was closed: %v", g.calls)
	}
	if gone, err := c.Evict(t.Context(), anns, []string{"14"}); err != nil || len(gone.Nodes)+len(gone.Keys) != 0 {
		t.Errorf("again: %+v, %v", gone, err)
	}
}

// Whatever the server answers instead, at whichever call, Evict says no; and
// when it answers again, the next Evict does all of it.
func TestEvictFaults(t *testing.T) {
	answers := map[string]struct {
		status     int
		body, want string
	}{
		"500":           {500, `{"code": 13, "message": "database is locked", "details": []}`, "database is locked"},
		"401":           {401, "Unauthorized", "the API key is wrong or expired"},
		"404 of a path": {404, `404 page not found`, "404 page not found"},
		"0.30's 404":    {404, `{"title": "Not Found", "status": 404, "detail": "node not found"}`, "node not found"},
		"0.30's 422":    {422, `{"title": "Unprocessable Entity", "status": 422, "detail": "validation failed", "errors": [{"message": "expected number", "location": "path.id"}]}`, "path.id expected number"},
		"a lie":         {200, `{}`, ""},
		"no JSON":       {200, `<html>a proxy's page`, ""},
	}
	whole := town()
	if _, err := connect(t, whole).Evict(t.Context(), anns, []string{"14"}); err != nil {
		t.Fatal(err)
	}
	for name, a := range answers {
		for at := range whole.calls {
			t.Run(fmt.Sprintf("%s at call %d, %s", name, at, whole.calls[at]), func(t *testing.T) {
				// An empty list where a list is asked for is no fault that could
				// be seen, except by asking again.
				if name == "a lie" && strings.HasPrefix(whole.calls[at], "GET") {
					t.Skip("an empty list is a true answer of an empty server")
				}
				g := town()
				g.fail = func(w http.ResponseWriter, _ string) bool {
					if len(g.calls)-1 < at {
						return false
					}
					w.WriteHeader(a.status)
					fmt.Fprint(w, a.body)
					return true
				}
				c := connect(t, g)
				if name == "a lie" {
					g.fail = func(w http.ResponseWriter, call string) bool {
						if call != whole.calls[at] {
							return false
						}
						fmt.Fprint(w, a.body)
						return true
					}
				}
				_, err := c.Evict(t.Context(), anns, []string{"14"})
				if err == nil || !strings.Contains(err.Error(), a.want) {
					t.Fatalf("got %v, want …%s…", err, a.want)
				}
				if a.status == 401 && !errors.Is(err, ErrUnauthorized) {
					t.Errorf("%v is no ErrUnauthorized", err)
				}
				g.fail = nil
				if _, err := c.Evict(t.Context(), anns, []string{"14"}); err != nil {
					t.Fatal(err)
				}
				nodes, live := left(g)
				if diff := cmp.Diff([][]string{{"2"}, {"12", "16"}}, [][]string{nodes, live}); diff != "" {
					t.Errorf("what is left: %s", diff)
				}
			})
		}
	}
}
