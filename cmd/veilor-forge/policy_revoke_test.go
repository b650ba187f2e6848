package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
)

// fakeFleet runs a Headscale ($HEADSCALE) and an edge ($EDGE) that know laptop-7f
// and ann, and remember what they forget. Headscale has zoe's laptop as zed: its
// owner renamed it.
func fakeFleet(ts *testscript.TestScript, _ bool, _ []string) {
	type node struct {
		ID         string   `json:"id"`
		Name       string   `json:"givenName"`
		MachineKey string   `json:"machineKey"`
		Created    string   `json:"createdAt"`
		Addresses  []string `json:"ipAddresses"`
		Tags       []string `json:"tags"`
	}
	const joined = "2026-11-01T00:00:00Z"
	guests := []string{"tag:guest"}
	nodes := []node{
		{"1", "nullstone", "mkey:01", joined, []string{"100.64.0.1"}, []string{"tag:infra"}},
		{"7", "laptop-7f", "mkey:07", joined, []string{"100.64.0.7"}, guests},
		{"8", "ann", "mkey:08", joined, []string{"100.64.0.8"}, guests},
		{"9", "bob", "mkey:09", joined, []string{"100.64.0.9"}, guests},
		{"10", "zed", "mkey:10", joined, []string{"100.64.0.10"}, guests},
	}
	var mu sync.Mutex
	write := func(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
	control := http.NewServeMux()
	control.HandleFunc("GET /api/v1/node", func(w http.ResponseWriter, _ *http.Request) { write(w, map[string]any{"nodes": nodes}) })
	control.HandleFunc("GET /api/v1/preauthkey", func(w http.ResponseWriter, _ *http.Request) { write(w, map[string]any{"preAuthKeys": []any{}}) })
	control.HandleFunc("DELETE /api/v1/node/{id}", func(w http.ResponseWriter, r *http.Request) {
		nodes = slices.DeleteFunc(nodes, func(n node) bool { return n.ID == r.PathValue("id") })
		write(w, struct{}{})
	})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer hskey-api-good" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		control.ServeHTTP(w, r)
	}))
	ts.Defer(s.Close)
	ts.Setenv("HEADSCALE", s.URL)

	key := func(last string) site.Key {
		return site.Key("aa000000000000000000000000000000000000000000000000000000000000" + last)
	}
	list := edge.List{Nodes: []edge.Node{{Key: key("07"), Name: "laptop-7f", Tier: "guest"}, {Key: key("08"), Name: "ann", Tier: "guest"}, {Key: key("10"), Name: "zoe", Tier: "guest"}, {Key: key("11"), Name: "quinn", Tier: "guest"}}, Revoked: []site.Key{}, Links: []edge.Link{{Key: key("07")}}}
	door := http.NewServeMux()
	door.HandleFunc("GET "+edge.NodesPath, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		write(w, list)
	})
	door.HandleFunc("DELETE "+edge.NodesPath+"/{key}", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		k := site.Key(r.PathValue("key"))
		before := len(list.Links)
		list.Nodes = slices.DeleteFunc(list.Nodes, func(n edge.Node) bool { return n.Key == k })
		list.Links = slices.DeleteFunc(list.Links, func(l edge.Link) bool { return l.Key == k })
		if !slices.Contains(list.Revoked, k) {
			list.Revoked = append(list.Revoked, k)
		}
		write(w, edge.Closed{Key: k, Links: before - len(list.Links), Flows: 2})
	})
	// Not in the script's directory: a socket's path has 107 bytes.
	dir, err := os.MkdirTemp("", "edge")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	at := filepath.Join(dir, "s")
	l, err := net.Listen("unix", at)
	ts.Check(err)
	srv := &http.Server{Handler: door}
	go srv.Serve(l)
	ts.Defer(func() { srv.Close() })
	ts.Setenv("EDGE", "unix://"+at)
}
