package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"reflect"
	"time"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

const (
	defaultSite = "/usr/share/veilor/site.yaml"
	// lookAgain is how often the directory on disk is read: a laptop fetches it
	// twice an hour, and an edge that is gone is missed at once.
	lookAgain = time.Minute
)

// dialled is cfg with the edges and public peers of the directory in force in
// place of those of the configuration, which are as old as the image. Only a
// signed directory counts, and only on a laptop: whoever listens was told whom
// to peer with by its operator.
func dialled(cfg *yggdrasil.Config, siteFile, dir string, log *slog.Logger) *yggdrasil.Config {
	if len(cfg.Listen) > 0 {
		return cfg
	}
	c, err := fromDirectory(cfg, siteFile, dir, log)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("using the peers of the image", "err", err)
		}
		return cfg
	}
	return c
}

func fromDirectory(cfg *yggdrasil.Config, siteFile, dir string, log *slog.Logger) (*yggdrasil.Config, error) {
	s, err := site.Load(siteFile)
	if err != nil {
		return nil, err
	}
	d, err := directory.Current(dir, s)
	if err != nil {
		return nil, err
	}
	if d.Damage != nil {
		log.Warn("reading the directory", "err", d.Damage)
	}
	edges, public := d.Edges(), d.Public()
	if d.Origin != directory.Signed || len(edges)+len(public) == 0 {
		return cfg, nil
	}
	key, _, err := yggdrasil.EnsureKey(cfg.PrivateKeyPath)
	if err != nil {
		return nil, err
	}
	reserve, err := directory.Store{Dir: dir, Site: s}.Reserve(hex.EncodeToString(key.Public().(ed25519.PublicKey)))
	if err != nil {
		log.Warn("reading the reserve edges", "err", err)
	}
	c := *cfg
	c.Edges, c.PublicPeers, c.AllowedPublicKeys = nil, nil, nil
	for _, l := range []struct {
		from []directory.Peer
		to   *[]yggdrasil.Peer
	}{{append(edges, reserve...), &c.Edges}, {public, &c.PublicPeers}} {
		for _, p := range l.from {
			if !p.Address.IsValid() {
				continue // nobody said where, and DNS is not asked
			}
			u, err := url.Parse(p.URL)
			if err != nil {
				return nil, fmt.Errorf("reading the peer %s: %w", p.Name, err)
			}
			k, err := hex.DecodeString(p.Key)
			if err != nil {
				return nil, fmt.Errorf("reading the peer %s: %w", p.Name, err)
			}
			*l.to = append(*l.to, yggdrasil.Peer{Name: p.Name, URL: u, Address: p.Address, Key: k, Network: p.Network})
			c.AllowedPublicKeys = append(c.AllowedPublicKeys, k)
		}
	}
	return &c, nil
}

// grouped gives configurations the group's password that is in force: there may
// be none yet, and another may follow. What cannot be read is an error only the
// first time; later the node runs on with what it has.
func grouped(log *slog.Logger, now func() time.Time) func(*yggdrasil.Config) (*yggdrasil.Config, error) {
	var last *yggdrasil.Config
	said := ""
	return func(cfg *yggdrasil.Config) (*yggdrasil.Config, error) {
		with, err := cfg.WithGroup(now())
		switch {
		case err == nil:
			last, said = with, ""
			return with, nil
		case last == nil:
			return nil, err
		}
		if said != err.Error() { // not every minute
			said = err.Error()
			log.Warn("keeping the group's password of before", "err", err)
		}
		kept := *cfg
		kept.Group = last.Group
		return &kept, nil
	}
}

// follow runs the node, and runs it anew when read gives another configuration.
func follow(ctx context.Context, read func() *yggdrasil.Config, tick <-chan time.Time, run func(context.Context, *yggdrasil.Config) error) error {
	for cfg := read(); ; {
		next := cfg
		inner, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- run(inner, cfg) }()
		for reflect.DeepEqual(next, cfg) {
			select {
			case err := <-done:
				cancel()
				return err
			case <-tick:
				next = read()
			}
		}
		cancel()
		if err := <-done; err != nil {
			return err
		}
		cfg = next
	}
}
