package act

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"os"
	"path/filepath"
	"strings"

	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
)

// sign pushes the image, signs it, and has skopeo judge it at every stage under
// the policy.json of the image itself.
func (s *Stage) sign(ctx context.Context, a *console.Act) (string, error) {
	var err error
	if s.registry, err = openRegistry(filepath.Join(s.Cache, "registry"), stdlog.New(s.log, "registry: ", 0)); err != nil {
		return "", err
	}
	s.close = append(s.close, s.registry.close)
	a.Step("taking the image's own policy and keys")
	if err := s.takePolicy(ctx); err != nil {
		return "", err
	}
	ref := s.registry.repository(s.site.Image.Ref) + ":" + fmt.Sprint(s.site.OS.Release)
	a.Step("pushing to a registry on loopback")
	if _, err := s.forge(ctx, nil, "image", "push", "oci:"+s.image.dir, ref); err != nil {
		return "", err
	}
	client, err := s.puller(ctx)
	if err != nil {
		return "", err
	}
	defer client.Close()

	signWith := func(key string) error {
		// By the repository and not by the site: forge refuses to sign with a key
		// that the site does not know, and a stranger has a forge of his own.
		_, err := s.forge(ctx, nil, "image", "sign", "--identity", s.site.Image.Ref, "--key", key, ref)
		return err
	}
	refused := func(id, title string) error {
		a.Step("%s", title)
		return s.check(report.Held("signature."+id, title, s.mustRefuse(ctx, client)))
	}
	if err := refused("unsigned", "an unsigned image is refused"); err != nil {
		return "", err
	}
	if _, err := s.forge(ctx, nil, "key", "generate", "--out", s.run, "--name", "stranger"); err != nil {
		return "", err
	}
	if err := signWith(filepath.Join(s.run, "stranger.key")); err != nil {
		return "", err
	}
	if err := refused("stranger", "an image signed by a stranger's key is refused"); err != nil {
		return "", err
	}
	for i := range labsite.Groups {
		if i == len(labsite.Groups)-1 {
			if err := refused("one-of-two", "an image that one group has not signed is refused"); err != nil {
				return "", err
			}
		}
		if err := signWith(s.site.ImageKeys[i]); err != nil {
			return "", err
		}
	}
	last, before := s.image.Layers[len(s.image.Layers)-1].Digest, s.image.Layers[len(s.image.Layers)-2].Digest
	s.registry.tell(map[string]string{last: before})
	err = refused("swapped-layer", "a signed image with a swapped layer is refused")
	s.registry.tell(nil)
	if err != nil {
		return "", err
	}
	a.Step("fetching the signed image")
	if err := s.check(report.Held("signature.good", "the image signed by every group is accepted", s.fetch(ctx, client))); err != nil {
		return "", err
	}
	if _, err := s.forge(ctx, nil, "image", "verify", "--site", s.site.File, ref); err != nil {
		return "", err
	}
	return "accepted signed by all groups; refused unsigned, stranger's key, one of two, swapped layer", nil
}

// takePolicy lays the container policy of the built image, and the lab's one
// addition to it, in a directory that clients get over their root.
func (s *Stage) takePolicy(ctx context.Context) error {
	s.trust = filepath.Join(s.run, "trust")
	built, err := image.OpenBase(ctx, image.Dir{Path: s.image.dir}, "amd64", filepath.Join(s.Cache, "veilor-forge"))
	if err != nil {
		return err
	}
	paths := []string{"etc/containers/policy.json", "etc/containers/registries.d/veilor.yaml"}
	for _, g := range s.site.Image.Signatures {
		for i := range g.Keys {
			paths = append(paths, fmt.Sprintf("usr/share/pki/containers/veilor-%s-%d.pub", g.Name, i+1))
		}
	}
	files := map[string][]byte{
		// The site's registry cannot be reached; the one on loopback is it.
		"etc/containers/registries.conf.d/lab.conf": fmt.Appendf(nil, "[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n",
			s.site.Image.Ref, s.registry.repository(s.site.Image.Ref)),
		// Where attachments are looked for goes by the place that is really asked.
		"etc/containers/registries.d/lab.yaml": fmt.Appendf(nil, "docker:\n  %s:\n    use-sigstore-attachments: true\n", s.registry.addr),
	}
	for _, p := range paths {
		if files[p], err = built.Read(ctx, p); err != nil {
			return fmt.Errorf("reading the image's own container policy: %w", err)
		}
	}
	for p, data := range files {
		p = filepath.Join(s.trust, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644)); err != nil {
			return fmt.Errorf("laying out the container policy: %w", err)
		}
	}
	return nil
}

// puller is a root with skopeo that obeys the image's policy.
func (s *Stage) puller(ctx context.Context) (*sandbox.Root, error) {
	dir := filepath.Join(s.Cache, "run", "puller")
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("preparing a client: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("preparing a client: %w", err)
	}
	root, err := sandbox.Overlay(s.toolsRoot, dir)
	if err != nil {
		return nil, err
	}
	if err := root.Lay(s.trust); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// fetch has skopeo copy the image by its public name.
func (s *Stage) fetch(ctx context.Context, client *sandbox.Root) error {
	to := "/var/tmp/image"
	defer os.RemoveAll(client.Path(to))
	from := fmt.Sprintf("docker://%s:%d", s.site.Image.Ref, s.site.OS.Release)
	// Signatures have no place in a dir of this kind, and keeping them is not
	// what is asked here.
	return client.Run(ctx, s.log, nil, "skopeo", "copy", "--quiet", "--remove-signatures", from, "oci:"+to)
}

// refusals are skopeo's words for: the policy said no, or the content is not
// what the signed manifest names.
var refusals = []string{"Source image rejected", "signature was required", "does not match", "unexpected EOF", "Digest did not match"}

// mustRefuse is nil if skopeo refuses the image, and for the right reason.
func (s *Stage) mustRefuse(ctx context.Context, client *sandbox.Root) error {
	err := s.fetch(ctx, client)
	if err == nil {
		return errors.New("it was accepted")
	}
	for _, words := range refusals {
		if strings.Contains(err.Error(), words) {
			return nil
		}
	}
	return fmt.Errorf("refused, but for another reason: %w", err)
}
