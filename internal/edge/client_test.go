package edge

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
)

var (
	anna = Node{Key: site.Key("aa" + strings.Repeat("0", 62)), Name: "anna", Tier: "guest"}
	bert = Node{Key: site.Key("bb" + strings.Repeat("0", 62)), Name: "bert", Tier: "guest"}
)

// client speaks with a server that answers by h.
func client(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	c, err := NewClient("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClient(t *testing.T) {
	list := List{Nodes: []Node{anna}, Revoked: []site.Key{bert.Key}, Links: []Link{{Key: anna.Key}}}
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + strings.TrimPrefix(r.URL.Path, NodesPath) {
		case "GET ":
			json.NewEncoder(w).Encode(list)
		case "PUT /" + string(anna.Key):
			var o Order
			if err := json.NewDecoder(r.Body).Decode(&o); err != nil || o != (Order{"anna", "guest"}) {
				t.Errorf("the order is %v, %v", o, err)
			}
			json.NewEncoder(w).Encode(anna)
		case "PUT /" + string(bert.Key):
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(Refusal{"bert, yesterday"})
		case "DELETE /" + string(anna.Key):
			json.NewEncoder(w).Encode(Closed{anna.Key, 1, 2})
		default:
			http.NotFound(w, r)
		}
	})
	got, err := c.Nodes(t.Context())
	if err != nil || !cmp.Equal(got, list) {
		t.Errorf("Nodes: %v, %v", got, err)
	}
	if got.Admits(bert.Key) || !got.Admits(anna.Key) || !got.Connected(anna.Key) {
		t.Errorf("%v says the wrong thing", got)
	}
	if n, err := c.Admit(t.Context(), anna); err != nil || n != anna {
		t.Errorf("Admit: %v, %v", n, err)
	}
	if _, err := c.Admit(t.Context(), bert); !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "bert, yesterday") {
		t.Errorf("Admit of a revoked node: %v", err)
	}
	if done, err := c.Revoke(t.Context(), anna.Key); err != nil || done != (Closed{anna.Key, 1, 2}) {
		t.Errorf("Revoke: %v, %v", done, err)
	}
	var refused *Refused
	if _, err := c.Revoke(t.Context(), bert.Key); !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
		t.Errorf("a 404 is %v", err)
	}
	if _, err := c.Revoke(t.Context(), "../"); err == nil {
		t.Error("Revoke takes a path")
	}
}

func TestClientNobody(t *testing.T) {
	c, err := NewClient("unix://" + filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Nodes(t.Context()); err == nil || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("%v, want the socket named", err)
	}
	for _, a := range []string{"", "http://edge", "unix://host/x", "unix://x", "unix:///x?y"} {
		if _, err := NewClient(a); err == nil {
			t.Errorf("%q is taken for a socket", a)
		}
	}
}

func TestOrder(t *testing.T) {
	for _, o := range []Order{{}, {"anna", "guest"}, {"Laptop-7f.local", ""}} {
		if err := o.Check(); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
	for _, o := range []Order{{"a b", ""}, {"anna", "../guest"}, {"\x1b[2J", ""}, {strings.Repeat("a", 64), ""}} {
		if o.Check() == nil {
			t.Errorf("%q is taken", o)
		}
	}
	if k, err := ParseKey(strings.ToUpper(string(anna.Key))); err != nil || k != anna.Key {
		t.Errorf("%q, %v", k, err)
	}
	if _, err := ParseKey("aa"); err == nil {
		t.Error("half a key is taken")
	}
}
