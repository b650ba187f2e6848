package tiers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/acl"
	api "github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/headscale"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/webca"
)

// headscaleProgram is the real Headscale, built from the lab's go.mod.
func headscaleProgram(t testing.TB) string {
	t.Helper()
	dir := gate.Cache(t, "Headscale's reading")
	programs, err := program.Build(t.Context(), "../..", filepath.Join(dir, "bin"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return programs.Headscale
}

// control is a real Headscale in a namespace of its own.
type control struct {
	t      testing.TB
	ns     *namespace.Namespace
	config headscale.Config
	daemon *daemon.Daemon
	roots  *x509.CertPool
}

func newControl(t testing.TB) *control {
	needRoot(t)
	c := &control{t: t}
	program := headscaleProgram(t)
	var err error
	if c.ns, err = namespace.New(rigName("control"), namespace.Options{Dir: NetnsDir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	address := netip.MustParseAddr("127.0.0.1")
	ca, err := webca.Open(filepath.Join(t.TempDir(), "ca"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Files("hs.lab.test")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hs") // short, for its socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.roots = ca.Pool()
	c.config = headscale.Config{
		Binary: program, Dir: dir, Log: filepath.Join(dir, "log"), Host: "hs.lab.test", Address: address,
		CertFile: cert, KeyFile: key, RootFile: ca.CertFile(),
	}
	server, err := headscale.Start(c.t.Context(), c.ns, c.config)
	if err != nil {
		log, _ := os.ReadFile(c.config.Log)
		c.t.Fatalf("%v\n%s", err, log)
	}
	c.daemon = server.Daemon
	t.Cleanup(func() { c.daemon.Stop() })
	return c
}

// kill ends the server as a power cut would.
func (c *control) kill() {
	if err := unix.Kill(c.daemon.PID(), unix.SIGKILL); err != nil {
		c.t.Error(err)
	}
	<-c.daemon.Done()
}

// restartLimit: with 10^4 nodes Headscale computes for a while before it
// listens.
const restartLimit = 20 * time.Minute

// startAgain starts it with the database that it left.
func (c *control) startAgain(cl *api.Client) {
	c.t.Helper()
	cmd := exec.Command(c.config.Binary, "-c", filepath.Join(c.config.Dir, "headscale.yaml"), "serve")
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+c.config.RootFile, "HOME="+c.config.Dir)
	var err error
	if c.daemon, err = daemon.Start(c.ns, "headscale", c.config.Log, cmd); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), restartLimit)
	defer cancel()
	if err := c.daemon.Ready(ctx, func(ctx context.Context) error { _, err := cl.Nodes(ctx); return err }); err != nil {
		c.t.Fatal(err)
	}
}

// run calls the headscale program and returns what it printed.
func (c *control) run(args ...string) string {
	c.t.Helper()
	cmd := exec.Command(c.config.Binary, append([]string{"-c", filepath.Join(c.config.Dir, "headscale.yaml")}, args...)...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+c.config.RootFile, "HOME="+c.config.Dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := c.ns.Run(cmd); err != nil {
		c.t.Fatalf("headscale %v: %v: %s%s", args, err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

// callLimit is for one call, as veilor-forge has it.
const callLimit = time.Minute

// client is the product's client, with a transport that may do something after
// an answer.
func (c *control) client(after func(*http.Request)) *api.Client {
	fields := strings.Fields(c.run("apikeys", "create", "--expiration", "1h"))
	tr := headscaleTransport(c)
	return api.NewClient("https://"+c.config.Host, fields[len(fields)-1], &http.Client{Timeout: callLimit, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := tr.RoundTrip(r)
		if err == nil && after != nil {
			after(r)
		}
		return resp, err
	})})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func headscaleTransport(c *control) *http.Transport {
	return &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: c.roots},
		DisableKeepAlives: true, // the server is restarted
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return c.ns.DialContext(ctx, network, netip.AddrPortFrom(c.config.Address, 443).String())
		},
	}
}

// join makes nodes of tiers without a tailscaled: registered as by a person,
// then tagged.
func (c *control) join(cl *api.Client, tags ...string) {
	c.t.Helper()
	for i, tag := range tags {
		id := fmt.Sprintf("hskey-authreq-%024d", i+len(tag)*100)
		c.run("debug", "create-node", "--user", headscale.Operator, "--name", fmt.Sprintf("%s-%d", tag[4:], i), "--key", id)
		c.run("auth", "register", "--user", headscale.Operator, "--auth-id", id)
	}
	nodes, err := cl.Nodes(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range nodes {
		for _, tag := range tags {
			if strings.HasPrefix(n.Name, tag[4:]) && len(n.Tags) == 0 {
				c.run("nodes", "tag", "--identifier", n.ID, "--tags", tag)
			}
		}
	}
}

// The product's client against the real Headscale: from an empty tailnet to all
// tests, through a kill between the steps.
func TestLoadIntoHeadscale(t *testing.T) {
	c := newControl(t)
	town, err := NewTown(rand.New(rand.NewPCG(4, 6)), 2)
	if err != nil {
		t.Fatal(err)
	}
	d := compile(t, town.Fleet)
	cl := c.client(nil)

	if _, err := cl.Policy(t.Context()); !errors.Is(err, api.ErrNoPolicy) {
		t.Fatalf("a fresh server: %v", err)
	}
	// No node has a tag: no test can run, the rules can.
	l, err := cl.LoadPolicy(t.Context(), d)
	if err != nil || l.Step != api.Bare || len(l.Untested) != 4 {
		t.Fatalf("into an empty tailnet: %+v, %v", l, err)
	}

	// Headscale allots in order: nullstone and office get what the site says.
	c.join(cl, "tag:infra", "tag:infra", "tag:guest", "tag:family")
	nodes, err := cl.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 4 || slices.ContainsFunc(nodes, func(n api.Node) bool { return len(n.Tags) != 1 || len(n.Addresses) != 2 }) {
		t.Fatalf("nodes: %+v", nodes)
	}
	l, err = cl.LoadPolicy(t.Context(), d)
	if err != nil || l.Step != api.Whole || !slices.Equal(l.Untested, []string{"tag:admin"}) {
		t.Fatalf("with nodes: %+v, %v", l, err)
	}
	if l, err = cl.LoadPolicy(t.Context(), d); err != nil || !l.Already {
		t.Errorf("again: %+v, %v", l, err)
	}

	// A policy that fails its own tests changes nothing.
	before, err := cl.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := compile(t, town.Fleet)
	bad.ACLs = append(bad.ACLs, acl.Rule{Action: "accept", Src: []string{"tag:guest"}, Dst: []string{"*:*"}})
	if l, err = cl.LoadPolicy(t.Context(), bad); err == nil || l.Step != api.Unchanged || !strings.Contains(err.Error(), "expected DENIED, got ALLOWED") {
		t.Errorf("a policy that fails its tests: %+v, %v", l, err)
	}
	if now, err := cl.Policy(t.Context()); err != nil || string(now) != string(before) {
		t.Errorf("it changed the policy: %v", err)
	}
	ghost := compile(t, town.Fleet)
	ghost.ACLs = append(ghost.ACLs, acl.Rule{Action: "accept", Src: []string{"tag:ghost"}, Dst: []string{"*:*"}})
	if l, err = cl.LoadPolicy(t.Context(), ghost); err == nil || l.Step != api.Unchanged || !strings.Contains(err.Error(), "tag:ghost") {
		t.Errorf("a policy with an unknown tag: %+v, %v", l, err)
	}

	// Kill the server after the first step. Its database must have the rules.
	if err := cl.SetPolicy(t.Context(), []byte(`{"tagOwners": {"tag:guest": [], "tag:infra": [], "tag:family": []}, "acls": []}`)); err != nil {
		t.Fatal(err)
	}
	killed := false
	dying := c.client(func(r *http.Request) {
		if r.Method == http.MethodPut && !killed {
			killed = true
			c.kill()
		}
	})
	l, err = dying.LoadPolicy(t.Context(), d)
	if err == nil || l.Step == api.Whole {
		t.Errorf("the server died between the steps: %+v, %v", l, err)
	}
	c.startAgain(cl)
	have, err := cl.Policy(t.Context())
	if err != nil || string(have) != string(d.Bare().Text()) {
		t.Errorf("after the kill the server has neither the site's rules nor an error: %v\n%s", err, have)
	}
	if l, err = cl.LoadPolicy(t.Context(), d); err != nil || l.Step != api.Whole {
		t.Errorf("after the kill: %+v, %v", l, err)
	}

	// A node that is deleted is gone; a wrong API key says so.
	if err := cl.DeleteNode(t.Context(), nodes[0].ID); err != nil {
		t.Error(err)
	}
	if err := cl.DeleteNode(t.Context(), nodes[0].ID); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	if err := cl.DeleteNode(t.Context(), "99999"); err != nil {
		t.Errorf("deleting what never was: %v", err)
	}
	wrong := api.NewClient(cl.Base, "hskey-api-abcdefghijkl-wrong", cl.HTTP)
	if _, err := wrong.LoadPolicy(t.Context(), d); !errors.Is(err, api.ErrUnauthorized) {
		t.Errorf("a wrong API key: %v", err)
	}
	ms, err := api.Machines(town.Policy, nodes[1:])
	if err != nil || len(ms) != 3 || ms[0].Tier == "" {
		t.Errorf("%+v, %v", ms, err)
	}
	k, err := cl.CreateKey(t.Context(), town.Policy.Tag(tier.Guest))
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.ExpireKey(t.Context(), k.ID); err != nil {
		t.Error(err)
	}
}
