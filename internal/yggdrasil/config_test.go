package yggdrasil

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

const (
	keyA = "000000d80a2d7b3126ea65c8c08fc751088c491a5cdd47eff11c86fa1e4644ae"
	keyB = "00000c4f50e55f2d1b7ac33f11fb7d4b5f2c8e4e28d1ed0a2e3f4a5b6c7d8e9f"
)

const good = `{
  "IfName": "ygg0",
  "IfMTU": 1280,
  "PrivateKeyPath": "/var/lib/veilor-ygg/key.pem",
  "AdminListen": "unix:///run/veilor-ygg/admin.sock",
  "Listen": ["ws://127.0.0.1:8081"],
  "AllowedPublicKeys": ["` + keyA + `"],
  "Edges": [{"Name": "edge-1", "URL": "wss://edge.example.org/", "Address": "192.0.2.7:443", "Key": "` + keyA + `"}],
  "PublicPeers": [{"Name": "peer", "URL": "wss://peer.example.org/", "Address": "[2001:db8::7]:443", "Key": "` + keyB + `"}],
  "Accept": [443]
}`

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig("ygg.json", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.AdminSocket != "/run/veilor-ygg/admin.sock" || c.Listen[0].String() != "127.0.0.1:8081" ||
		len(c.Peers()) != 2 || c.Peers()[1].Name != "peer" || c.Accept[0] != 443 || len(c.AllowedPublicKeys[0]) != 32 {
		t.Errorf("read as %+v", c)
	}
	live := strings.Replace(good, `["`+keyA+`"]`, `[], "ControlListen": "unix:///run/veilor-ygg/control.sock", "NodesPath": "/var/lib/veilor-ygg/nodes.json"`, 1)
	c, err = ParseConfig("ygg.json", []byte(live))
	if err != nil || c.ControlSocket != "/run/veilor-ygg/control.sock" || c.NodesPath == "" {
		t.Errorf("an edge to which nobody is fixed: %+v, %v", c, err)
	}
	c, err = ParseConfig("ygg.json", []byte(`{"PrivateKeyPath": "/k", "AdminListen": "unix:///a.sock"}`))
	if err != nil || c.IfName != "ygg0" || c.IfMTU != 1280 {
		t.Errorf("defaults: %+v, %v", c, err)
	}
}

