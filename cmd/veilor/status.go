package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/bootc"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/message"
	"github.com/veilor/veilor-os/internal/rootdisk"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/status"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

const (
	// askLimit bounds the question to each daemon. veilor-mesh takes up to 2.5 s
	// to be sure that a layer is silent.
	askLimit = 5 * time.Second
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON, codes bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what is reachable, over which layer, and on what system",
		Long: `Status says what is reachable, over which layer, and on what system. Layers that
nobody used lately are tried first, so that the answer is true now.

It exits 0 if it could answer, whatever the answer is.`,
		Example: "  veilor status\n  veilor status --json\n  veilor status --codes",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if codes {
				return output(cmd.OutOrStdout(), asJSON, status.Kinds(), status.KindsText)
			}
			r, err := a.report(cmd.Context(), a.services)
			if err != nil {
				return err
			}
			if !asJSON {
				r.In(language())
			}
			return output(cmd.OutOrStdout(), asJSON, r, r.Text)
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&codes, "codes", false, "list every condition that there may be, and what to do about it")
	return cmd
}

// language is what the person has chosen for messages.
func language() message.Language { return message.FromEnvironment(os.Getenv) }

// report asks everybody at once, veilor-mesh by services. What cannot be learned
// is in the report.
func (a *app) report(ctx context.Context, services func(context.Context) ([]status.Service, error)) (*status.Report, error) {
	s, dir, err := a.inForce()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var (
		r  status.Report
		tn tailnet.State
		wg sync.WaitGroup
	)
	wg.Go(func() { r.System, r.Unknown.NotImage, r.Unknown.NeedsRoot, r.Unknown.Image = a.system(ctx) })
	var encrypted bool
	wg.Go(func() { encrypted, r.Unknown.Disk = rootdisk.Encrypted(os.DirFS(a.root)) })
	wg.Go(func() { r.Services, r.Unknown.Mesh = services(ctx) })
	wg.Go(func() {
		tn, r.Unknown.Tailnet = tailnet.New(a.tailscaledSocket).State(ctx)
		if errors.Is(r.Unknown.Tailnet, tailnet.ErrStopped) {
			r.Unknown.Tailnet = nil // as is normal before joining
		}
	})
	wg.Go(func() {
		var y *yggdrasil.Status
		if y, r.Unknown.Yggdrasil = yggdrasil.Query(ctx, a.yggSocket); y != nil {
			r.Yggdrasil = status.Yggdrasil{Key: y.Key, Address: y.Address, Peer: y.Peer, Up: y.Up}
			if f := y.Filters; f.Restored > 0 || f.Missing {
				r.Yggdrasil.Filters = &status.Filters{Restored: f.Restored, Last: f.Last, By: f.By, Missing: f.Missing}
			}
		}
	})
	wg.Wait()

	if r.Unknown.Disk == nil {
		r.System.Encrypted = &encrypted
	}
	r.Mesh = status.Mesh{Joined: tn.Joined, Tags: []string{}}
	if tn.Joined {
		r.Mesh.Hostname = tn.Hostname
		r.Mesh.Tier, r.Mesh.Opens = tierOf(s, tn.Tags)
		r.Mesh.Tags = append(r.Mesh.Tags, tn.Tags...)
		if tn.Address.IsValid() {
			r.Mesh.Address = tn.Address.String()
		}
	}
	if r.Unknown.Mesh != nil {
		for _, v := range s.Services {
			r.Services = append(r.Services, status.Service{Name: v.Name, Layer: status.None, Layers: []status.Layer{}})
		}
	}
	for i := range r.Services {
		if v := &r.Services[i]; v.Layer == string(mesh.Tailnet) {
			v.Path = path(s, tn, v.Name)
		}
	}
	r.Quiet = a.quietState()
	r.Directory, r.Unknown.Directory = status.DirectoryOf(dir), dir.Damage
	r.Judge(time.Now())
	return &r, nil
}

// path is how the tailnet carries packets to the host of a service.
func path(s *site.Site, tn tailnet.State, service string) string {
	for _, v := range s.Services {
		if h, ok := s.Host(v.Host); ok && v.Name == service {
			return tn.Path(h.Tailnet)
		}
	}
	return ""
}

// tierOf is the tier of the tags, and what it opens. Two tags are no tier: the
// node has the sum of both, which the site does not have.
func tierOf(s *site.Site, tags []string) (name string, opens []string) {
	p, err := tier.New(s)
	if err != nil {
		return "", nil // an image with such a site is not built
	}
	if name, err = p.OfTags(tags); err != nil || name == "" {
		return "", nil
	}
	return name, p.Opens(name)
}

// system asks bootc, and for the rest os-release.
func (a *app) system(ctx context.Context) (sys status.System, notImage, needsRoot bool, err error) {
	os := a.osRelease()
	sys = status.System{Name: os.name, Version: os.version}
	if a.euid() != 0 {
		return sys, false, true, nil // bootc answers to root only
	}
	h, err := bootc.Status(ctx)
	switch {
	case errors.Is(err, bootc.ErrMissing), errors.Is(err, bootc.ErrNotManaged):
		return sys, true, false, err
	case err != nil:
		return sys, false, false, err
	}
	sys.Image, sys.Digest, sys.Signature = h.Booted.Ref, h.Booted.Digest, string(h.Booted.Signature)
	if h.Booted.Version != "" {
		sys.Version = h.Booted.Version
	}
	if h.Staged != nil {
		sys.Staged = h.Staged.Version
		if sys.Staged == "" {
			sys.Staged = h.Staged.Digest
		}
	}
	return sys, false, false, nil
}

// services asks veilor-mesh.
func (a *app) services(ctx context.Context) ([]status.Service, error) {
	var answer struct {
		Services []status.Service `json:"services"`
	}
	err := a.mesh().Get(ctx, "/status", &answer)
	return answer.Services, err
}
