package act

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	ocireg "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"
)

// registryPort is fixed because the installed disk is kept by everything that
// the installer was given, the registry's address among it.
const registryPort = 45077

// registry is an OCI registry on loopback, as a mirror of the site's own. Blobs
// stay on disk over runs; manifests and signatures are new in each.
type registry struct {
	addr string
	http *http.Server

	mu sync.Mutex
	// lies maps a blob's digest to the one whose content is served for it.
	lies map[string]string
}

// openRegistry serves on loopback until it is closed.
func openRegistry(dir string, log *stdlog.Logger) (*registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening the registry: %w", err)
	}
	r := &registry{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(registryPort)), lies: map[string]string{}}
	l, err := net.Listen("tcp", r.addr)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("opening the registry: port %d is taken, by another run of the lab or another program: `ss -ltnp sport = :%d` shows which; end it and run again", registryPort, registryPort)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the registry: %w", err)
	}
	h := ocireg.New(ocireg.WithBlobHandler(ocireg.NewDiskBlobHandler(dir)), ocireg.Logger(log))
	r.http = &http.Server{Handler: r.lie(h), ErrorLog: log}
	go r.http.Serve(l)
	return r, nil
}

func (r *registry) close() { r.http.Close() }

// repository is the path of an image on this registry, without a host's port
// in its first component.
func (r *registry) repository(ref string) string {
	_, path, _ := strings.Cut(ref, "/")
	return r.addr + "/" + path
}

// tell has the registry serve the content of one blob for another, as one that
// was broken into would. Empty: the truth again.
func (r *registry) tell(instead map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lies = instead
}

func (r *registry) lie(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		dir, digest := filepath.Split(q.URL.Path)
		r.mu.Lock()
		other := r.lies[digest]
		r.mu.Unlock()
		if other != "" && q.Method == http.MethodGet && strings.HasSuffix(dir, "/blobs/") {
			q = q.Clone(context.WithoutCancel(q.Context()))
			q.URL.Path = dir + other
		}
		h.ServeHTTP(w, q)
	})
}
