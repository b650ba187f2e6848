package overlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/veilor/veilor-os/internal/site"
)

// testSite is complete, with two groups of which one has two keys.
func testSite(t *testing.T) *site.Site {
	t.Helper()
	key := "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
	s, err := site.Parse("site.yaml", []byte(`
zone: veilor
os: {name: veilor-os, release: 44, home: "https://github.com/veilor/veilor-os"}
image:
  ref: ghcr.io/veilor/veilor-os
  base: ghcr.io/secureblue/kinoite-main-hardened
  signatures:
    - {name: ci, keys: [a.pub, b.pub]}
    - {name: release, keys: [c.pub]}
control: {url: "https://hs.example.org"}
authority: authority.pem
tiers: [{name: guest, tag: "tag:guest", reach: ["x.veilor:443"]}, {name: infra, tag: "tag:infra", reach: []}]
hosts: [{name: nullstone, tier: infra, tailnet: 100.64.0.1, yggdrasil: "`+strings.Repeat("ab", 32)+`"}]
services: [{name: x.veilor, host: nullstone, ports: [443], loopback: 127.83.0.1}]
yggdrasil:
  edges: [{name: edge-1, url: "wss://edge.example.org/", address: "192.0.2.1:443", key: "`+strings.Repeat("cd", 32)+`"}]
  public: []
`))
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Image.Signatures {
		for j := range s.Image.Signatures[i].Keys {
			s.Image.Signatures[i].Keys[j].Data = []byte(key)
		}
	}
	s.Authority.Data = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	return s
}

func TestRender(t *testing.T) {
	tree, err := Render(fstest.MapFS{
		"undo.yaml":                       {Data: []byte("undo: []\n")},
		"usr/libexec/a":                   {Data: []byte("#!/bin/sh\n"), Mode: 0o700},
		"etc/b":                           {Data: []byte("b"), Mode: 0o666},
		"usr/share/veilor/peer.json.tmpl": {Data: []byte(`{"e":{{ json .PeerKeys }},"r":"{{ resolver }}","h":"{{ .ControlHost }}","m":"{{ mirror }}","a":"{{ der .Authority.Data }}"}`)},
		"etc/systemd/system/x.timer":      {Data: []byte("/dev/null"), Mode: fs.ModeSymlink},
	}, testSite(t))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range tree {
		got[e.Path] = e.Perm().String() + " " + e.Group.String()
	}
	want := map[string]string{
		"etc/b":                      "-rw-r--r-- config",
		"etc/containers/policy.json": "-rw-r--r-- site",
		"etc/pki/ca-trust/source/anchors/veilor-authority.pem": "-rw-r--r-- site",
		"etc/systemd/system/x.timer":                           "-rwxrwxrwx config",
		"usr/lib/firewalld/zones/veilor-tailnet.xml":           "-rw-r--r-- site",
		"usr/lib/firewalld/zones/veilor-ygg.xml":               "-rw-r--r-- site",
		"usr/libexec/a":                                        "-rwxr-xr-x config",
		"usr/share/pki/containers/veilor-ci-1.pub":             "-rw-r--r-- site",
		"usr/share/pki/containers/veilor-ci-2.pub":             "-rw-r--r-- site",
		"usr/share/pki/containers/veilor-release-1.pub":        "-rw-r--r-- site",
		"usr/share/veilor/peer.json":                           "-rw-r--r-- site",
		"usr/share/veilor/site.yaml":                           "-rw-r--r-- site",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	e, _ := tree.Find("usr/share/veilor/peer.json")
	wantJSON := `{"e":["` + strings.Repeat("cd", 32) + `"],"r":"127.83.0.53","h":"hs.example.org","m":"dl.veilor/veilor/veilor-os","a":"AAAA"}`
	if string(e.Data) != wantJSON {
		t.Errorf("got  %s\nwant %s", e.Data, wantJSON)
	}
	if err := tree.Check(nil); err != nil {
		t.Errorf("a link to /dev/null: %v", err)
	}
}

func TestRenderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		fs   fstest.MapFS
		want string
	}{
		"outside":     {fstest.MapFS{"var/lib/x": {}}, "var/lib/x: only usr/ and etc/ belong to the image"},
		"top level":   {fstest.MapFS{"README.md": {}}, "README.md: only usr/ and etc/"},
		"usr/etc":     {fstest.MapFS{"usr/etc/x": {}}, "usr/etc/x: usr/etc is ostree's own; move it to etc/"},
		"setuid":      {fstest.MapFS{"usr/bin/x": {Mode: 0o755 | fs.ModeSetuid}}, "usr/bin/x: setuid or setgid; remove it (chmod ug-s)"},
		"setgid":      {fstest.MapFS{"usr/bin/x": {Mode: 0o755 | fs.ModeSetgid}}, "setuid or setgid"},
		"device":      {fstest.MapFS{"usr/x": {Mode: fs.ModeNamedPipe}}, "neither a file nor a link"},
		"whiteout":    {fstest.MapFS{"usr/.wh.x": {}}, "list what is to be removed in undo.yaml"},
		"private key": {fstest.MapFS{"etc/k": {Data: []byte("-----BEGIN EC PRIVATE KEY-----\n")}}, "etc/k: holds a private key"},
		"template":    {fstest.MapFS{"etc/k.tmpl": {Data: []byte("{{ .Colour }}")}}, "can't evaluate field Colour"},
		"syntax":      {fstest.MapFS{"etc/k.tmpl": {Data: []byte("{{")}}, "template: etc/k.tmpl:1:"},
		"both forms":  {fstest.MapFS{"etc/k.tmpl": {}, "etc/k": {}}, "/etc/k is there twice"},
		"made twice":  {fstest.MapFS{"etc/containers/policy.json": {}}, "/etc/containers/policy.json is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Render(c.fs, testSite(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
		})
	}
	s := testSite(t)
	s.Authority.Data = nil
	if _, err := Render(fstest.MapFS{}, s); err == nil || !strings.Contains(err.Error(), "authority create") {
		t.Errorf("an incomplete site: %v", err)
	}
}

