package edge

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	anna = Node{Key: "aa00000000000000000000000000000000000000000000000000000000000000", Name: "anna", Tier: "guest"}
	bert = Node{Key: "bb00000000000000000000000000000000000000000000000000000000000000", Name: "bert", Tier: "guest"}
)

// server answers as a veilor-ygg does and keeps what it was asked.
func server(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return New(path)
}

func TestClient(t *testing.T) {
	state := State{Nodes: []Node{anna}, Revoked: nil, Links: []Link{{Key: anna.Key}}}
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/nodes":
			json.NewEncoder(w).Encode(state)
		case "PUT /v1/nodes/" + string(anna.Key):
			var o Order
			if err := json.NewDecoder(r.Body).Decode(&o); err != nil || o != (Order{"anna", "guest"}) {
				t.Errorf("the order is %v, %v", o, err)
			}
			json.NewEncoder(w).Encode(anna)
		case "PUT /v1/nodes/" + string(bert.Key):
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(Refusal{"this node was revoked: bert, yesterday"})
		case "DELETE /v1/nodes/" + string(anna.Key):
			json.NewEncoder(w).Encode(Closed{anna.Key, 1, 2})
		default:
			http.NotFound(w, r)
		}
	})
	got, err := c.State(t.Context())
	if err != nil || !cmp.Equal(got, state) {
		t.Errorf("State: %v, %v", got, err)
	}
	if err := c.Admit(t.Context(), anna); err != nil {
		t.Errorf("Admit: %v", err)
	}
	if err := c.Admit(t.Context(), bert); !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "bert, yesterday") {
		t.Errorf("Admit of a revoked node: %v", err)
	}
	if done, err := c.Revoke(t.Context(), anna.Key); err != nil || done != (Closed{anna.Key, 1, 2}) {
		t.Errorf("Revoke: %v, %v", done, err)
	}
	if _, err := c.Revoke(t.Context(), bert.Key); err == nil {
		t.Error("a 404 is taken for a revocation")
	}
	for _, n := range []Node{{Key: "aa"}, {Key: anna.Key, Name: "a b"}, {Key: anna.Key, Tier: "../guest"}} {
		if err := c.Admit(t.Context(), n); err == nil {
			t.Errorf("Admit takes %v", n)
		}
	}
	if _, err := c.Revoke(t.Context(), "../"); err == nil || !strings.Contains(err.Error(), "veilor-ygg address") {
		t.Errorf("Revoke takes a path: %v", err)
	}
}

// TestClientLies: an answer about another node confirms nothing.
func TestClientLies(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) })
	if err := c.Admit(t.Context(), anna); err == nil {
		t.Error("Admit believes {}")
	}
	if _, err := c.Revoke(t.Context(), anna.Key); err == nil {
		t.Error("Revoke believes {}")
	}
}

func TestClientNobody(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := c.State(context.Background()); err == nil || !strings.Contains(err.Error(), "systemctl status veilor-ygg") {
		t.Errorf("%v, want what to do", err)
	}
}
