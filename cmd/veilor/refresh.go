package main

import (
	"context"
	"errors"
	"fmt"
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

// errNoDownloads is that the site has nothing from which a directory could come.
var errNoDownloads = errors.New("no service of the zone has directories")

// downloadsOf is where our own forwarder listens for the service dl of the zone: no
// resolver is asked.
func downloadsOf(s *site.Site) (string, error) {
	name := downloads + "." + s.Zone
	for _, v := range s.Services {
		if v.Name == name && slices.Contains(v.Ports, httpsPort) {
			return netip.AddrPortFrom(v.Loopback, httpsPort).String(), nil
		}
	}
	return "", fmt.Errorf("%w: the site has no %s:%d", errNoDownloads, name, httpsPort)
}

// refresh keeps the directory new until ctx ends, by the service dl of the zone
// and thus over whichever layer is up. While the site has no such service, and on
// an image without a signed directory, new ones come by `veilor mesh import` or an
// update. A layer that comes up, which kick tells, is asked at once.
func (a *app) refresh(ctx context.Context, log *slog.Logger, follows *follower, kick <-chan struct{}) {
	s := follows.site.Load()
	if s.Directory == nil || s.Directory.Signed.Data == nil {
		return
	}
	dialer := net.Dialer{Timeout: dialLimit}
	r := directory.Refresher{
		Store: a.directoryStore(s),
		Client: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				at, err := downloadsOf(follows.site.Load())
				if err != nil {
					return nil, err
				}
				return dialer.DialContext(ctx, "tcp", at)
			},
			ForceAttemptHTTP2: true,
			// Half an hour passes until the next question.
			IdleConnTimeout: dialLimit,
		}},
		Base:  &url.URL{Scheme: "https", Host: downloads + "." + s.Zone, Path: directoryPath},
		Now:   time.Now,
		After: time.After,
		Changed: func(d directory.Directory) {
			log.Info("a newer directory is in force",
				"names", strconv.FormatInt(d.Version, 10), "addresses", strconv.FormatInt(d.Moves, 10), "until", d.Expires.Format(time.DateOnly))
			follows.again()
		},
		Failed: func(err error) { log.Debug("asking for a newer directory", "err", err) },
	}
	r.Run(ctx, kick)
}