func TestParseConfigProblems(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"not JSON", `"Accept": [443]`, `"Accept": [443],`, "ygg.json:11: not JSON"},
		{"cut off", `"Accept": [443]` + "\n}", `"Accept": [443`, "not JSON"},
		{"not an object", good, `"ygg0"`, "not an object"},
		{"unknown key", `"Accept"`, `"Acept"`, "ygg.json:10: Acept: unknown key"},
		{"unknown key of a peer", `"Name": "edge-1"`, `"Nom": "edge-1"`, "ygg.json:8: Edges[0].Nom: unknown key; the keys here are Name, URL, Address, Key"},
		{"a key in another case", `"IfName"`, `"ifname"`, "ifname: unknown key"},
		{"a key twice", `"Accept": [443]`, `"Accept": [443], "Accept": []`, "Accept: is there twice"},
		{"null", `"Accept": [443]`, `"Accept": null`, "Accept: null"},
		{"more text", "]\n}", "]\n} {}", "text after the closing brace"},
		{"wrong type", `"IfMTU": 1280`, `"IfMTU": "big"`, "ygg.json:3: IfMTU: a string is no int"},
		{"port too big", `[443]`, `[70000]`, "Accept"},
		{"port 0", `[443]`, `[0]`, "Accept: 0 is no port"},
		{"interface without a name", `"ygg0"`, `"auto"`, `IfName: "auto" cannot be filtered by name; write ygg0`},
		{"MTU", `1280`, `1279`, "IfMTU: 1279 is not from 1280"},
		{"relative key path", `/var/lib/veilor-ygg/key.pem`, `key.pem`, "PrivateKeyPath"},
		{"admin over TCP", `unix:///run/veilor-ygg/admin.sock`, `tcp://[::1]:9001`, "is no unix:// URL"},
		{"admin path too long", `/run/veilor-ygg/`, `/run/` + strings.Repeat("v", 100) + `/`, "too long for a socket"},
		{"listen on the network", `ws://127.0.0.1:8081`, `ws://0.0.0.0:8081`, "not ws:// on a loopback address"},
		{"listen with TLS", `ws://127.0.0.1:8081`, `wss://127.0.0.1:8081`, "TLS ends before it"},
		{"listen for everybody", `"AllowedPublicKeys": ["` + keyA + `"]`, `"AllowedPublicKeys": []`, "so that nobody could peer"},
		{"control over TCP", `"Accept"`, `"NodesPath": "/n", "ControlListen": "tcp://[::1]:9", "Accept"`, "ControlListen: \"tcp://[::1]:9\" is no unix:// URL"},
		{"control at the admin socket", `"Accept"`, `"NodesPath": "/n", "ControlListen": "unix:///run/veilor-ygg/admin.sock", "Accept"`, "answers everybody"},
		{"control without a file", `"Accept"`, `"ControlListen": "unix:///c.sock", "Accept"`, "NodesPath"},
		{"a file without control", `"Accept"`, `"NodesPath": "/n", "Accept"`, "ControlListen: empty"},
		{"relative group password", `"Accept"`, `"GroupPasswordPath": "g", "Accept"`, "GroupPasswordPath"},
		{"tiers and ports", `"Accept"`, `"SitePath": "/s", "Tier": "guest", "Accept"`, "Accept: the tiers"},
		{"a tier without a site", `"Accept"`, `"Tier": "guest", "Accept"`, "SitePath: empty"},
		{"a site without a tier", `"Accept"`, `"SitePath": "/s", "Accept"`, "Tier: missing"},
		{"a host with a tier", `"Accept"`, `"SitePath": "/s", "Host": "h", "Tier": "infra", "Accept"`, "Tier: the site says"},
		{"short key", `"AllowedPublicKeys": ["` + keyA, `"AllowedPublicKeys": ["` + keyA[2:], "AllowedPublicKeys[0]"},
		{"key that is not hex", `"Key": "` + keyB, `"Key": "` + strings.Repeat("z", 64), "PublicPeers[0].Key"},
		{"peer without a name", `"edge-1"`, `""`, "Edges[0].Name"},
		{"name with a slash", `"edge-1"`, `"edge/1"`, "Edges[0].Name"},
		{"name twice", `"peer"`, `"edge-1"`, `PublicPeers[0].Name: "edge-1" is there twice`},
		{"URL of another kind", `wss://edge`, `tls://edge`, "Edges[0].URL"},
		{"URL with a password", `wss://edge`, `wss://u:p@edge`, "Edges[0].URL"},
		{"address with a name", `192.0.2.7:443`, `edge.example.org:443`, "a name would ask DNS"},
		{"address without a port", `192.0.2.7:443`, `192.0.2.7`, "is no IP:PORT"},
		{"address in the overlay", `192.0.2.7:443`, `[201::7]:443`, "lies in Yggdrasil itself"},
		{"address of nobody", `192.0.2.7:443`, `0.0.0.0:443`, "no address of one host"},
		{"address of many", `192.0.2.7:443`, `224.0.0.1:443`, "no address of one host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatal("the test changes nothing")
			}
			_, err := ParseConfig("ygg.json", []byte(text))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "ygg.json") {
				t.Errorf("error %q, want it to name ygg.json and contain %q", err, c.want)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"Edges":[[{"Name":1e9}]],"IfMTU":-0}`))
	f.Add([]byte(`{"PrivateKeyPath":"/k","AdminListen":"unix:///a","Listen":["ws://[::1]:1/"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("f", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Fatalf("an error that does not name the file: %q", err)
			}
			return
		}
		if len(c.Listen) > 0 && len(c.AllowedPublicKeys) == 0 {
			t.Fatal("a node that lets anybody peer")
		}
		for _, p := range c.Peers() {
			if len(p.Key) != 32 || Overlay(p.Address.Addr().Unmap()) || p.URL.Scheme != "wss" || linkURL(p, "/x").String() == "" {
				t.Fatalf("took the peer %+v", p)
			}
		}
	})
}

