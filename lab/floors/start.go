package floors

import (
	"context"
	"crypto/x509"

	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/world"
)

// forget is after how long the ISP's address translation forgets a flow that
// nobody uses, in seconds: what cheap routers do.
const forget = "60"

// Start brings a world with two edges up and joins a laptop behind an address
// translation. roots are those of the service's certificate. The town ends with
// stop or with ctx.
func Start(ctx context.Context, f *outfit.Outfit) (t *Town, roots *x509.CertPool, stop func(), err error) {
	f.World.Guest = true
	w, err := world.Start(ctx, f.World)
	if err != nil {
		return nil, nil, nil, err
	}
	for key, value := range map[string]string{
		"net.netfilter.nf_conntrack_acct":                    "1",
		"net.netfilter.nf_conntrack_udp_timeout":             forget,
		"net.netfilter.nf_conntrack_udp_timeout_stream":      forget,
		"net.netfilter.nf_conntrack_tcp_timeout_established": forget,
		"net.netfilter.nf_conntrack_tcp_loose":               "0",
	} {
		if err := w.ISP.Sysctl(key, value); err != nil {
			w.Close()
			return nil, nil, nil, err
		}
	}
	if err := w.Masquerade(); err != nil {
		w.Close()
		return nil, nil, nil, err
	}
	l, err := laptop.Start(ctx, w, laptop.Config{
		Veilor: f.Programs.Veilor, VeilorYgg: f.Programs.Ygg, Site: f.Lab.Site, SiteFile: f.Lab.File,
		// What the system of a real laptop trusts: the web's authorities.
		Roots: f.World.WebCA.CertFile(), Dir: f.At("laptop"), Logs: f.World.Logs,
	})
	if err != nil {
		w.Close()
		return nil, nil, nil, err
	}
	stop = func() {
		l.Stop()
		w.Close()
	}
	return &Town{World: w, Laptop: l, Site: f.Lab.Site}, f.Authority, stop, nil
}
