package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/quiet"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	now    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	at1042 = time.Date(2026, 11, 22, 10, 42, 0, 0, time.UTC)
	old    = time.Date(2026, 11, 19, 9, 3, 0, 0, time.UTC)
)

func health(l mesh.Layer, s mesh.State, at time.Time, rtt time.Duration, why string) mesh.Health {
	h := mesh.Health{Layer: l, State: s, Since: at, RTT: rtt, Err: why}
	if rtt > 0 {
		h.Answer = at
	}
	return h
}

// report is one of a laptop on a good day, then changed.
func report(change func(*Report), layers ...mesh.Health) *Report {
	st := forward.Status{Name: "x.veilor", Layers: layers}
	for _, h := range layers {
		if h.State == mesh.Up && st.Active == "" {
			st.Active, st.Since = h.Layer, h.Since
		}
	}
	encrypted := true
	r := &Report{
		System: System{Name: "veilor-os", Image: "ghcr.io/veilor/veilor-os:44", Version: "44.20261122.0", Signature: "containerPolicy", Encrypted: &encrypted,
			Digest: "sha256:4e0c000000000000000000000000000000000000000000000000000000000000"},
		Mesh:      Mesh{Joined: true, Hostname: "laptop-7f", Address: "100.64.0.3", Tags: []string{"tag:guest"}, Tier: "guest", Opens: []string{"x.veilor:443"}},
		Services:  Services([]forward.Status{st}),
		Yggdrasil: Yggdrasil{Key: "ab", Address: "200::1", Peer: "edge-2", Up: true},
		Directory: signed(now.AddDate(0, -1, 0), now.AddDate(0, 6, 0)),
	}
	if change != nil {
		change(r)
	}
	if r.Mesh.Tags == nil {
		r.Mesh.Tags = []string{}
	}
	r.Judge(now)
	return r
}

func signed(made, expires time.Time) Directory {
	return DirectoryOf(directory.Directory{Origin: directory.Signed, Version: 3, Moves: 8, Made: made, Expires: expires})
}

