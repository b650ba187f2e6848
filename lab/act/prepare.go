package act

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/veilor/veilor-os/lab/base"
	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/webca"
)

// programs are what the lab runs, built from this repository and its modules.
type programs struct {
	forge, ygg                       string // the product's
	headscale, tailscaled, tailscale string // pinned in lab/go.mod
	publicPeer, browser              string // the lab's
}

// prepare makes what stands before the demo: Debian roots, programs, keys, and
// the image that stands in for secureblue's.
func (s *Stage) prepare(ctx context.Context, a *console.Act) (string, error) {
	built := 0
	s.cache = &cache.Cache{Dir: s.Cache, Notify: func(e cache.Event) {
		switch e.What {
		case cache.Building:
			built++
			a.Step("making %s", e.Name)
		case cache.Waiting:
			a.Step("waiting for another run that makes %s", e.Name)
		}
	}}
	a.Step("compiling veilor, Headscale and tailscaled")
	if err := s.compile(ctx); err != nil {
		return "", err
	}
	var err error
	if s.toolsRoot, err = debian.Tools.Build(ctx, s.cache, s.log); err != nil {
		return "", err
	}
	root, err := debian.Base.Build(ctx, s.cache, s.log)
	if err != nil {
		return "", err
	}
	if s.kernel, err = only(filepath.Join(root, "boot/vmlinuz-*")); err != nil {
		return "", err
	}
	if s.stub, err = bootc.Build(ctx, s.cache, s.log); err != nil {
		return "", err
	}
	if err := s.makeKeys(); err != nil {
		return "", err
	}
	web, err := os.ReadFile(s.web.CertFile())
	if err != nil {
		return "", fmt.Errorf("reading the lab's web CA: %w", err)
	}
	s.base, err = base.Build(ctx, s.cache, base.Spec{
		Tools: s.toolsRoot, Root: root, Bootc: s.stub, WebCA: web,
		Tailscaled: s.programs.tailscaled, Tailscale: s.programs.tailscale,
	}, s.log)
	if err != nil {
		return "", err
	}
	if s.tools, err = sandbox.Chroot(s.toolsRoot); err != nil {
		return "", err
	}
	s.close = append(s.close, func() { s.tools.Close() })
	for _, d := range []string{s.run, s.Cache, s.Out} {
		if err := s.tools.Share(d); err != nil {
			return "", err
		}
	}
	if built == 0 {
		return "Debian roots, programs and base image are as they were", nil
	}
	return fmt.Sprintf("Debian roots, programs and base image; %d made anew", built), nil
}

// only is the one file that a pattern names.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("looking for one %s: %d found (%v)", pattern, len(found), err)
	}
	return found[0], nil
}

// compile builds every program. Go's own cache makes this short when nothing
// has changed.
func (s *Stage) compile(ctx context.Context) error {
	bin := filepath.Join(s.Cache, "bin")
	at := func(name string) string { return filepath.Join(bin, name) }
	s.programs = programs{
		forge: at("veilor-forge"), ygg: at("veilor-ygg"),
		headscale: at("headscale"), tailscaled: at("tailscaled"), tailscale: at("tailscale"),
		publicPeer: at("publicpeer"), browser: at("browser"),
	}
	for _, b := range []struct {
		module   string
		packages []string
	}{
		{s.Source, []string{"./cmd/veilor-forge", "./cmd/veilor-ygg"}},
		{filepath.Join(s.Source, "lab"), []string{
			"github.com/juanfont/headscale/cmd/headscale", "tailscale.com/cmd/tailscaled", "tailscale.com/cmd/tailscale",
			"./cmd/publicpeer", "./cmd/browser",
		}},
	} {
		args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", bin + "/"}, b.packages...)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = b.module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		sandbox.Gentle(cmd)
		if err := sandbox.RunLogged(ctx, cmd, s.log); err != nil {
			return err
		}
	}
	return nil
}

// makeKeys makes the lab's keys once, and its site from them.
func (s *Stage) makeKeys() error {
	var err error
	if s.web, err = webca.Open(filepath.Join(s.Cache, "keys", "web"), time.Now); err != nil {
		return err
	}
	s.site, err = labsite.Make(filepath.Join(s.Cache, "keys", "site"), time.Now())
	return err
}
