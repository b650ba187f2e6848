package signing

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature/payload"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// layerType and annotation are cosign's (specs/SIGNATURE_SPEC.md).
	layerType  types.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotation                 = "dev.cosignproject.cosign/signature"
	// maxPayload bounds a payload: ours have 250 bytes, cosign's with
	// annotations some hundred more.
	maxPayload = 64 << 10
)

// retries is for a registry that drops the connection.
var retries = remote.Backoff{Duration: time.Second, Factor: 3, Jitter: 0.1, Steps: 4}

func options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithRetryBackoff(retries)}
}

// attachment is the tag under which the signatures of digest are.
func attachment(repo name.Repository, digest v1.Hash) name.Tag {
	return repo.Tag(digest.Algorithm + "-" + digest.Hex + ".sig")
}

// resolve returns the repository and digest of ref.
func resolve(ctx context.Context, ref string) (name.Repository, v1.Hash, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return name.Repository{}, v1.Hash{}, fmt.Errorf("reading %q: %w; write for example ghcr.io/veilor/veilor-os:44", ref, err)
	}
	// Get, not Head: the digest that is signed is computed of the manifest, not
	// believed.
	d, err := remote.Get(r, options(ctx)...)
	if err != nil {
		return name.Repository{}, v1.Hash{}, fmt.Errorf("finding %s: %w", ref, err)
	}
	return r.Context(), d.Digest, nil
}

// attached is one layer of an attachment.
type attached struct {
	payload   []byte
	signature []byte
}

// read returns the attachment of digest and its signatures; an absent one is
// empty.
func read(ctx context.Context, repo name.Repository, digest v1.Hash) (v1.Image, []attached, error) {
	img, err := remote.Image(attachment(repo, digest), options(ctx)...)
	if te := (*transport.Error)(nil); errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
		return mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, nil, err
	}
	var all []attached
	for _, d := range m.Layers {
		if d.MediaType != layerType || d.Size > maxPayload {
			continue
		}
		sig, err := base64.StdEncoding.DecodeString(d.Annotations[annotation])
		if err != nil {
			continue // somebody else's; it proves nothing and harms nothing
		}
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			return nil, nil, err
		}
		rc, err := l.Compressed()
		if err != nil {
			return nil, nil, err
		}
		// The reader checks the digest.
		data, err := io.ReadAll(io.LimitReader(rc, maxPayload+1))
		if err = errors.Join(err, rc.Close()); err != nil {
			return nil, nil, err
		}
		all = append(all, attached{data, sig})
	}
	return img, all, nil
}

// Sign adds to the image at ref a signature by each key, for identity, the
// repository by which clients know it ("ghcr.io/veilor/veilor-os"; ref may be a
// mirror). Signatures that are there stay; a key that has signed already does
// not sign twice. It returns the digest that was signed and how many signatures
// are new.
func Sign(ctx context.Context, ref, identity string, keys []*Private) (v1.Hash, int, error) {
	if strings.ContainsAny(strings.TrimPrefix(identity, "docker://"), "@ ") {
		return v1.Hash{}, 0, fmt.Errorf("signing for %q: not a repository; write for example --identity ghcr.io/veilor/veilor-os", identity)
	}
	if _, err := name.NewRepository(identity, name.StrictValidation); err != nil {
		return v1.Hash{}, 0, fmt.Errorf("signing for %q: not a repository; write for example --identity ghcr.io/veilor/veilor-os: %w", identity, err)
	}
	repo, digest, err := resolve(ctx, ref)
	if err != nil {
		return v1.Hash{}, 0, err
	}
	img, have, err := read(ctx, repo, digest)
	if err != nil {
		return v1.Hash{}, 0, fmt.Errorf("reading the signatures of %s: %w", ref, err)
	}
	text, err := json.Marshal(payload.SimpleContainerImage{
		Critical: payload.Critical{
			Identity: payload.Identity{DockerReference: identity},
			Image:    payload.Image{DockerManifestDigest: digest.String()},
			Type:     payload.CosignSignatureType,
		},
	})
	if err != nil {
		return v1.Hash{}, 0, fmt.Errorf("signing %s: %w", ref, err)
	}
	added := 0
	for _, k := range keys {
		v := Verifier{&k.key.PublicKey}
		if signedBy(have, &v, digest, identity) {
			continue
		}
		sig, err := k.sign(text)
		if err != nil {
			return v1.Hash{}, 0, fmt.Errorf("signing %s: %w", ref, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(text, layerType),
			MediaType:   layerType,
			Annotations: map[string]string{annotation: base64.StdEncoding.EncodeToString(sig)},
		})
		if err != nil {
			return v1.Hash{}, 0, fmt.Errorf("signing %s: %w", ref, err)
		}
		have = append(have, attached{text, sig})
		added++
	}
	if added == 0 {
		return digest, 0, nil
	}
	if err := remote.Write(attachment(repo, digest), img, options(ctx)...); err != nil {
		return v1.Hash{}, 0, fmt.Errorf("writing the signatures of %s: %w", ref, err)
	}
	return digest, added, nil
}