var cases = map[string]*Report{
	"admin": report(func(r *Report) {
		r.Mesh.Tags, r.Mesh.Tier, r.Mesh.Opens = []string{"tag:admin"}, "admin", []string{"*:*"}
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"two-tags": report(func(r *Report) {
		r.Mesh.Tags, r.Mesh.Tier, r.Mesh.Opens = []string{"tag:admin", "tag:guest"}, "", nil
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"good": report(func(r *Report) { r.Services[0].Path = "direct" },
		health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"blocked": report(nil,
		health(mesh.Tailnet, mesh.Down, at1042, 0, "no answer"), health(mesh.Yggdrasil, mesh.Up, at1042, 4400*time.Microsecond, "")),
	"blocked-for-days": report(nil,
		health(mesh.Tailnet, mesh.Suspect, old, 0, "no answer"), health(mesh.Yggdrasil, mesh.Up, old, 44*time.Millisecond, "")),
	"nothing-answers": report(func(r *Report) { r.Yggdrasil.Up = false },
		health(mesh.Tailnet, mesh.Down, at1042, 0, "no answer"), health(mesh.Yggdrasil, mesh.Down, at1042, 0, "no answer")),
	"no-fallback": report(nil,
		health(mesh.Tailnet, mesh.Up, at1042, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Off, at1042, 0, "no interface ygg0")),
	"tailnet-gone": report(nil,
		health(mesh.Tailnet, mesh.Off, at1042, 0, "no interface tailscale0"), health(mesh.Yggdrasil, mesh.Up, at1042, 44*time.Millisecond, "")),
	"fresh": report(func(r *Report) { r.Mesh = Mesh{Tags: []string{}}; r.Yggdrasil = Yggdrasil{} },
		health(mesh.Tailnet, mesh.Off, at1042, 0, "no interface tailscale0"), health(mesh.Yggdrasil, mesh.Off, at1042, 0, "no interface ygg0")),
	"quiet": report(func(r *Report) {
		r.Services[0].Layer, r.Mesh, r.Yggdrasil = None, Mesh{}, Yggdrasil{}
		until := now.Add(time.Hour)
		r.Quiet = &quiet.State{Since: at1042, Until: &until}
	}, health(mesh.Tailnet, mesh.Off, at1042, 0, "no interface tailscale0"), health(mesh.Yggdrasil, mesh.Off, at1042, 0, "no interface ygg0")),
	"visitors": report(func(r *Report) {
		r.Services[0].Refused = map[string]Refused{
			forward.WrongName: {3, now.Add(-10 * time.Minute), "evil.example"}, forward.Full: {7, now.Add(-time.Minute), ""}, forward.NotTLS: {1, now.Add(-5 * time.Hour), ""},
		}
		r.Services[0].Canary = &Canary{Layer: "yggdrasil", At: now.Add(-time.Hour), Failures: 2, Error: "no answer"}
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"broken": report(func(r *Report) {
		plain := false
		r.Services = []Service{{Name: "x.veilor", Layer: None, Layers: []Layer{}}}
		r.Unknown.Mesh = errors.New("connecting to /run/veilor/mesh.sock: connection refused")
		r.System.Signature, r.System.Encrypted, r.System.Staged = "insecure", &plain, "44.20261129.0"
	}),
	"stale-directory": report(func(r *Report) {
		r.Directory = signed(now.AddDate(-1, 0, 0), now.AddDate(0, 0, -20))
		r.Unknown.Directory = errors.New("reading the PEM block: damaged")
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"clock-behind": report(func(r *Report) { r.Directory = signed(now.AddDate(1, 0, 0), now.AddDate(2, 0, 0)) },
		health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"directory-ignored": report(func(r *Report) {
		r.Directory = DirectoryOf(directory.Directory{Origin: directory.Image})
		r.Unknown.Directory = errors.New("reading the directory in the image: no root")
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"unsigned-image": report(func(r *Report) { r.Directory = DirectoryOf(directory.Directory{Origin: directory.Image}) },
		health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"filters-restored": report(func(r *Report) {
		r.Yggdrasil.Filters = &Filters{Restored: 2, Last: now.Add(-20 * time.Minute), By: "nft"}
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"filters-missing": report(func(r *Report) {
		r.Yggdrasil.Filters = &Filters{Restored: 40, Last: now.Add(-time.Minute), Missing: true}
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
	"not-root": report(func(r *Report) {
		r.System = System{Name: "veilor-os", Version: "44.20261122.0", Encrypted: r.System.Encrypted}
		r.Unknown.NeedsRoot, r.Unknown.Image = true, errors.New("x")
	}, health(mesh.Tailnet, mesh.Up, old, 14*time.Millisecond, ""), health(mesh.Yggdrasil, mesh.Up, old, 31*time.Millisecond, "")),
}

func TestGolden(t *testing.T) {
	old := time.Local
	time.Local = time.UTC
	defer func() { time.Local = old }()
	for name, r := range cases {
		var text, js bytes.Buffer
		if err := r.Text(&text); err != nil {
			t.Fatal(err)
		}
		enc := json.NewEncoder(&js)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		for ext, got := range map[string][]byte{".txt": text.Bytes(), ".json": js.Bytes()} {
			path := filepath.Join("testdata", name+ext)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got; run with -update if it is right):\n%s", path, diff)
			}
		}
	}
}

// TestTable holds the conditions to their form.
func TestTable(t *testing.T) {
	code := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	seen := map[string]bool{}
	for _, k := range table {
		if !code.MatchString(k.code) || seen[k.code] {
			t.Errorf("code %q is malformed or there twice", k.code)
		}
		seen[k.code] = true
		if k.todo == "" || k.means == "" || k.level == "" {
			t.Errorf("%s does not say what it means and what to do", k.code)
		}
	}
	said := map[string]bool{}
	for _, r := range cases {
		for _, c := range r.Conditions {
			said[c.Code] = true
		}
	}
	for code := range seen {
		switch code {
		case "tailnet-unknown", "encryption-unknown", "not-an-image", "image-unreadable":
			continue
		case DirectoryUnsigned, DirectoryOlder, DirectoryExpired, DirectoryOversized, DirectoryDamaged, ReserveStranger:
			continue // said by mesh import
		}
		if !said[code] {
			t.Errorf("no case shows %s", code)
		}
	}
}

// TestGoodDayIsQuiet: nothing to do means nothing said.
func TestGoodDayIsQuiet(t *testing.T) {
	if c := cases["good"].Conditions; len(c) != 0 {
		t.Errorf("%+v", c)
	}
}

// TestKinds: the list for people and the one for the docs have every condition.
func TestKinds(t *testing.T) {
	var text, md bytes.Buffer
	if err := errors.Join(KindsText(&text), KindsMarkdown(&md)); err != nil {
		t.Fatal(err)
	}
	for _, k := range Kinds() {
		if !strings.Contains(text.String(), "\n  "+k.Means) || !strings.Contains(md.String(), "| `"+k.Code+"` |") {
			t.Errorf("%s is missing", k.Code)
		}
	}
	if n := strings.Count(md.String(), "\n"); n != len(Kinds())+2 {
		t.Errorf("%d lines", n)
	}
	summary, body := cases["visitors"].Conditions[0].Notification()
	if !strings.HasPrefix(summary, "x.veilor: ") || !strings.HasSuffix(body, "]") {
		t.Errorf("%q, %q", summary, body)
	}
}
