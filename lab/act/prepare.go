package act

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/veilor/veilor-os/lab/base"
	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/webca"
)

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
	var err error
	if s.programs, err = program.Build(ctx, s.Source, filepath.Join(s.Cache, "bin"), s.log); err != nil {
		return "", err
	}
	if s.toolsRoot, err = debian.Tools.Build(ctx, s.cache, s.log); err != nil {
		return "", err
	}
	root, err := debian.Base.Build(ctx, s.cache, s.log)
	if err != nil {
		return "", err
	}
	if s.kernel, err = debian.Kernel(root); err != nil {
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
		Tailscaled: s.programs.Tailscaled, Tailscale: s.programs.Tailscale,
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

// makeKeys makes the lab's keys once, and its site from them.
func (s *Stage) makeKeys() error {
	var err error
	if s.web, err = webca.Open(filepath.Join(s.Cache, "keys", "web"), time.Now); err != nil {
		return err
	}
	s.site, err = labsite.Make(filepath.Join(s.Cache, "keys", "site"), time.Now())
	return err
}
