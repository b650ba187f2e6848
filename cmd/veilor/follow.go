package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/names"
	"github.com/veilor/veilor-os/internal/site"
)

// followAgain is when what could not be served is tried anew: a port that another
// program has. A minute is nothing beside how long such a program runs.
const followAgain = time.Minute

// follower keeps what the daemon serves as the directory in force says.
type follower struct {
	app      *app
	log      *slog.Logger
	resolver netip.Addr
	fwd      *forward.Forwarder
	dns      *names.Server
	changed  func() // tells who watches
	ctx      context.Context
	site     atomic.Pointer[site.Site] // the one that is served

	one sync.Mutex
}

// carried is what a site gives the daemon to serve: connections and names.
func carried(s *site.Site, resolver netip.Addr) ([]forward.Service, *names.Zone, error) {
	addrs := map[string]netip.Addr{}
	for _, v := range s.Services {
		addrs[v.Name] = v.Loopback
	}
	zone, err := names.NewZone(s.Zone, resolver, addrs)
	if err != nil {
		return nil, nil, err
	}
	services, err := forward.FromSite(s)
	return services, zone, err
}

// follow serves what the directory says that is in force now. What cannot be
// served is the error; everything else is.
func (f *follower) follow() error {
	f.one.Lock()
	defer f.one.Unlock()
	s, err := f.app.siteInForce(f.log)
	if err != nil {
		return err
	}
	services, zone, err := carried(s, f.resolver)
	if err != nil {
		return err
	}
	// A name is to be found only when somebody listens behind it.
	err = f.fwd.Replace(f.ctx, services)
	f.dns.Replace(zone)
	f.site.Store(s)
	f.changed()
	f.log.Info("serving what the directory in force says", "services", f.fwd.Names())
	return err
}

// again follows, now and as often as it takes.
func (f *follower) again() {
	if f.ctx.Err() != nil {
		return
	}
	if err := f.follow(); err != nil {
		f.log.Error("following the directory; trying again in a minute", "err", err)
		time.AfterFunc(followAgain, f.again)
	}
}

// answer is POST /directory: a newer one lies there.
func (f *follower) answer(w http.ResponseWriter, _ *http.Request) {
	if err := f.follow(); err != nil {
		f.log.Error("following the directory", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
