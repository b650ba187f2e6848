package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/rogpeppe/go-internal/testscript"
)

// fakeHeadscale serves an empty policy and two nodes, to a good API key.
func fakeHeadscale(ts *testscript.TestScript, _ bool, _ []string) {
	policy := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer hskey-api-good" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, "Unauthorized")
			return
		}
		var body struct {
			Policy string `json:"policy"`
		}
		json.NewDecoder(r.Body).Decode(&body)
		switch r.Method + " " + r.URL.Path {
		case "GET /api/v1/node":
			fmt.Fprint(w, `{"nodes": [
				{"id": "1", "givenName": "nullstone", "tags": ["tag:infra"], "ipAddresses": ["100.64.0.1", "fd7a:115c:a1e0::1"]},
				{"id": "2", "givenName": "laptop", "tags": ["tag:guest"], "ipAddresses": ["100.64.0.2", "fd7a:115c:a1e0::2"]}]}`)
		case "GET /api/v1/policy":
			if policy == "" {
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `{"code": 2, "message": "acl policy not found"}`)
				return
			}
			json.NewEncoder(w).Encode(map[string]string{"policy": policy})
		case "PUT /api/v1/policy":
			policy = body.Policy
			fmt.Fprint(w, "{}")
		case "POST /api/v1/policy/check":
			fmt.Fprint(w, "{}")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv("HEADSCALE", s.URL)
}
