// Package headscale runs the real Headscale with its embedded DERP relay; the
// product speaks its REST API.
package headscale

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// startLimit: it listens after 3 s on a loaded two-core machine.
	startLimit = 60 * time.Second
	// apiKeyLife outlives any run of the lab.
	apiKeyLife = "12h"
	// maxSocketPath is sizeof(sun_path) of unix(7), with its NUL.
	maxSocketPath = 107
)

// Operator is the user on whose behalf keys are made.
const Operator = "operator"

// Config says what to run and where.
type Config struct {
	// Binary is the headscale program.
	Binary string
	// Dir holds database, keys and socket; it must exist and be private.
	Dir string
	// Log is the file for the output.
	Log string
	// Host is the public name; the certificate is for it.
	Host string
	// Address is where TLS (443) and STUN (3478) are served.
	Address netip.Addr
	// IPv6, if valid, is where somebody serves the same by that family.
	IPv6 netip.Addr
	// CertFile and KeyFile (PEM) are Host's; RootFile is whom the server itself trusts.
	CertFile, KeyFile, RootFile string
}

// Server is a running Headscale.
type Server struct {
	*daemon.Daemon
	// API is authenticated for as long as any run of the lab lasts.
	API *headscale.Client
	// APIKey is what it is authenticated with, for programs of the product.
	APIKey string

	ns    *namespace.Namespace
	log   string
	serve func() *exec.Cmd
	ready func(context.Context) error
}

// configFile is the complete minimum for 0.29. Everything that would speak to
// the Internet is off.
var configFile = template.Must(template.New("").Parse(`server_url: https://{{.Host}}:443
listen_addr: {{.Address}}:443
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
grpc_allow_insecure: false
noise: {private_key_path: {{.Dir}}/noise.key}
prefixes: {v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}
derp:
  server:
    enabled: true
    region_id: 999
    region_code: lab
    region_name: lab
    verify_clients: true
    stun_listen_addr: "{{.Address}}:3478"
    private_key_path: {{.Dir}}/derp.key
    automatically_add_embedded_derp_region: true
    ipv4: {{.Address}}
{{- if .IPv6.IsValid}}
    ipv6: {{.IPv6}}
{{- end}}
  urls: []
  paths: []
  auto_update_enabled: false
disable_check_updates: true
database: {type: sqlite, sqlite: {path: {{.Dir}}/db.sqlite, write_ahead_log: true}}
tls_cert_path: {{.CertFile}}
tls_key_path: {{.KeyFile}}
policy: {mode: database}
dns: {magic_dns: true, base_domain: tail.lab.test, override_local_dns: false, nameservers: {global: []}}
unix_socket: {{.Dir}}/headscale.sock
logtail: {enabled: false}
log: {level: info}
`))

// Start runs Headscale in ns until Stop, and returns when it serves its API.
func Start(ctx context.Context, ns *namespace.Namespace, c Config) (*Server, error) {
	if s := filepath.Join(c.Dir, "headscale.sock"); len(s) > maxSocketPath {
		return nil, fmt.Errorf("starting headscale: the path of its socket has %d bytes, at most %d work: %s; use a shorter directory", len(s), maxSocketPath, s)
	}
	var text bytes.Buffer
	if err := configFile.Execute(&text, c); err != nil {
		return nil, fmt.Errorf("writing headscale's configuration: %w", err)
	}
	file := filepath.Join(c.Dir, "headscale.yaml")
	if err := renameio.WriteFile(file, text.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("writing headscale's configuration: %w", err)
	}
	env := append(os.Environ(), "SSL_CERT_FILE="+c.RootFile, "HOME="+c.Dir)
	srv := &Server{ns: ns, log: c.Log, serve: func() *exec.Cmd {
		cmd := exec.Command(c.Binary, "-c", file, "serve")
		cmd.Env = env
		return cmd
	}}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not ready after %v", startLimit))
	defer cancel()
	if err := srv.open(ctx, ns, c, file, env); err != nil {
		if srv.Daemon != nil {
			srv.Stop()
		}
		return nil, err
	}
	return srv, nil
}

// Restart runs it again after Stop, with all that it knew. Whoever calls it also
// stops what runs then.
func (srv *Server) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not ready after %v", startLimit))
	defer cancel()
	return srv.start(ctx)
}

func (srv *Server) start(ctx context.Context) error {
	d, err := daemon.Start(srv.ns, "headscale", srv.log, srv.serve())
	if err != nil {
		return err
	}
	srv.Daemon = d
	return d.Ready(ctx, srv.ready)
}

// open waits for the server and gets an API key from it.
func (srv *Server) open(ctx context.Context, ns *namespace.Namespace, c Config, file string, env []string) error {
	roots, err := rootPool(c.RootFile)
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(c.Address, 443).String()
	h := &http.Client{Timeout: 20 * time.Second, Transport: transport(ns, roots, to)}
	base := "https://" + c.Host
	srv.ready = daemon.Healthy(h, base+"/health")
	if err := srv.start(ctx); err != nil {
		return err
	}
	// Only the program itself, over its socket, can make the first API key. It
	// prints it; it is never in anybody's arguments.
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Binary, "-c", file, "apikeys", "create", "--expiration", apiKeyLife)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	if err := ns.Run(cmd); err != nil {
		return fmt.Errorf("making an API key: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	fields := strings.Fields(out.String())
	if len(fields) == 0 {
		return fmt.Errorf("making an API key: headscale printed none")
	}
	srv.APIKey = fields[len(fields)-1]
	srv.API = headscale.NewClient(base, srv.APIKey, h)
	if err := srv.API.CreateUser(ctx, Operator); err != nil {
		return err
	}
	return nil
}
