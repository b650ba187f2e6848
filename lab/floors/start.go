package floors

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
	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
	"github.com/veilor/veilor-os/lab/webca"
	"github.com/veilor/veilor-os/lab/world"
)

// Setup says what a town is made from.
type Setup struct {
	// Source is the checkout, Cache what later runs use again.
	Source, Cache string
	// Dir is for everything that lives as long as the town. It must be empty, and
	// its path short.
	Dir string
	// Log gets the output of builds.
	Log io.Writer
	// Progress, if set, is told what comes up next.
	Progress func(what string)
}

// forget is after how long the ISP's address translation forgets a flow that
// nobody uses, in seconds: what cheap routers do.
const forget = "60"

// Start builds the programs, brings a world with two edges up and joins a laptop
// behind an address translation. The town ends with stop or with ctx.
func Start(ctx context.Context, s Setup) (t *Town, roots *x509.CertPool, stop func(), err error) {
	programs, err := program.Build(ctx, s.Source, filepath.Join(s.Cache, "bin"), s.Log)
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := debian.Tools.Build(ctx, &cache.Cache{Dir: s.Cache}, s.Log)
	if err != nil {
		return nil, nil, nil, err
	}
	tools, err := sandbox.Chroot(root)
	if err != nil {
		return nil, nil, nil, err
	}
	var closers []func()
	end := func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}
	closers = append(closers, func() { tools.Close() })
	defer func() {
		if err != nil {
			end()
		}
	}()
	at := func(name string) string { return filepath.Join(s.Dir, name) }
	lab, err := labsite.MakeWide(at("site"), time.Now())
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, err := lab.Certificate(time.Now())
	if err != nil {
		return nil, nil, nil, err
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(lab.Authority.Data)
	web, err := webca.Open(at("web"), time.Now)
	if err != nil {
		return nil, nil, nil, err
	}
	w, err := world.Start(ctx, world.Config{
		Tools: world.Tools{
			Headscale: programs.Headscale, Tailscaled: programs.Tailscaled, Tailscale: programs.Tailscale,
			VeilorYgg: programs.Ygg, PublicPeer: programs.PublicPeer, Dnsmasq: func(args ...string) *exec.Cmd { return tools.Command(context.WithoutCancel(ctx), "dnsmasq", args...) },
		},
		Site: lab.Site, EdgeKey: lab.EdgeKey, FarEdgeKey: lab.FarEdgeKey, PeerKey: lab.PeerKey, Service: leaf, WebCA: web,
		Run: at("run"), Logs: at("logs"), Names: at("netns"), Guest: true, Progress: s.Progress,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	closers = append(closers, w.Close)
	for key, value := range map[string]string{
		"net.netfilter.nf_conntrack_acct":                    "1",
		"net.netfilter.nf_conntrack_udp_timeout":             forget,
		"net.netfilter.nf_conntrack_udp_timeout_stream":      forget,
		"net.netfilter.nf_conntrack_tcp_timeout_established": forget,
		"net.netfilter.nf_conntrack_tcp_loose":               "0",
	} {
		if err := w.ISP.Sysctl(key, value); err != nil {
			return nil, nil, nil, err
		}
	}
	if err := w.Masquerade(); err != nil {
		return nil, nil, nil, err
	}
	// What the system of a real laptop trusts: the web's authorities.
	l, err := laptop.Start(ctx, w, laptop.Config{
		Veilor: programs.Veilor, VeilorYgg: programs.Ygg, Site: lab.Site, SiteFile: lab.File,
		Roots: web.CertFile(), Dir: at("laptop"), Logs: at("logs"),
	})
	if err != nil {
		return nil, nil, nil, err
	}
	closers = append(closers, l.Stop)
	return &Town{World: w, Laptop: l, Site: lab.Site}, roots, end, nil
}

// Dir makes a directory with a path short enough for sockets; remove ends it.
func Dir() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "town")
	if err != nil {
		return "", nil, fmt.Errorf("making a directory for the town: %w", err)
	}
	return dir, func() { os.RemoveAll(dir) }, nil
}
