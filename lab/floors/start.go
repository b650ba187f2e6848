package floors

import (
	"context"
	"errors"

	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/world"
)

// Start brings a world with two edges up and joins a laptop behind an address
// translation, and others beside it. The town ends with stop or with ctx.
func Start(ctx context.Context, f *outfit.Outfit) (t *Town, stop func(), err error) {
	f.World.Guest, f.World.Cafe, f.World.SSH = true, true, true
	// What is open at home is the tiers' to say: a guest is not to have the port
	// that an administrator has.
	f.World.SiteFile = f.Lab.File
	w, err := world.Start(ctx, f.World)
	if err != nil {
		return nil, nil, err
	}
	// censor.Frozen counts what a connection has carried.
	if err := errors.Join(w.ISP.Sysctl("net.netfilter.nf_conntrack_acct", "1"), w.Masquerade()); err != nil {
		w.Close()
		return nil, nil, err
	}
	cfg := laptop.Config{
		Veilor: f.Programs.Veilor, VeilorYgg: f.Programs.Ygg, Site: f.Lab.Site, SiteFile: f.Lab.File,
		// What the system of a real laptop trusts: the web's authorities.
		Roots: f.World.WebCA.CertFile(), Dir: f.At("laptop"), Logs: f.World.Logs,
	}
	t = &Town{World: w, Site: f.Lab.Site, Authority: f.Authority}
	stop = func() {
		t.stop()
		w.Close()
	}
	f.World.Progress("the laptop, two neighbours and an administrator")
	if t.Laptop, err = laptop.Start(ctx, w, cfg); err == nil {
		err = t.settle(ctx, cfg)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return t, stop, nil
}