func TestCheckLinks(t *testing.T) {
	link := func(p, to string) Tree { return Tree{{Path: p, Link: to}, {Path: "usr/lib/d/f"}} }
	for _, c := range []struct {
		tree   Tree
		inBase func(string) bool
		ok     bool
	}{
		{link("etc/a", "/usr/lib/d/f"), nil, true},
		{link("etc/a", "../usr/lib/d"), nil, true},
		{link("etc/a", "/dev/null"), nil, true},
		{link("etc/a", "/usr/bin/bash"), nil, false},
		{link("etc/a", "../../dev/null"), nil, false},
		{link("etc/a", "/usr/bin/bash"), func(p string) bool { return p == "usr/bin/bash" }, true},
		{link("etc/a", "/usr/bin/bash"), func(p string) bool { return false }, false},
	} {
		if err := c.tree.Check(c.inBase); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.tree[0].Link, err)
		}
	}
}

// A tree that is written has its own modes, whatever the umask.
func TestWriteIgnoresUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	tree := Tree{{Path: "etc/l", Link: "/dev/null"}, {Path: "usr/bin/x", Exec: true}, {Path: "usr/share/y", Data: []byte("y")}}
	if err := tree.Write(dir); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]fs.FileMode{"usr": 0o755, "usr/bin": 0o755, "usr/bin/x": 0o755, "usr/share/y": 0o644} {
		info, err := os.Stat(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s: %v, want %v", p, info.Mode().Perm(), want)
		}
	}
}

func TestPolicy(t *testing.T) {
	var p struct {
		Default    []requirement
		Transports map[string]map[string][]requirement
	}
	if err := json.Unmarshal(Policy(testSite(t)), &p); err != nil {
		t.Fatal(err)
	}
	reject := []requirement{{Type: "reject"}}
	if d := cmp.Diff(reject, p.Default); d != "" {
		t.Error(d)
	}
	original := &identity{Type: "exactRepository", DockerRepository: "ghcr.io/veilor/veilor-os"}
	want := map[string][]requirement{"ghcr.io/veilor/veilor-os": {
		{Type: "sigstoreSigned", KeyPaths: []string{"/usr/share/pki/containers/veilor-ci-1.pub", "/usr/share/pki/containers/veilor-ci-2.pub"}, SignedIdentity: &identity{Type: "matchRepository"}},
		{Type: "sigstoreSigned", KeyPath: "/usr/share/pki/containers/veilor-release-1.pub", SignedIdentity: &identity{Type: "matchRepository"}},
	}, "dl.veilor/veilor/veilor-os": {
		{Type: "sigstoreSigned", KeyPaths: []string{"/usr/share/pki/containers/veilor-ci-1.pub", "/usr/share/pki/containers/veilor-ci-2.pub"}, SignedIdentity: original},
		{Type: "sigstoreSigned", KeyPath: "/usr/share/pki/containers/veilor-release-1.pub", SignedIdentity: original},
	}}
	if d := cmp.Diff(want, p.Transports["docker"]); d != "" {
		t.Error(d)
	}
	for _, tr := range transports {
		if d := cmp.Diff(map[string][]requirement{"": reject}, p.Transports[tr]); d != "" {
			t.Errorf("%s: %s", tr, d)
		}
	}
}

