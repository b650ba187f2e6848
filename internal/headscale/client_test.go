package headscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
)

const apiKey = "hskey-api-secret"

// server is a small Headscale: nodes, keys and a policy.
type server struct {
	nodes  []map[string]any
	policy string
	puts   []string
	// before answers a request in its own way, if it says so.
	before func(w http.ResponseWriter, r *http.Request) bool
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+apiKey {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, "Unauthorized")
		return
	}
	if s.before != nil && s.before(w, r) {
		return
	}
	var body struct {
		Policy string `json:"policy"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	switch at := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1"); at {
	case "GET /node":
		json.NewEncoder(w).Encode(map[string]any{"nodes": s.nodes})
	case "DELETE /node/1":
		s.nodes = nil
		fmt.Fprint(w, "{}")
	case "GET /policy":
		if s.policy == "" {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"code": 2, "message": "loading ACL from database: acl policy not found", "details": []}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"policy": s.policy, "updatedAt": "2026-11-23T00:00:00Z"})
	case "POST /policy/check":
		fmt.Fprint(w, "{}")
	case "PUT /policy":
		s.policy = body.Policy
		s.puts = append(s.puts, body.Policy)
		json.NewEncoder(w).Encode(map[string]any{"policy": s.policy})
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"code": 5, "message": "Not Found: %s"}`, at)
	}
}

func start(t *testing.T, s *server) *Client {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return NewClient(h.URL, apiKey, h.Client())
}

func node(id, name, tag string, addrs ...string) map[string]any {
	tags := []string{}
	if tag != "" {
		tags = append(tags, tag)
	}
	return map[string]any{"id": id, "givenName": name, "tags": tags, "ipAddresses": addrs}
}

