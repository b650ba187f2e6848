package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// downloads is the service, in the zone, that has the directory below
	// directoryPath.
	downloads     = "dl"
	directoryPath = "/directory"
	// dialLimit bounds a connection to our own forwarder, which races the layers.
	dialLimit = 15 * time.Second
)

// siteInForce is the site file of the image with what the signed directory says,
// where there is one. A directory that cannot be used changes nothing.
func (a *app) siteInForce(log *slog.Logger) (*site.Site, error) {
	s, d, err := a.inForce()
	if err != nil {
		return nil, err
	}
	if d.Damage != nil {
		log.Warn("reading the directory", "err", d.Damage)
	}
	switch d.Freshness(time.Now()) {
	case directory.Expired:
		log.Warn("the directory has expired; it is used, and a change needs newer signatures", "expired", d.Expires.Format(time.DateOnly))
	case directory.FromTheFuture:
		log.Warn("the clock is behind the directory's signatures", "signed", d.Made.Format(time.DateOnly))
	}
	return s, nil
}

// inForce is the site in force and the directory by which it is. What could not
// be used of a directory is its Damage; err is of the image's site file.
func (a *app) inForce() (*site.Site, directory.Directory, error) {
	s, err := site.Load(a.site)
	if err != nil {
		return nil, directory.Directory{}, err
	}
	d, err := directory.Current(filepath.Join(a.root, directory.Dir), s)
	if err != nil {
		return s, directory.Directory{Origin: directory.Image, Damage: err}, nil
	}
	if d.Origin != directory.Signed {
		return s, d, nil
	}
	in, err := d.Apply(s)
	if err != nil {
		return s, directory.Directory{Origin: directory.Image, Damage: err}, nil
	}
	in.Directory = s.Directory
	return in, d, nil
}

// refresh keeps the directory new until ctx ends, by the service dl of the zone
// and thus over whichever layer is up. A site without that service, or an image
// without a signed directory, takes new ones by `veilor mesh import` or an update.
// follow makes the daemon serve what the newer one says.
func (a *app) refresh(ctx context.Context, log *slog.Logger, s *site.Site, follow func() error) {
	name := downloads + "." + s.Zone
	i := slices.IndexFunc(s.Services, func(v site.Service) bool { return v.Name == name && slices.Contains(v.Ports, httpsPort) })
	if i < 0 || s.Directory == nil || s.Directory.Signed.Data == nil {
		return
	}
	// Our own forwarder, by its address: no resolver is asked.
	at := netip.AddrPortFrom(s.Services[i].Loopback, httpsPort).String()
	dialer := net.Dialer{Timeout: dialLimit}
	r := directory.Refresher{
		Store: a.directoryStore(s),
		Client: &http.Client{Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", at) },
			ForceAttemptHTTP2: true,
			// Half an hour passes until the next question.
			IdleConnTimeout: dialLimit,
		}},
		Base:  &url.URL{Scheme: "https", Host: name, Path: directoryPath},
		Now:   time.Now,
		After: time.After,
		Changed: func(d directory.Directory) {
			log.Info("a newer directory is in force",
				"names", strconv.FormatInt(d.Version, 10), "addresses", strconv.FormatInt(d.Moves, 10), "until", d.Expires.Format(time.DateOnly))
			if err := follow(); err != nil {
				log.Error("following the directory", "err", err)
			}
		},
		Failed: func(err error) { log.Debug("asking for a newer directory", "err", err) },
	}
	r.Run(ctx, nil)
}