// The real overlay must render, with links that lead somewhere.
func TestRealOverlay(t *testing.T) {
	src := os.DirFS(filepath.Join("..", "..", "overlay"))
	tree, err := Render(src, testSite(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Check(nil); err != nil {
		t.Error(err)
	}
	list, err := LoadUndo(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range list {
		if _, ok := tree.Find(strings.TrimPrefix(u.Path, "/")); ok != (u.Action == Replace) {
			t.Errorf("%s: action %s, in the overlay: %v", u.Path, u.Action, ok)
		}
	}
}

const undoText = `
undo:
  - path: /etc/a
    also: [/usr/etc/a]
    why: it's "so"
    expect: [one's, "$two"]
    action: remove
  - path: /usr/bin/sudo
    why: gone
    expect_absent: true
    action: note
  - path: /usr/v
    also: [/usr/etc/v]
    why: ours
    expect: [v]
    action: replace
  - path: /usr/j
    why: a line more
    expect: [first]
    action: append
    text: import 'ours'
`

// What the native plan and the shell script do to a base must be the same.
func TestPlanAndScriptAgree(t *testing.T) {
	good := map[string]string{"/etc/a": "x one's $two", "/usr/etc/a": "one's $two", "/usr/v": "v", "/usr/etc/v": "v", "/usr/j": "first\n"}
	with := func(change map[string]string, without ...string) map[string]string {
		m := map[string]string{}
		for k, v := range good {
			m[k] = v
		}
		for k, v := range change {
			m[k] = v
		}
		for _, k := range without {
			delete(m, k)
		}
		return m
	}
	list, err := ParseUndo("undo.yaml", []byte(undoText))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		base map[string]string
		gone []string
		want string // part of the error
	}{
		"as expected":   {good, []string{"/etc/a", "/usr/etc/a", "/usr/etc/v"}, ""},
		"no twin":       {with(nil, "/usr/etc/a", "/usr/etc/v"), []string{"/etc/a"}, ""},
		"only the twin": {with(nil, "/etc/a", "/usr/etc/v"), []string{"/usr/etc/a"}, ""},
		"text changed":  {with(map[string]string{"/etc/a": "one's three"}), nil, "/etc/a: "},
		"twin changed":  {with(map[string]string{"/usr/etc/a": ""}), nil, "/usr/etc/a"},
		"no last line":  {with(map[string]string{"/usr/j": "first"}), []string{"/etc/a", "/usr/etc/a", "/usr/etc/v"}, ""},
		"already there": {with(map[string]string{"/usr/j": "first\nimport 'ours'\nlast\n"}), []string{"/etc/a", "/usr/etc/a", "/usr/etc/v"}, ""},
		"gone":          {with(nil, "/etc/a", "/usr/etc/a"), nil, "is not there any more"},
		"back again":    {with(map[string]string{"/usr/bin/sudo": ""}), nil, "is there again"},
	} {
		t.Run(name, func(t *testing.T) {
			read := func(p string) ([]byte, error) {
				if d, ok := c.base[p]; ok {
					return []byte(d), nil
				}
				return nil, fs.ErrNotExist
			}
			gone, err := Plan(list, Tree{{Path: "usr/v"}}, read)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("plan: got %v, want %q", err, c.want)
			}
			if err != nil && !errors.As(err, new(Changed)) {
				t.Errorf("%T is not Changed", err)
			}
			if d := cmp.Diff(c.gone, gone); err == nil && d != "" {
				t.Errorf("plan: %s", d)
			}

			root := t.TempDir()
			for p, text := range c.base {
				file := filepath.Join(root, p)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sh := exec.Command("sh", "-s")
			sh.Env = append(os.Environ(), "VEILOR_UNDO_ROOT="+root)
			sh.Stdin = strings.NewReader(string(Script(list)))
			out, err := sh.CombinedOutput()
			if (err == nil) != (c.want == "") || !strings.Contains(string(out), c.want) {
				t.Fatalf("script: %v, %s", err, out)
			}
			if c.want == "" {
				added, err := Appended(list, read)
				if err != nil || len(added) != 1 {
					t.Fatalf("appended: %v, %v", added, err)
				}
				got, err := os.ReadFile(filepath.Join(root, "usr/j"))
				if err != nil || string(got) != string(added[0].Data) {
					t.Errorf("script: %q, %v, plan: %q", got, err, added[0].Data)
				}
				if strings.Count(string(got), "import 'ours'\n") != 1 || !strings.HasPrefix(string(got), "first\n") {
					t.Errorf("appended: %q", got)
				}
			}
			for p := range c.base {
				_, err := os.Stat(filepath.Join(root, p))
				removed := errors.Is(err, fs.ErrNotExist)
				want := false
				for _, g := range c.gone {
					want = want || g == p
				}
				if removed != want {
					t.Errorf("script: %s removed: %v, want %v", p, removed, want)
				}
			}
		})
	}
}

func TestParseUndoRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"undo:\n  - path: a\n    why: b\n    expect: [c]\n    action: note\n", `undo.yaml:2: undo[0].path: "a" is no absolute path`},
		{"undo:\n  - path: /a\n    expect: [c]\n    action: note\n", `why: missing`},
		{"undo:\n  - path: /a\n    why: b\n    action: note\n", `write either expect`},
		{"undo:\n  - path: /a\n    why: b\n    expect: [c]\n    expect_absent: true\n    action: note\n", `write either expect`},
		{"undo:\n  - path: /a\n    why: b\n    expect: [c]\n    action: burn\n", `undo.yaml:5: undo[0].action: "burn"; write remove, replace, append or note`},
		{"undo:\n  - path: /a\n    why: b\n    expect_absent: true\n    action: remove\n", `remove of a file that must be absent`},
		{"undo:\n  - path: /a\n    why: b\n    expect: [c]\n    action: note\n  - path: /a\n    why: b\n    expect: [c]\n    action: note\n", `/a is there twice`},
		{"undo:\n  - path: /a\n    why: b\n    expect: [c]\n    action: append\n", `append wants one line of text`},
		{"undo:\n  - path: /a\n    why: b\n    expect: [c]\n    action: note\n    text: x\n", `append wants one line of text`},
		{"undo:\n  - path: /a\n    also: [/b]\n    why: b\n    expect: [c]\n    action: append\n    text: x\n", `leave the copies out`},
		{"undo:\n  - route: /a\n", `undo.yaml:2: unknown field "route"`},
	} {
		if _, err := ParseUndo("undo.yaml", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got  %v\nwant …%s…", err, c.want)
		}
	}
}

