package act

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/veilor/veilor-os/internal/image"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// builtImage is what veilor-forge has made.
type builtImage struct {
	image.Result
	dir string // of the OCI layout
}

// buildImage runs `veilor-forge image build` twice, the second time with another
// umask, time zone and directory: the digest must be the same.
func (s *Stage) buildImage(ctx context.Context, a *console.Act) (string, error) {
	a.Step("rendering the overlay onto the base")
	s.image.dir = filepath.Join(s.Cache, "image")
	if err := s.forgeBuild(ctx, s.image.dir, nil, &s.image.Result); err != nil {
		return "", err
	}
	a.Step("building once more, to compare")
	var again image.Result
	other := filepath.Join(s.Cache, "image-again")
	defer os.RemoveAll(other)
	odd := []string{"TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8"}
	if err := s.forgeBuild(ctx, other, odd, &again); err != nil {
		return "", err
	}
	var differs error
	if s.image.Digest != again.Digest {
		differs = fmt.Errorf("%s, then %s", s.image.Digest, again.Digest)
	}
	if err := s.check(report.Held("image.reproducible", "the same inputs give the same image", differs)); err != nil {
		return "", err
	}
	var size int64
	for _, l := range s.image.Layers {
		size += l.Size
	}
	s.checks = append(s.checks,
		report.Fact("image.weight", "what veilor adds to its base, compressed", float64(size)/1e6, "MB"))
	return fmt.Sprintf("%s: %d layers, %s MB over the base; %d traps undone; same digest twice",
		s.Version, len(s.image.Layers), report.Number(float64(size)/1e6), len(s.image.Undone)), nil
}

func (s *Stage) forgeBuild(ctx context.Context, out string, env []string, into *image.Result) error {
	answer, err := s.forge(ctx, env, "image", "build", "--site", s.site.File, "--base", "oci:"+s.base.Dir,
		"--stand-ins", filepath.Join(s.Source, "lab", "base", "stand-ins.yaml"),
		"--out", "oci:"+out, "--version", s.Version, "--json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("reading veilor-forge's answer: %w", err)
	}
	return nil
}

// forge runs veilor-forge as the maintainer would and returns its answer.
func (s *Stage) forge(ctx context.Context, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.programs.Forge, args...)
	cmd.Dir = s.Source
	cmd.Env = append(os.Environ(), append(env, "COSIGN_PASSWORD="+s.site.Passphrase, "XDG_CACHE_HOME="+s.Cache)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	sandbox.Gentle(cmd)
	if err := sandbox.RunLogged(ctx, cmd, s.log); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