// TestTemplate renders the laptop's configuration as the image does and reads it
// as the laptop does.
func TestTemplate(t *testing.T) {
	const path = "../../overlay/usr/share/veilor/ygg.json.tmpl"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := template.New("ygg.json").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
	}).Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	peer := func(name, addr, key string) site.Peer {
		p := site.Peer{Name: name, URL: "wss://" + name + ".example.org/", Key: site.Key(key)}
		if err := p.Address.UnmarshalText([]byte(addr)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	edge1, edge2 := peer("edge-1", "192.0.2.7:443", keyA), peer("edge-2", "[2001:db8::7]:443", keyA)
	public := peer("peer", "198.51.100.7:443", keyB)
	for name, s := range map[string]*site.Site{
		"nobody":                    {},
		"one edge":                  {Yggdrasil: site.Yggdrasil{Edges: []site.Peer{edge1}}},
		"edges and a public peer":   {Yggdrasil: site.Yggdrasil{Edges: []site.Peer{edge1, edge2}, Public: []site.Peer{public}}},
		"a public peer and no edge": {Yggdrasil: site.Yggdrasil{Public: []site.Peer{public}}},
	} {
		var out bytes.Buffer
		if err := tmpl.Execute(&out, s); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c, err := ParseConfig("ygg.json", out.Bytes())
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out.Bytes())
		}
		// Over the fallback a laptop opens no port to anybody.
		if c.Server() || c.SitePath != "" || len(c.Accept) > 0 || c.GroupPasswordPath != ygggroup.Path {
			t.Errorf("%s: %+v; want a laptop that opens nothing, with its group's password in %s", name, c, ygggroup.Path)
		}
		var got []string
		for _, p := range c.Peers() {
			got = append(got, p.Name)
		}
		var want []string
		for _, p := range s.Peers() {
			want = append(want, p.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: peers -want +got\n%s", name, diff)
		}
		if len(c.Listen) != 0 || len(c.Accept) != 0 || len(c.AllowedPublicKeys) != len(want) || c.IfName != "ygg0" {
			t.Errorf("%s: a laptop listens, accepts or allows: %s", name, out.Bytes())
		}
	}
}

// TestWithGroup: a laptop may be without the group's password, a server not; and
// it is nowhere to be seen.
func TestWithGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "group")
	laptop := &Config{GroupPasswordPath: path}
	server := &Config{GroupPasswordPath: path, ControlSocket: "/run/control.sock"}
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	if c, err := laptop.WithGroup(now); err != nil || c.Group != (Secret{}) {
		t.Errorf("a laptop without: %v, %v", c, err)
	}
	if _, err := server.WithGroup(now); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "answer strangers") {
		t.Errorf("a server without: %v", err)
	}
	if c, err := new(Config).WithGroup(now); err != nil || c.Group != (Secret{}) {
		t.Errorf("none wanted: %v, %v", c, err)
	}
	const text = "correct horse battery"
	if err := os.WriteFile(path, []byte("from 2026-12-01T00:00:00Z\n"+text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Config{laptop, server} {
		before, err := c.WithGroup(now.Add(-time.Second))
		if err != nil || before.Group != (Secret{}) {
			t.Errorf("before its time: %v, %v", before, err)
		}
		after, err := c.WithGroup(now)
		if err != nil || after.Group.text != text || reflect.DeepEqual(before, after) {
			t.Fatalf("in its time: %v, %v", after, err)
		}
		for _, verb := range []string{"%v", "%+v", "%#v"} {
			if got := fmt.Sprintf(verb, after); strings.Contains(got, "horse") {
				t.Errorf("%s prints %s", verb, got)
			}
		}
		if data, err := json.Marshal(after); err != nil || strings.Contains(string(data), "horse") {
			t.Errorf("JSON: %s, %v", data, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := laptop.WithGroup(now); err == nil || strings.Contains(err.Error(), "horse") {
		t.Errorf("others may read it: %v", err)
	}
}