func FuzzParseUndo(f *testing.F) {
	f.Add([]byte(undoText))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseUndo("undo.yaml", data)
		if err != nil {
			return
		}
		script := Script(list)
		sh := exec.Command("sh", "-n")
		sh.Stdin = bytes.NewReader(script)
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("no script: %v: %s\n%s", err, out, script)
		}
		for _, u := range list {
			for _, p := range u.paths() {
				if !bytes.Contains(script, []byte(quote(p))) {
					t.Errorf("nothing is done about %q", p)
				}
			}
		}
	})
}

// The replacement of secureblue's script asks the same two tools, and refuses
// what its configuration does not name.
func TestVerifyProvenance(t *testing.T) {
	script, err := filepath.Abs(filepath.Join("..", "..", "overlay", "usr", "libexec", "secureblue", "verify-provenance.sh"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Render(os.DirFS(filepath.Join("..", "..", "overlay")), testSite(t))
	if err != nil {
		t.Fatal(err)
	}
	conf, ok := tree.Find("usr/share/veilor/provenance.conf")
	if !ok {
		t.Fatal("no provenance.conf in the overlay")
	}
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("conf", string(conf.Data))
	put("rpm-ostree", "#!/bin/sh\necho \"$REF\"\n")
	put("jq", "#!/bin/sh\ncat\n")
	put("crane", "#!/bin/sh\necho \"$3@sha256:00\"\n")
	put("slsa-verifier", "#!/bin/sh\necho \"slsa $*\"\nexit \"$SLSA\"\n")
	for _, c := range []struct {
		ref, slsa, want string
		ok              bool
	}{
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os:44", "0", "slsa verify-image --source-uri github.com/veilor/veilor-os --source-branch main ghcr.io/veilor/veilor-os:44@sha256:00", true},
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os:44@sha256:11", "0", "slsa verify-image", true},
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os:44", "1", "slsa verify-image", false},
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os:br-x", "0", "unknown image tag 'br-x'", false},
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os-x:44", "0", "unknown image reference", false},
		{"ostree-image-signed:docker://ghcr.io/veilor/veilor-os", "0", "unknown image reference", false},
		{"ostree-image-signed:docker://ghcr.io/secureblue/kinoite-main-hardened:latest", "0", "unknown image reference", false},
	} {
		cmd := exec.Command("bash", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "VEILOR_PROVENANCE_CONF="+filepath.Join(dir, "conf"), "REF="+c.ref, "SLSA="+c.slsa)
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.ok || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v\n%s\nwant …%s…", c.ref, err, out, c.want)
		}
	}
}

func TestBasePolicy(t *testing.T) {
	kept, err := ParseBasePolicy("p", []byte(`
scopes:
  - {scope: quay.io/a, keys: [/k1, /k2]}
  - {scope: registry.redhat.io, keys: [/g], gpg: true}
  - {scope: ghcr.io/b, keys: [/k], as: gcr.io/b}
`))
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Transports map[string]map[string][]requirement
	}
	if err := json.Unmarshal(Policy(testSite(t), kept...), &p); err != nil {
		t.Fatal(err)
	}
	docker := p.Transports["docker"]
	for scope, want := range map[string][]requirement{
		"":                   {{Type: "reject"}},
		"quay.io/a":          {{Type: "sigstoreSigned", KeyPaths: []string{"/k1", "/k2"}, SignedIdentity: &identity{Type: "matchRepository"}}},
		"registry.redhat.io": {{Type: "signedBy", KeyType: "GPGKeys", KeyPath: "/g"}},
		"ghcr.io/b":          {{Type: "sigstoreSigned", KeyPath: "/k", SignedIdentity: &identity{Type: "exactRepository", DockerRepository: "gcr.io/b"}}},
	} {
		if d := cmp.Diff(want, docker[scope]); d != "" {
			t.Errorf("%q: %s", scope, d)
		}
	}
	if len(docker["ghcr.io/veilor/veilor-os"]) != 2 || len(docker) != 6 {
		t.Errorf("scopes: %v", docker)
	}
	for _, c := range []struct{ text, want string }{
		{"scopes: [{scope: '', keys: [/k]}]", "is no registry"},
		{"scopes: [{scope: localhost, keys: [/k]}]", "is no registry"},
		{"scopes: [{scope: '*.io', keys: [/k]}]", "is no registry"},
		{"scopes: [{scope: a.io}]", "keys: missing"},
		{"scopes: [{scope: a.io, keys: [k]}]", "no absolute path"},
		{"scopes: [{scope: a.io, keys: [/k]}, {scope: a.io, keys: [/k]}]", "twice"},
		{"scopes: [{scope: a.io, keys: [/k], gpg: true, as: b.io}]", "leave it out"},
	} {
		if _, err := ParseBasePolicy("p", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want …%s…", c.text, err, c.want)
		}
	}
}

func FuzzParseBasePolicy(f *testing.F) {
	f.Add([]byte("scopes: [{scope: a.io, keys: [/k], gpg: true}, {scope: b.io/c, keys: [/k, /l], as: b.io/d}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		kept, err := ParseBasePolicy("p", data)
		if err != nil {
			return
		}
		for _, b := range kept {
			for _, r := range b.requirements() {
				if r.Type == "insecureAcceptAnything" || (r.KeyPath == "" && len(r.KeyPaths) == 0) {
					t.Errorf("%+v: %+v", b, r)
				}
			}
		}
	})
}
