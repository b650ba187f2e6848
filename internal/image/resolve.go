package image

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Resolved is what a registry has under a tag.
type Resolved struct {
	// Digest is of what the tag names: an image, or an index of several.
	Digest v1.Hash
	// Platforms are the digests of an index's Linux images by architecture, as Go
	// names it; nil if the tag names one image.
	Platforms map[string]v1.Hash
}

// Resolve asks the registry what ref names now. The digest is that of what it
// sends, not what it says of that.
func Resolve(ctx context.Context, ref string) (Resolved, error) {
	r, err := parseRef(ref)
	if err != nil {
		return Resolved{}, err
	}
	d, err := remote.Get(r, remoteOptions(ctx)...)
	if err != nil {
		return Resolved{}, fmt.Errorf("asking for the digest of %s: %w", ref, err)
	}
	out := Resolved{Digest: d.Digest}
	switch d.MediaType {
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		return out, nil
	case types.OCIImageIndex, types.DockerManifestList:
	default:
		return Resolved{}, fmt.Errorf("asking for the digest of %s: it is %s, which is no image", ref, d.MediaType)
	}
	index, err := d.ImageIndex()
	if err != nil {
		return Resolved{}, fmt.Errorf("asking for the digest of %s: %w", ref, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return Resolved{}, fmt.Errorf("asking for the digest of %s: %w", ref, err)
	}
	out.Platforms = map[string]v1.Hash{}
	for _, e := range m.Manifests {
		// Attestations lie in an index under the platform unknown/unknown.
		if e.MediaType.IsImage() && e.Platform != nil && e.Platform.OS == "linux" {
			out.Platforms[e.Platform.Architecture] = e.Digest
		}
	}
	if len(out.Platforms) == 0 {
		return Resolved{}, fmt.Errorf("asking for the digest of %s: no image for Linux in it", ref)
	}
	return out, nil
}