// Trusts returns an error unless the public half of k is one of the keys by which
// clients of s check: a signature by another would be good for nothing. file is
// where k came from, for the error.
func Trusts(s *site.Site, k *Private, file string) error {
	var known []string
	for _, g := range s.Image.Signatures {
		for _, f := range g.Keys {
			v, err := ParsePublic(f.Path, f.Data)
			if err == nil && v.key.Equal(&k.key.PublicKey) {
				return nil
			}
			known = append(known, f.Path)
		}
	}
	return fmt.Errorf("signing with %s: its public half is none of the site's (%s), so clients would refuse what it signs; give the key that belongs to one of these, or put its .pub there", file, strings.Join(known, ", "))
}

// signedBy says whether one of have is v's, for this digest and identity.
func signedBy(have []attached, v *Verifier, digest v1.Hash, identity string) bool {
	for _, s := range have {
		if v.verify(s.payload, s.signature) && matches(s.payload, digest, identity) {
			return true
		}
	}
	return false
}

// matches says whether a payload is about digest and identity, the latter as
// matchRepository in policy.json compares: without tag or digest.
func matches(text []byte, digest v1.Hash, identity string) bool {
	var p payload.SimpleContainerImage
	if json.Unmarshal(text, &p) != nil || p.Critical.Type != payload.CosignSignatureType || p.Critical.Image.DockerManifestDigest != digest.String() {
		return false
	}
	r, err := name.ParseReference(p.Critical.Identity.DockerReference)
	if err != nil {
		return false
	}
	want, err := name.NewRepository(identity)
	return err == nil && r.Context().Name() == want.Name()
}

// Group is what was found for one signature group of the site.
type Group struct {
	Name string `json:"name"`
	// Key counts from 1 in the site's list; 0 if no key of the group signed.
	Key int `json:"key"`
}

// Report is the outcome of a check.
type Report struct {
	Image    string  `json:"image"`
	Digest   string  `json:"digest"`
	Identity string  `json:"identity"`
	Groups   []Group `json:"groups"`
}

// Missing are the groups that have not signed.
func (r *Report) Missing() []string {
	var names []string
	for _, g := range r.Groups {
		if g.Key == 0 {
			names = append(names, g.Name)
		}
	}
	return names
}

// Verify looks for a good signature of each group of s on the image at ref, as
// the image's policy.json does.
func Verify(ctx context.Context, s *site.Site, ref string) (*Report, error) {
	type group struct {
		name string
		keys []*Verifier
	}
	var groups []group
	for _, g := range s.Image.Signatures {
		n := group{name: g.Name}
		for i, f := range g.Keys {
			where := fmt.Sprintf("key %d of signature group %s", i+1, g.Name)
			if f.Path != "" {
				where += " (" + f.Path + ")"
			}
			if f.Data == nil {
				return nil, fmt.Errorf("reading %s: the file is not there; %s", where, howToMake)
			}
			v, err := ParsePublic(where, f.Data)
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, v)
		}
		groups = append(groups, n)
	}
	repo, digest, err := resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	_, have, err := read(ctx, repo, digest)
	if err != nil {
		return nil, fmt.Errorf("reading the signatures of %s: %w", ref, err)
	}
	r := &Report{Image: ref, Digest: digest.String(), Identity: s.Image.Ref}
	for _, g := range groups {
		found := Group{Name: g.name}
		for i, v := range g.keys {
			if found.Key == 0 && signedBy(have, v, digest, s.Image.Ref) {
				found.Key = i + 1
			}
		}
		r.Groups = append(r.Groups, found)
	}
	return r, nil
}
