package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// retries is for a registry that drops the connection: what arrived before stays
// there, so that a try begins where the last one stopped, blob by blob.
var retries = remote.Backoff{Duration: time.Second, Factor: 3, Jitter: 0.1, Steps: 4}

// passing says whether an error may be gone at the next try.
func passing(err error) bool {
	var n net.Error
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET, syscall.ECONNREFUSED, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.As(err, &n) && n.Timeout() && !errors.Is(err, context.DeadlineExceeded)
}

func remoteOptions(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithRetryBackoff(retries), remote.WithRetryPredicate(passing),
	}
}

// Progress is called with bytes done and to do.
type Progress func(done, total int64)

// Push uploads the image that d names to ref, asks the registry for it again, and
// returns its digest there. Blobs that the registry has already are not sent. A
// registry on loopback is spoken to without TLS.
func Push(ctx context.Context, d Dir, ref string, p Progress) (v1.Hash, error) {
	to, err := parseRef(ref)
	if err != nil {
		return v1.Hash{}, err
	}
	img, err := d.Open("")
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing %s: %w", d, err)
	}
	if given, ok := to.(name.Digest); ok && given.DigestStr() != digest.String() {
		return v1.Hash{}, fmt.Errorf("pushing %s to %s: its digest is %s; write a tag, or that digest", d, ref, digest)
	}
	if err := intact(d, img); err != nil {
		return v1.Hash{}, err
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
	err = remote.Write(to, img, append(remoteOptions(ctx), remote.WithProgress(updates))...)
	<-done // remote.Write closes updates
	if err != nil {
		return v1.Hash{}, fmt.Errorf("pushing %s to %s: %w; what was sent stays there: run it again", d, ref, err)
	}
	if err := confirm(ctx, to, img, digest); err != nil {
		return v1.Hash{}, fmt.Errorf("checking what %s has after the push: %w", ref, err)
	}
	return digest, nil
}

// intact reads our layers in d once before anything is sent: a registry would
// refuse a damaged one with less to say.
func intact(d Dir, img v1.Image) error {
	ours, err := ourLayers(img)
	if err != nil {
		return fmt.Errorf("pushing %s: %w", d, err)
	}
	for _, l := range ours {
		if err := readBack(l); err != nil {
			return fmt.Errorf("pushing %s: its layer %s: %w; build the image again", d, l.Name, err)
		}
	}
	return nil
}

// readBack reads a layer whole and compares its digest with its name.
func readBack(l imageLayer) error {
	rc, err := l.layer.Compressed()
	if err != nil {
		return err
	}
	got, _, err := v1.SHA256(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		return err
	}
	if got.String() != l.Digest {
		return fmt.Errorf("the content of %s has the digest %s", l.Digest, got)
	}
	return nil
}

// confirmers is how many blobs are asked for at once.
const confirmers = 4

// confirm asks the registry for the image again: the manifest by tag and by
// digest, our layers whole, the base's by size. A registry that keeps something
// else under a digest is found out here, and not by a client.
func confirm(ctx context.Context, to name.Reference, img v1.Image, digest v1.Hash) error {
	for _, r := range []name.Reference{to, to.Context().Digest(digest.String())} {
		desc, err := remote.Get(r, remoteOptions(ctx)...)
		if err != nil {
			return err
		}
		if desc.Digest != digest {
			return fmt.Errorf("it answers %s with a manifest whose digest is %s, and %s was pushed; somebody else pushed there at the same time, or the registry is broken", r, desc.Digest, digest)
		}
	}
	there, err := remote.Image(to.Context().Digest(digest.String()), remoteOptions(ctx)...)
	if err != nil {
		return err
	}
	if _, err := there.RawConfigFile(); err != nil {
		return fmt.Errorf("the configuration: %w; push it again under another name, or to another registry", err)
	}
	ours, err := ourLayers(there)
	if err != nil {
		return err
	}
	whole := map[string]bool{}
	for _, l := range ours {
		whole[l.Digest] = true
	}
	all, err := layersOf(there)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(confirmers)
	for _, l := range all {
		g.Go(func() error {
			if whole[l.Digest] {
				if err := readBack(l); err != nil {
					return fmt.Errorf("the layer %s: %w; the registry does not keep what it is given", l.Name, err)
				}
				return nil
			}
			at, err := remote.Layer(to.Context().Digest(l.Digest), remoteOptions(ctx)...)
			if err != nil {
				return err
			}
			size, err := at.Size()
			if err != nil {
				return fmt.Errorf("the layer %s: %w; push it again", l.Digest, err)
			}
			if size != l.Size {
				return fmt.Errorf("the layer %s has %d bytes there and %d here; the registry does not keep what it is given", l.Digest, size, l.Size)
			}
			return nil
		})
	}
	return g.Wait()
}
