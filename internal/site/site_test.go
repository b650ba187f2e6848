package site

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const aPEM = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"

// whole is a complete site: nothing is left for the operator to supply.
const whole = `zone: veilor
os:
  name: veilor-os
  release: 44
  home: https://example.org/
image:
  ref: ghcr.io/veilor/veilor-os
  base: ghcr.io/secureblue/kinoite-main-hardened
  signatures:
    - name: ci
      keys: [keys/ci.pub]
control:
  url: https://hs.example.org
authority: keys/authority.pem
tiers:
  - name: infra
    tag: tag:infra
    reach: ["infra:*"]
  - name: guest
    tag: tag:guest
    reach: ["x.veilor:443"]
hosts:
  - name: nullstone
    tier: infra
    tailnet: 100.64.0.1
    yggdrasil: 0000000000000000000000000000000000000000000000000000000000000001
services:
  - name: x.veilor
    host: nullstone
    ports: [443]
    loopback: 127.83.0.1
yggdrasil:
  edges:
    - name: edge-1
      url: wss://edge.example.org/
      address: 192.0.2.1:443
      key: 0000000000000000000000000000000000000000000000000000000000000002
  public: []
`

func writeSite(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"veilor.yaml": text, "keys/ci.pub": aPEM, "keys/authority.pem": aPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "veilor.yaml")
}

func TestWholeSiteIsComplete(t *testing.T) {
	s, err := Load(writeSite(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	if got := s.ControlHost(); got != "hs.example.org" {
		t.Errorf("control host %q", got)
	}
}

func TestInlineRoundTrip(t *testing.T) {
	s, err := Load(writeSite(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.Inline()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("inline.yaml", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := again.Complete(); err != nil {
		t.Fatalf("an inlined site names no file, so nothing can be missing: %v", err)
	}
	text2, err := again.Inline()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(text2)); diff != "" {
		t.Errorf("Inline of Inline differs:\n%s", diff)
	}
}

// The site of the project itself must parse; what it lacks must be exactly what
// only its operator can make.
func TestProjectSite(t *testing.T) {
	s, err := Load("../../site/veilor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(); err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			if !strings.Contains(line, ": not set: ") {
				t.Errorf("not a line that says what is missing and how it is made: %s", line)
			}
		}
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "zone: veilor\n", "zone: veilor\ncolour: red\n", `site.yaml:2: unknown field "colour"`},
		{"wrong type", "release: 44", "release: soon", "site.yaml:4: want a whole number, got text"},
		{"not YAML", "zone: veilor", "zone: [veilor", "site.yaml:"},
		{"no zone", "zone: veilor\n", "", "zone: missing; write for example veilor"},
		{"release", "release: 44", "release: 0", "site.yaml:4: os.release: 0 is no Fedora release"},
		{"tag in ref", "ref: ghcr.io/veilor/veilor-os", "ref: ghcr.io/veilor/veilor-os:44", "site.yaml:7: image.ref:"},
		{"plain http", "url: https://hs", "url: http://hs", "site.yaml:13: control.url:"},
		{"unknown tier", "    tier: infra", "    tier: infar", `site.yaml:24: hosts[0].tier: "infar" is not under tiers`},
		{"unknown target", "infra:*", "infar:*", `site.yaml:18: tiers[0].reach[0]: "infar" is neither a tier nor a service`},
		{"no guest", "name: guest", "name: gast", "no tier guest"},
		{"public tailnet address", "100.64.0.1", "192.0.2.7", "site.yaml:25: hosts[0].tailnet: 192.0.2.7 is not in 100.64.0.0/10"},
		{"short key", "0000000000000000000000000000000000000000000000000000000000000001", "\"01\"", "site.yaml:26: hosts[0].yggdrasil:"},
		{"unknown host", "host: nullstone", "host: nulstone", `services[0].host: "nulstone" is not under hosts`},
		{"outside zone", "name: x.veilor", "name: x.example", "services[0].name:"},
		{"stub's address", "loopback: 127.83.0.1", "loopback: 127.83.0.53", "is not free for a service"},
		{"port 0", "ports: [443]", "ports: [0]", "0 is no port"},
		{"path outside", "keys/authority.pem", "../authority.pem", "leaves the site's directory"},
		{"peer not wss", "wss://edge", "tls://edge", "is not a wss URL"},
		{"private key", "keys: [keys/ci.pub]", "keys: [\"-----BEGIN PRIVATE KEY-----\"]", "this is a private key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(whole, c.old, c.new, 1)
			if text == whole {
				t.Fatal("the mistake was not made")
			}
			_, err := Parse("site.yaml", []byte(text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
			var p Problem
			if !errors.As(err, &p) {
				t.Errorf("%T is no Problem", err)
			}
		})
	}
}

func TestNamedFileIsPrivateKey(t *testing.T) {
	path := writeSite(t, whole)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "keys/ci.pub"), []byte("-----BEGIN PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "keys/ci.pub: this is a private key") {
		t.Errorf("got %v", err)
	}
}

func TestMissingFilesAreListed(t *testing.T) {
	path := writeSite(t, whole)
	if err := os.Remove(filepath.Join(filepath.Dir(path), "keys/ci.pub")); err != nil {
		t.Fatal(err)
	}
	s, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(); err == nil || !strings.Contains(err.Error(), "image.signatures[0].keys[0] (keys/ci.pub): not set") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Inline(); err == nil {
		t.Error("an incomplete site was inlined")
	}
}

// fuzzLimit is twice the whole site's size: the library that reads YAML takes
// seconds for some kilobytes of brackets, and the fuzzer likes to write them.
const fuzzLimit = 4 << 10

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("zone: veilor\nservices: [{name: x.veilor}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > fuzzLimit {
			return
		}
		s, err := Parse("site.yaml", data)
		if err != nil {
			return
		}
		if s.Complete() != nil {
			return
		}
		text, err := s.Inline()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("inline.yaml", text); err != nil {
			t.Fatalf("what Inline wrote does not parse: %v\n%s", err, text)
		}
	})
}
