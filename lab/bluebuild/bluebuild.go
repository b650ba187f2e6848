// Package bluebuild asks the real BlueBuild CLI what it makes of our recipe. It
// generates the Containerfile; running that needs BlueBuild's own images, which only
// their registry has.
//
// The CLI wants a container engine to be there and a base that answers over TLS.
// Both are given in a network namespace without a way out: Debian's podman, which
// is only asked for its version, and an embedded registry with an empty image.
package bluebuild

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/webca"
)

const (
	// cliVersion is the newest of blue-build that the Rust registry has.
	cliVersion = "0.9.40"

	// version of what BuildCLI makes of it.
	version = "1"

	// host is what the registry's certificate says.
	host = "localhost"
)

// Root has the engine that the CLI looks for (podman 4 or newer).
var Root = debian.Spec{Name: "bluebuild-root", Packages: []string{"podman", "ca-certificates", "git"}, Slim: true}

// BuildCLI compiles the CLI with the machine's cargo (ten minutes on two cores) and
// returns the path of the program.
func BuildCLI(ctx context.Context, c *cache.Cache, log io.Writer) (string, error) {
	dir, err := c.Get(ctx, "bluebuild", cache.NewInputs(version).String(cliVersion), func(ctx context.Context, dir string) error {
		target := filepath.Join(c.Dir, "cargo", "bluebuild")
		cmd := exec.CommandContext(ctx, "cargo", "install", "blue-build", "--version", cliVersion, "--locked", "--root", dir, "--target-dir", target)
		sandbox.Gentle(cmd)
		if err := sandbox.RunLogged(ctx, cmd, log); err != nil {
			return fmt.Errorf("building BlueBuild's CLI %s: %w", cliVersion, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bin", "bluebuild"), nil
}

// Spec says what to generate from.
type Spec struct {
	// CLI is the program, see [BuildCLI]; Root the directory of [Root].
	CLI, Root string
	// Recipe is the recipe file.
	Recipe string
	// Scratch is an empty directory on a disk.
	Scratch string
	Log     io.Writer
}

// storage is podman's configuration. Its own choice of a driver is overlay, which
// cannot lie on the root's overlay.
const storage = `[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
`

var baseLine = regexp.MustCompile(`(?m)^base-image: .*$`)

// Generate returns the Containerfile that the CLI makes of the recipe, whose base
// is the embedded one, pinned by digest as in a release; the base's tag names
// another image meanwhile. It runs only inside the sandbox.
func Generate(ctx context.Context, s Spec) (text []byte, err error) {
	data, err := os.ReadFile(s.Recipe)
	if err != nil {
		return nil, fmt.Errorf("reading the recipe: %w", err)
	}
	r, err := recipe.Load(s.Recipe)
	if err != nil {
		return nil, err
	}
	ns, err := namespace.New("bluebuild", namespace.Options{Dir: filepath.Join(s.Scratch, "netns")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	ca, err := webca.Open(filepath.Join(s.Scratch, "ca"), time.Now)
	if err != nil {
		return nil, err
	}
	base, digest, stop, err := serve(ctx, ns, ca, fmt.Sprint(r.ImageVersion))
	if err != nil {
		return nil, err
	}
	defer stop()
	release, err := strconv.Atoi(string(r.ImageVersion))
	if err != nil {
		return nil, fmt.Errorf("reading the recipe's release: %w", err)
	}
	if data, err = recipe.Pin(s.Recipe, data, &recipe.Lock{Image: r.BaseImage, Release: release, Digest: digest}); err != nil {
		return nil, err
	}

	root, err := sandbox.Overlay(s.Root, filepath.Join(s.Scratch, "layer"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := root.Bind(s.CLI, "/usr/local/bin/bluebuild"); err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(ca.CertFile())
	if err != nil {
		return nil, fmt.Errorf("reading the registry's authority: %w", err)
	}
	if err := os.WriteFile(root.Path("etc/containers/storage.conf"), []byte(storage), 0o644); err != nil {
		return nil, fmt.Errorf("configuring podman: %w", err)
	}
	for path, data := range map[string][]byte{
		"recipes/recipe.yml": baseLine.ReplaceAll(data, []byte("base-image: "+base)),
		"ca.pem":             authority,
	} {
		file := root.Path("build/" + path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.MkdirAll(root.Path("build/files"), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			return nil, fmt.Errorf("laying out the recipe: %w", err)
		}
	}
	cmd := root.Command(ctx, "bluebuild", "generate", "--skip-validation", "-o", "Containerfile", "recipes/recipe.yml")
	cmd.Dir = "/build"
	cmd.Env = append(cmd.Env, "SSL_CERT_FILE=/build/ca.pem")
	cmd.Stdout = s.Log
	var words bytes.Buffer
	cmd.Stderr = io.MultiWriter(s.Log, &words)
	if err := ns.Run(cmd); err != nil {
		return nil, fmt.Errorf("running BlueBuild's CLI: %w: %s", err, bytes.TrimSpace(words.Bytes()))
	}
	text, err = os.ReadFile(root.Path("build/Containerfile"))
	if err != nil {
		return nil, fmt.Errorf("reading the Containerfile: %w", err)
	}
	if !bytes.Contains(text, []byte(digest)) {
		return nil, fmt.Errorf("reading the Containerfile: it does not build on %s, to which the recipe is pinned", digest)
	}
	return text, nil
}

// serve has a registry with an empty base for both architectures, and returns the
// base's reference without a tag, and its digest. The tag names a newer one.
func serve(ctx context.Context, ns *namespace.Namespace, ca *webca.CA, release string) (ref, digest string, stop func(), err error) {
	pair, err := ca.Certificate(host)
	if err != nil {
		return "", "", nil, err
	}
	l, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Handler: registry.New(registry.Logger(quiet)), ErrorLog: quiet, ReadHeaderTimeout: time.Minute}
	go server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}}))
	stop = func() { server.Close() }

	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		stop()
		return "", "", nil, err
	}
	ref = net.JoinHostPort(host, port) + "/secureblue/kinoite-main-hardened"
	for _, day := range []string{"20261101", "20261102"} {
		of, err := push(ctx, ns, ca, ref+":"+release, release+"."+day+".0")
		if err != nil {
			stop()
			return "", "", nil, fmt.Errorf("serving a base: %w", err)
		}
		if digest == "" {
			digest = of
		}
	}
	return ref, digest, stop, nil
}

// push puts a base of the given version under a tag and returns its digest.
func push(ctx context.Context, ns *namespace.Namespace, ca *webca.CA, to, version string) (digest string, err error) {
	var both []mutate.IndexAddendum
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
			OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"},
			// BlueBuild learns from it which Fedora the base is.
			Config: v1.Config{Labels: map[string]string{"org.opencontainers.image.version": version}},
		})
		if err != nil {
			return "", err
		}
		both = append(both, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	tag, err := name.NewTag(to)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: host},
		// The name is not looked up: the registry is on the namespace's loopback.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return ns.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}
	defer transport.CloseIdleConnections()
	index := mutate.AppendManifests(empty.Index, both...)
	hash, err := index.Digest()
	if err != nil {
		return "", err
	}
	return hash.String(), remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithTransport(transport))
}
