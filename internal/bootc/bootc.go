// Package bootc asks bootc which image this system booted.
//
// It runs one command, `bootc status --format=json`, and reads the fields of
// org.containers.bootc/v1 that it needs (docs/src/host-v1.schema.json). What
// bootc adds is ignored; what it leaves out or changes is an error.
package bootc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

const (
	apiVersion = "org.containers.bootc/v1"
	kind       = "BootcHost"
	// limit bounds the run: bootc reads local files only, for tens of
	// milliseconds.
	limit = 10 * time.Second
	// maxOutput bounds what is read of it; a host's status has some 5 KiB.
	maxOutput = 4 << 20
)

var (
	// ErrMissing says that there is no bootc on this system.
	ErrMissing = errors.New("bootc is not installed")
	// ErrNotManaged says that bootc does not manage this system.
	ErrNotManaged = errors.New("this system was not booted from an image")
)

// Image is a container image as a deployment has it.
type Image struct {
	// Ref is what it is pulled by: "ghcr.io/veilor/veilor-os:44".
	Ref string
	// Digest is its manifest's: "sha256:…".
	Digest string
	// Version is the label org.opencontainers.image.version, or "".
	Version string
	// Signature is how pulling verifies it.
	Signature Signature
}

// Signature is how bootc verifies what it pulls.
type Signature string

// The values of bootc's schema; OSTree remotes have a prefix and their name.
const (
	ContainerPolicy Signature = "containerPolicy"
	Insecure        Signature = "insecure"
	ostreeRemote              = "ostreeRemote:"
)

// Host is what bootc manages.
type Host struct {
	Booted Image
	// Staged is the image of the next boot, nil if that is the booted one.
	Staged *Image
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Status asks the bootc on the PATH. It needs root, as bootc does.
func Status(ctx context.Context) (Host, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bootc", "status", "--format=json")
	var out, stderr bounded
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return Host{}, ErrMissing
		}
		if why := strings.TrimSpace(stderr.String()); why != "" {
			return Host{}, fmt.Errorf("asking bootc: %s", lastLine(why))
		}
		return Host{}, fmt.Errorf("asking bootc: %w", err)
	}
	return Parse(out.Bytes())
}

// bounded is a buffer that takes maxOutput bytes and then fails the writer.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxOutput {
		return 0, errors.New("the answer is too long")
	}
	return b.Buffer.Write(p)
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

// host mirrors the part of the schema that we read.
type host struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Status     *struct {
		Booted *entry `json:"booted"`
		Staged *entry `json:"staged"`
	} `json:"status"`
}

type entry struct {
	Image *struct {
		Image struct {
			Image     string          `json:"image"`
			Signature json.RawMessage `json:"signature"`
		} `json:"image"`
		ImageDigest string  `json:"imageDigest"`
		Version     *string `json:"version"`
	} `json:"image"`
}

// Parse reads the output of `bootc status --format=json`.
func Parse(data []byte) (Host, error) {
	var h host
	if err := json.Unmarshal(data, &h); err != nil {
		return Host{}, fmt.Errorf("reading bootc's status: %w", err)
	}
	if h.APIVersion != apiVersion || h.Kind != kind {
		return Host{}, fmt.Errorf("reading bootc's status: it is %q %q, not %q %q", h.APIVersion, h.Kind, apiVersion, kind)
	}
	if h.Status == nil {
		return Host{}, errors.New("reading bootc's status: it has no status")
	}
	if h.Status.Booted == nil || h.Status.Booted.Image == nil {
		return Host{}, ErrNotManaged
	}
	var (
		out Host
		err error
	)
	if out.Booted, err = h.Status.Booted.read("booted"); err != nil {
		return Host{}, err
	}
	if s := h.Status.Staged; s != nil && s.Image != nil {
		staged, err := s.read("staged")
		if err != nil {
			return Host{}, err
		}
		out.Staged = &staged
	}
	return out, nil
}

func (e *entry) read(which string) (Image, error) {
	i := Image{Ref: e.Image.Image.Image, Digest: e.Image.ImageDigest}
	if e.Image.Version != nil {
		i.Version = *e.Image.Version
	}
	if i.Ref == "" {
		return Image{}, fmt.Errorf("reading bootc's status: the %s image has no name", which)
	}
	if !digest.MatchString(i.Digest) {
		return Image{}, fmt.Errorf("reading bootc's status: the %s image has the digest %.80q", which, i.Digest)
	}
	raw := e.Image.Image.Signature
	if len(raw) == 0 || string(raw) == "null" {
		i.Signature = Insecure // the schema's default: nothing is enforced
		return i, nil
	}
	var name string
	var remote struct {
		OSTreeRemote *string `json:"ostreeRemote"`
	}
	switch {
	case json.Unmarshal(raw, &name) == nil && (Signature(name) == ContainerPolicy || Signature(name) == Insecure):
		i.Signature = Signature(name)
	case json.Unmarshal(raw, &remote) == nil && remote.OSTreeRemote != nil:
		i.Signature = Signature(ostreeRemote + *remote.OSTreeRemote)
	default:
		return Image{}, fmt.Errorf("reading bootc's status: the %s image has the signature policy %.80q, which is not known", which, raw)
	}
	return i, nil
}
