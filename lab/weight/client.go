package weight

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// registry serves images on loopback and counts what it sends.
type registry struct {
	server *httptest.Server
	sent   atomic.Int64 // bytes of manifests, configurations and layers
}

func newRegistry() *registry {
	r := &registry{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && req.URL.Path != "/v2/" {
			w = &counting{w, &r.sent}
		}
		inner.ServeHTTP(w, req)
	}))
	return r
}

func (r *registry) close() { r.server.Close() }

func (r *registry) ref(tag string) string {
	return strings.TrimPrefix(r.server.URL, "http://") + "/veilor/veilor-os:" + tag
}

type counting struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// Skopeo is the client that podman and bootc use for transport, with an OCI
// directory as its store.
type Skopeo struct {
	Dir string // its store
	Log io.Writer
}

// Name implements [Client].
func (s *Skopeo) Name() string { return "skopeo" }

// Fresh implements [Client].
func (s *Skopeo) Fresh() error { return os.RemoveAll(s.Dir) }

// Pull implements [Client].
func (s *Skopeo) Pull(ctx context.Context, ref string) error {
	cmd := exec.CommandContext(ctx, "skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "docker://"+ref, "oci:"+s.Dir+":"+ref[strings.LastIndexByte(ref, ':')+1:])
	sandbox.Gentle(cmd)
	if err := sandbox.RunLogged(ctx, cmd, s.Log); err != nil {
		return fmt.Errorf("copying %s with skopeo: %w", ref, err)
	}
	return nil
}

// Importer is ostree's own, as bootc has it in a laptop: layers become commits of
// a repository.
type Importer struct {
	root *sandbox.Root
	repo string
	log  io.Writer
}

// NewImporter makes one in an overlay of the root with the lab's tools, with the
// program that bootc.Build made. scratch is a directory for both.
func NewImporter(ctx context.Context, tools, program, scratch string, log io.Writer) (*Importer, error) {
	root, err := sandbox.Overlay(tools, filepath.Join(scratch, "root"))
	if err != nil {
		return nil, err
	}
	i := &Importer{root: root, repo: filepath.Join(scratch, "repo"), log: log}
	err = bootc.Install(root, program)
	if err == nil {
		err = os.MkdirAll(i.repo, 0o755)
	}
	if err == nil {
		err = root.Share(scratch)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return i, nil
}

// Close ends what is mounted.
func (i *Importer) Close() error { return i.root.Close() }

// Name implements [Client].
func (i *Importer) Name() string { return "ostree" }

// Fresh implements [Client].
func (i *Importer) Fresh() error {
	entries, err := os.ReadDir(i.repo)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(i.repo, e.Name())); err != nil {
			return err
		}
	}
	return i.root.Run(context.Background(), i.log, nil, "ostree", "init", "--repo="+i.repo, "--mode=bare")
}

// Pull implements [Client].
func (i *Importer) Pull(ctx context.Context, ref string) error {
	err := i.root.Run(ctx, i.log, nil, "ostree", "container", "image", "pull", "--insecure-skip-tls-verification", i.repo, "ostree-unverified-registry:"+ref)
	if err != nil {
		return fmt.Errorf("importing %s with ostree: %w", ref, err)
	}
	return nil
}