func document(t testing.TB) *acl.Document {
	t.Helper()
	p := policy(t)
	f, err := p.Fleet()
	if err != nil {
		t.Fatal(err)
	}
	d, err := acl.Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func policy(t testing.TB) *tier.Policy {
	t.Helper()
	p, err := tier.New(&site.Site{
		Zone:     "veilor",
		Tiers:    []site.Tier{{Name: "admin", Tag: "tag:admin", Reach: []string{"*:*"}}, {Name: "infra", Tag: "tag:infra"}, {Name: "guest", Tag: "tag:guest", Reach: []string{"x.veilor:443"}}},
		Hosts:    []site.Host{{Name: "nullstone", Tier: "infra", Tailnet: netip.MustParseAddr("100.64.0.1")}},
		Services: []site.Service{{Name: "x.veilor", Host: "nullstone", Ports: []uint16{443}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	guestNode = node("1", "laptop", "tag:guest", "100.64.0.2")
	infraNode = node("2", "nullstone", "tag:infra", "100.64.0.1", "fd7a:115c:a1e0::1")
	adminNode = node("3", "failsafe", "tag:admin", "100.64.0.3")
)

func TestLoadInTwoSteps(t *testing.T) {
	s := &server{nodes: []map[string]any{guestNode, infraNode}}
	d := document(t)
	l, err := start(t, s).LoadPolicy(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Loaded{Step: Whole, Untested: []string{"tag:admin"}}, l); diff != "" {
		t.Error(diff)
	}
	if len(s.puts) != 2 || s.puts[0] != string(d.Bare().Text()) || strings.Contains(s.puts[1], `"src":"tag:admin","proto":"tcp"`) {
		t.Errorf("puts: %q", s.puts)
	}
	// Again: nothing to do. With an admin: only the tests change, and the rules go first.
	if l, err := start(t, s).LoadPolicy(t.Context(), d); err != nil || !l.Already || len(s.puts) != 2 {
		t.Errorf("%+v, %v, %d puts", l, err, len(s.puts))
	}
	s.nodes = append(s.nodes, adminNode)
	if l, err := start(t, s).LoadPolicy(t.Context(), d); err != nil || l.Untested != nil || s.policy != string(d.Text()) {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestLoadWithoutNodes(t *testing.T) {
	s := &server{}
	d := document(t)
	l, err := start(t, s).LoadPolicy(t.Context(), d)
	if err != nil || l.Step != Bare || s.policy != string(d.Bare().Text()) {
		t.Errorf("%+v, %v", l, err)
	}
}

// However a load ends, the policy in force is the old one, or has the site's
// rules.
func TestLoadCutShort(t *testing.T) {
	d := document(t)
	const old = `{"acls": []}`
	nodes := []map[string]any{guestNode, infraNode, adminNode}
	for cut := range 9 {
		n := 0
		s := &server{nodes: nodes, policy: old}
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if n++; n <= cut {
				return false
			}
			// The connection dies: with the client, the server or the network.
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
			return true
		}
		l, err := start(t, s).LoadPolicy(t.Context(), d)
		if err == nil {
			if cut != 7 && cut != 8 {
				t.Errorf("cut after %d calls: no error", cut)
			}
			continue
		}
		switch s.policy {
		case old:
			if l.Step != Unchanged {
				t.Errorf("cut after %d: %s, but the old policy is in force", cut, l.Step)
			}
		case string(d.Bare().Text()), string(d.Text()):
		default:
			t.Errorf("cut after %d: neither the old policy nor the site's: %s", cut, s.policy)
		}
		s.before = nil
		if l, err := start(t, s).LoadPolicy(t.Context(), d); err != nil || l.Step != Whole {
			t.Errorf("cut after %d, then again: %+v, %v", cut, l, err)
		}
	}
}

func TestLoadRefused(t *testing.T) {
	d := document(t)
	answer := func(call string, code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method+" "+r.URL.Path != call {
				return false
			}
			w.WriteHeader(code)
			fmt.Fprint(w, body)
			return true
		}
	}
	for _, c := range []struct {
		name   string
		before func(http.ResponseWriter, *http.Request) bool
		want   string
		is     error
	}{
		{"tests fail in the check", answer("POST /api/v1/policy/check", 400, `{"code":3,"message":"test(s) failed:\ntag:guest -> nullstone:443: expected DENIED, got ALLOWED"}`), "nothing was changed): checking the policy: the server answered 400: test(s) failed", nil},
		{"tests fail in the set", func() func(http.ResponseWriter, *http.Request) bool {
			n := 0
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut {
					return false
				}
				n++
				return n == 2 && answer("PUT /api/v1/policy", 500, `{"code":2,"message":"setting policy: test(s) failed","details":[]}`)(w, r)
			}
		}(), "the rules are in force, the tests are not): setting the policy: the server answered 500: setting policy: test(s) failed", nil},
		{"0.30's form", answer("PUT /api/v1/policy", 400, `{"title":"Bad Request","status":400,"detail":"policy is invalid","errors":[{"message":"no such tag","location":"body.policy"}]}`), "the server answered 400: policy is invalid; body.policy no such tag", nil},
		{"file mode", answer("PUT /api/v1/policy", 500, `{"code":2,"message":"update is disabled for modes other than 'database'"}`), "set policy.mode: database", nil},
		{"unauthorized", answer("GET /api/v1/node", 401, "Unauthorized"), "the API key is wrong or expired", ErrUnauthorized},
		{"no JSON", answer("GET /api/v1/node", 200, "<html>"), "reading the answer", nil},
		{"nodes are a string", answer("GET /api/v1/node", 200, `{"nodes": "no"}`), "reading the answer", nil},
		{"another policy is read back", answer("GET /api/v1/policy", 200, `{"policy": "{\"acls\":[{\"action\":\"accept\",\"src\":[\"*\"],\"dst\":[\"*:*\"]}]}"}`), `the server said yes, but has another policy: + acls      {"action":"accept","src":["*"],"dst":["*:*"]}`, nil},
		{"a proxy's page", answer("PUT /api/v1/policy", 502, "<html>Bad Gateway</html>"), "the server answered 502: <html>Bad Gateway</html>", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{nodes: []map[string]any{guestNode, infraNode, adminNode}, before: c.before}
			_, err := start(t, s).LoadPolicy(t.Context(), d)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is no %v", err, c.is)
			}
			if err != nil && strings.Contains(err.Error(), apiKey) {
				t.Errorf("the API key is in the error: %v", err)
			}
		})
	}
}

// Before 0.29 there is no check and there are no tests.
// deaf takes a policy as Headscale does with some thousands of nodes: its answer
// comes too late for its own HTTP server.
type deaf struct {
	policy string
	// work is how long it computes; gone says that it dies instead.
	work time.Duration
	gone bool
	// at is when the policy will be in force.
	at time.Time
}

func (d *deaf) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		var body struct{ Policy string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		httptrace.ContextClientTrace(r.Context()).WroteRequest(httptrace.WroteRequestInfo{})
		d.at = time.Now().Add(d.work)
		time.Sleep(30 * time.Second)
		d.policy = body.Policy
		return nil, io.ErrUnexpectedEOF
	}
	if d.gone {
		return nil, io.ErrUnexpectedEOF
	}
	if time.Now().Before(d.at) {
		return answers{http.StatusNotFound, `{"message": "policy not found"}`}.RoundTrip(r)
	}
	text, err := json.Marshal(map[string]string{"policy": d.policy})
	if err != nil {
		return nil, err
	}
	return answers{http.StatusOK, string(text)}.RoundTrip(r)
}

func TestLateAnswer(t *testing.T) {
	for _, c := range []struct {
		name string
		deaf
		ok bool
	}{
		{"in force after four minutes", deaf{work: 4 * time.Minute}, true},
		{"in force when the answer is lost", deaf{work: time.Second}, true},
		{"never in force", deaf{work: time.Hour}, false},
		{"the server dies", deaf{gone: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := NewClient("https://hs.test", "k", &http.Client{Transport: &c.deaf})
				err := cl.SetPolicy(t.Context(), []byte("{}"))
				if (err == nil) != c.ok {
					t.Error(err)
				}
				if err != nil && !errors.Is(err, errLost) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestLoadOldServer(t *testing.T) {
	s := &server{nodes: []map[string]any{guestNode, infraNode, adminNode}}
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/policy/check") {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"code":5,"message":"Not Found"}`)
		return true
	}
	l, err := start(t, s).LoadPolicy(t.Context(), document(t))
	if err != nil || l.Step != Bare || !l.Unsupported {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestDeleteNode(t *testing.T) {
	s := &server{nodes: []map[string]any{guestNode}}
	c := start(t, s)
	if err := c.DeleteNode(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteNode(t.Context(), "77"); err != nil {
		t.Errorf("a node that is gone already: %v", err)
	}
	s.nodes = []map[string]any{guestNode}
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		fmt.Fprint(w, "{}") // and does nothing
		return true
	}
	if err := c.DeleteNode(t.Context(), "1"); err == nil || !strings.Contains(err.Error(), "it is still there") {
		t.Errorf("got %v", err)
	}
}

func TestCreateKey(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ name, key, want string }{
		{"good", `{"id":"1","key":"hskey-auth-x","expiration":"2026-11-24T12:00:00Z","aclTags":["tag:guest"]}`, ""},
		{"born expired", `{"id":"1","key":"hskey-auth-x","expiration":"0001-01-01T00:00:00Z","aclTags":["tag:guest"]}`, "before it was made"},
		{"reusable", `{"id":"1","key":"hskey-auth-x","reusable":true,"expiration":"2026-11-24T12:00:00Z","aclTags":["tag:guest"]}`, "asked for a single-use"},
		{"another tag", `{"id":"1","key":"hskey-auth-x","expiration":"2026-11-24T12:00:00Z","aclTags":["tag:admin"]}`, "asked for a single-use"},
		{"none", `{}`, "the reply has none"},
	} {
		cl := start(t, &server{before: func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprintf(w, `{"preAuthKey": %s}`, c.key)
			return true
		}})
		cl.Now = func() time.Time { return now }
		k, err := cl.CreateKey(t.Context(), "tag:guest")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want …%s…", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hskey-auth-x") || strings.Contains(fmt.Sprint(k), "hskey-auth-x") {
			t.Errorf("%s: the secret is shown", c.name)
		}
	}
}

func TestMachines(t *testing.T) {
	p := policy(t)
	nodes := []Node{
		{ID: "2", Name: "srv-1", Tags: []string{"tag:infra"}, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")}},
		{ID: "3", Name: "Nullstone", Tags: []string{"tag:guest"}, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2")}},
		{ID: "4", Name: "somebody", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.4")}},
		{ID: "5", Name: "Guest", Tags: []string{"tag:guest"}},
		{ID: "6", Name: "admin", Tags: []string{"tag:guest"}},
		{ID: "7", Name: "infra", Tags: []string{"tag:guest"}},
		{ID: "8", Name: "stranger", Tags: []string{"tag:guest"}},
		{ID: "9", Name: "revoked", Tags: []string{"tag:guest"}},
		{ID: "10", Name: "node-3", Tags: []string{"tag:guest"}},
	}
	ms, err := Machines(p, nodes)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Fleet(ms...)
	if err != nil {
		t.Fatal(err)
	}
	if m, _ := f.ByName("nullstone"); len(m.Tailnet) != 2 {
		t.Errorf("the host did not get its second address: %+v", m)
	}
	for _, name := range []string{"node#3", "node#5", "node#6", "node#7", "node#8", "node#9", "node-3"} {
		if m, _ := f.ByName(name); m.Tier != "guest" {
			t.Errorf("a guest that calls itself as others are called: %s is %+v", name, m)
		}
	}
	for _, bad := range [][]string{{"tag:guest", "tag:admin"}, {"tag:ghost"}} {
		if _, err := Machines(p, []Node{{ID: "9", Name: "x", Tags: bad}}); err == nil || !strings.Contains(err.Error(), "node 9 (x)") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// FuzzAnswers gives the client anything for an answer: it must not panic, and a
// load must not call a policy good that was not read back.
func FuzzAnswers(f *testing.F) {
	f.Add(200, `{"policy": "{\"acls\": []}"}`)
	f.Add(500, `{"code": 2, "message": "acl policy not found"}`)
	f.Add(404, `{"title": "x", "errors": [{"message": "y"}]}`)
	d := document(f)
	tags := []string{"tag:guest", "tag:infra", "tag:admin"}
	whole, _ := d.TestedBy(tags)
	for _, text := range [][]byte{d.Bare().Text(), whole.Text(), bytes.Replace(whole.Text(), []byte("{"), []byte("{ "), 1)} {
		for _, nodes := range []any{nil, []any{map[string]any{"id": "1", "tags": tags}}} {
			body, err := json.Marshal(map[string]any{"policy": string(text), "nodes": nodes})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(200, string(body))
		}
	}
	f.Fuzz(func(t *testing.T, code int, body string) {
		if code < 200 || code > 599 || code == http.StatusNoContent || code == http.StatusNotModified {
			return
		}
		c := NewClient("http://hs.example.org", apiKey, &http.Client{Transport: answers{code, body}})
		text, err := c.Policy(context.Background())
		if err == nil && (len(text) == 0 || code/100 != 2) {
			t.Errorf("answer %d gave the policy %q", code, text)
		}
		if err == nil {
			acl.Parse(text)
		}
		nodes, err := c.Nodes(context.Background())
		if err == nil && code/100 != 2 {
			t.Errorf("answer %d gave nodes", code)
		}
		l, err := c.LoadPolicy(context.Background(), d)
		if err != nil {
			return
		}
		var tags []string
		for _, n := range nodes {
			tags = append(tags, n.Tags...)
		}
		want, _ := d.TestedBy(tags)
		switch {
		case l.Step == Unchanged:
			t.Fatal("it says that it loaded the policy, and changed nothing")
		case l.Step == Bare && len(want.Tests) > 0 && !l.Unsupported:
			t.Fatal("it left out tests that can run")
		case l.Step == Bare:
			want = d.Bare()
		}
		have, others, err := acl.Parse(text)
		if err != nil {
			t.Fatalf("it took this for the policy: %v\n%s", err, text)
		}
		if ds := acl.Diff(have, others, want); ds != nil {
			t.Errorf("it took this for the policy: %s\n%s", ds[0], text)
		}
	})
}

type answers struct {
	code int
	body string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.WriteHeader(a.code)
	w.WriteString(a.body)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// A list may name a tailnet node, to say what Headscale does not know of it.
func TestJoin(t *testing.T) {
	key := site.Key("efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef")
	addresses := []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd7a:115c:a1e0::2")}
	nodes := []tier.Machine{{Name: "ann", Tier: "guest", Tailnet: addresses}}
	for _, c := range []struct {
		name string
		list []tier.Machine
		want []tier.Machine
		err  string
	}{
		{"none", nil, nodes, ""},
		{"same", []tier.Machine{{Name: "Ann", Tier: "guest", Tailnet: addresses[:1], Yggdrasil: key, Revoked: true}},
			[]tier.Machine{{Name: "ann", Tier: "guest", Tailnet: addresses, Yggdrasil: key, Revoked: true}}, ""},
		{"another", []tier.Machine{{Name: "ben", Tier: "guest"}}, append(slices.Clone(nodes), tier.Machine{Name: "ben", Tier: "guest"}), ""},
		{"tier", []tier.Machine{{Name: "ann", Tier: "admin"}}, nil, `the list in "admin"`},
		{"address", []tier.Machine{{Name: "ann", Tier: "guest", Tailnet: []netip.Addr{netip.MustParseAddr("100.64.0.3")}}}, nil, "correct the list"},
		{"twice", []tier.Machine{{Name: "ann", Tier: "guest"}, {Name: "ann", Tier: "guest"}}, nil, "in the list twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Join(nodes, c.list)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}
