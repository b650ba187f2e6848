package image

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// retries is for a registry that drops the connection: what arrived before stays
// there, so that a try begins where the last one stopped, blob by blob.
var retries = remote.Backoff{Duration: time.Second, Factor: 3, Jitter: 0.1, Steps: 4}

// Progress is called with bytes done and to do.
type Progress func(done, total int64)

// Push uploads the image that d names to ref and returns its digest there. Blobs
// that the registry has already are not sent. A registry on loopback is spoken
// to without TLS.
func Push(ctx context.Context, d Dir, ref string, p Progress) (v1.Hash, error) {
	to, err := name.ParseReference(ref)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing to %q: %w; write for example ghcr.io/veilor/veilor-os:44", ref, err)
	}
	img, err := d.Open("")
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing %s: %w", d, err)
	}
	updates := make(chan v1.Update, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			if u.Error == nil && p != nil {
				p(u.Complete, u.Total)
			}
		}
	}()
	err = remote.Write(to, img,
		remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithRetryBackoff(retries), remote.WithProgress(updates))
	<-done // remote.Write closes updates
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing %s to %s: %w; what was sent stays there: run it again", d, ref, err)
	}
	return digest, nil
}
