package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// parseRef reads a reference into a registry, which must name the registry: the
// default of other tools is a place where veilor-os never was.
func parseRef(ref string) (name.Reference, error) {
	host, _, ok := strings.Cut(ref, "/")
	if !ok || (!strings.ContainsAny(host, ".:") && host != "localhost") {
		return nil, fmt.Errorf("reading %q: it names no registry; write for example ghcr.io/veilor/veilor-os:44", ref)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w; write for example ghcr.io/veilor/veilor-os:44", ref, err)
	}
	return r, nil
}

// Open returns the image that ref names: oci:DIR[:TAG], or a reference into a
// registry. arch is a Go architecture name; empty takes the only one, or of a
// registry's several amd64.
func Open(ctx context.Context, ref, arch string) (v1.Image, error) {
	if strings.HasPrefix(ref, "oci:") {
		d, err := ParseDir(ref)
		if err != nil {
			return nil, err
		}
		return d.Open(arch)
	}
	r, err := parseRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%w, or oci:DIR", err)
	}
	options := remoteOptions(ctx)
	if arch != "" {
		options = append(options, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
	}
	img, err := remote.Image(r, options...)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", ref, err)
	}
	return img, nil
}
