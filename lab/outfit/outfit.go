// Package outfit equips a world: it builds the programs that run in it, unpacks
// the tools, and makes a site with its keys and certificates.
package outfit

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/webca"
	"github.com/veilor/veilor-os/lab/world"
)

// Options say what from.
type Options struct {
	// Source is the checkout, Cache the directory of what later runs use again.
	Source, Cache string
	// Wide gives the site a second edge and a second public peer, in networks of
	// their own, a second host, in the laptop's, and everybody IPv6.
	Wide bool
	// Log gets the output of builds.
	Log io.Writer
	// Progress, if set, is told what the world does as it comes up.
	Progress func(what string)
}

// Outfit is what a world needs, in a directory of its own.
type Outfit struct {
	// World may be changed before it is given to world.Start.
	World    world.Config
	Lab      *labsite.Lab
	Programs program.Set
	// Authority trusts the site's services.
	Authority *x509.CertPool
	// Dir is the directory. Its path is short enough for sockets below it.
	Dir string

	tools *sandbox.Root
}

// Make makes an outfit. Close removes it.
func Make(ctx context.Context, o Options) (*Outfit, error) {
	f := new(Outfit)
	if err := f.make(ctx, o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Outfit) make(ctx context.Context, o Options) (err error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if f.Programs, err = program.Build(ctx, o.Source, filepath.Join(o.Cache, "bin"), o.Log); err != nil {
		return err
	}
	root, err := debian.Tools.Build(ctx, &cache.Cache{Dir: o.Cache}, o.Log)
	if err != nil {
		return err
	}
	if f.tools, err = sandbox.Chroot(root); err != nil {
		return err
	}
	// Not a test's own directory: its path is longer than a socket's may be.
	if f.Dir, err = os.MkdirTemp("", "lab"); err != nil {
		return fmt.Errorf("making a directory for a world: %w", err)
	}
	makeSite := labsite.Make
	if o.Wide {
		makeSite = labsite.MakeWide
	}
	if f.Lab, err = makeSite(f.At("site"), time.Now()); err != nil {
		return err
	}
	leaf, err := f.Lab.Certificate(time.Now())
	if err != nil {
		return err
	}
	f.Authority = x509.NewCertPool()
	f.Authority.AppendCertsFromPEM(f.Lab.Authority.Data)
	web, err := webca.Open(f.At("web"), time.Now)
	if err != nil {
		return err
	}
	// dnsmasq runs until its world ends, not until ctx does.
	forever := context.WithoutCancel(ctx)
	f.World = world.Config{
		Tools: world.Tools{
			Headscale: f.Programs.Headscale, Tailscaled: f.Programs.Tailscaled, Tailscale: f.Programs.Tailscale,
			VeilorYgg: f.Programs.Ygg, PublicPeer: f.Programs.PublicPeer,
			Dnsmasq: func(args ...string) *exec.Cmd { return f.tools.Command(forever, "dnsmasq", args...) },
		},
		Site: f.Lab.Site, EdgeKey: f.Lab.EdgeKey, FarEdgeKey: f.Lab.FarEdgeKey, PeerKey: f.Lab.PeerKey, SecondPeerKey: f.Lab.SecondPeerKey, AtticKey: f.Lab.AtticKey, IPv6: o.Wide,
		Service: leaf, WebCA: web,
		Run: f.At("run"), Logs: f.At("logs"), Names: f.At("netns"), Progress: o.Progress,
	}
	return nil
}

// At is a path below Dir.
func (f *Outfit) At(name string) string { return filepath.Join(f.Dir, name) }

// Close removes the directory with all that is in it. The world must have ended.
func (f *Outfit) Close() {
	if f.tools != nil {
		f.tools.Close()
	}
	if f.Dir != "" {
		os.RemoveAll(f.Dir)
	}
}
