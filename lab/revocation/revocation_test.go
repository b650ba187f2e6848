package revocation

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/webca"
	"github.com/veilor/veilor-os/lab/world"
)

var evidence = flag.String("evidence", "", "write what was measured to this `file` (docs/evidence/revocation.json)")

const (
	// cacheVar names the lab's cache.
	cacheVar = "VEILOR_LAB_CACHE"
	// countVar is how many guests are revoked while everybody answers. A few are
	// enough to see that it works; the promise is about 200.
	countVar     = "VEILOR_REVOCATIONS"
	defaultCount = 6
	// batch are joined at a time, and use the service at a time: what two cores
	// bear.
	batch = 10
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

func prepare(t *testing.T) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, nobody is revoked: namespaces need root")
	}
	count := defaultCount
	if text := os.Getenv(countVar); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q: write a number of guests, for example 200", countVar, text)
		}
		count = n
	}
	store := os.Getenv(cacheVar)
	if store == "" {
		store = t.TempDir()
	}
	programs, err := program.Build(t.Context(), "../..", filepath.Join(store, "bin"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := debian.Tools.Build(t.Context(), &cache.Cache{Dir: store}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	tools, err := sandbox.Chroot(tree)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tools.Close() })
	dir, err := os.MkdirTemp("", "revoke") // short, for its sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lab, err := labsite.Make(filepath.Join(dir, "site"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := lab.Certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := webca.Open(filepath.Join(dir, "web"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	authority := x509.NewCertPool()
	authority.AppendCertsFromPEM(lab.Authority.Data)
	logs := filepath.Join(dir, "logs")
	t.Cleanup(func() {
		if t.Failed() {
			gate.ShowLogs(t, logs, "headscale", "edge", "ygg-bystander", "tailscaled-bystander")
		}
	})
	return Config{
		Forge: programs.Forge, SiteFile: lab.File, Authority: authority,
		Dir: filepath.Join(dir, "guests"), Count: count, Batch: max(2, min(count, batch)), Progress: t.Logf,
		World: world.Config{
			Tools: world.Tools{
				Headscale: programs.Headscale, Tailscaled: programs.Tailscaled, Tailscale: programs.Tailscale,
				VeilorYgg: programs.Ygg, PublicPeer: programs.PublicPeer,
				Dnsmasq: func(args ...string) *exec.Cmd {
					return tools.Command(context.WithoutCancel(t.Context()), "dnsmasq", args...)
				},
			},
			Site: lab.Site, SiteFile: lab.File, EdgeKey: lab.EdgeKey, PeerKey: lab.PeerKey, Service: leaf, WebCA: ca,
			Run: filepath.Join(dir, "run"), Logs: logs, Names: filepath.Join(dir, "netns"),
			Progress: func(what string) { t.Log(what) },
		},
	}
}

// Whoever is revoked gets nowhere, on no layer, whatever else is wrong at the
// time; and nobody else notices.
func TestRevocation(t *testing.T) {
	r, err := Run(t.Context(), prepare(t))
	if r != nil {
		for _, c := range r.Cases {
			for _, m := range c.Misses {
				t.Errorf("%s: %s", c.Name, m)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, slow := range r.Slow() {
		t.Log(slow)
	}
	if err := r.Holds(); err != nil {
		t.Error(err)
	}
	if *evidence == "" || t.Failed() {
		return
	}
	text, err := json.MarshalIndent(struct {
		Date   string `json:"date"`
		Commit string `json:"commit"`
		Unit   string `json:"unit"`
		*Result
	}{time.Now().UTC().Format(time.RFC3339), program.Commit("../.."), "seconds", r}, "", "  ")
	if err == nil {
		err = renameio.WriteFile(*evidence, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTimes(t *testing.T) {
	var all []time.Duration
	for i := range 20 {
		all = append(all, time.Duration(20-i)*time.Second)
	}
	if got, want := times(all), (Times{P50: 10, P95: 19, Max: 20, N: 20}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := times(all[:1]), (Times{P50: 20, P95: 20, Max: 20, N: 1}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
