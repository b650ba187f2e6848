package main

import (
	"errors"
	"os"

	"github.com/google/nftables"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/fence"
	"github.com/veilor/veilor-os/internal/loopfilter"
	"github.com/veilor/veilor-os/internal/nftguard"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

// loader is the program that loads the laptop's other packet filters, as the
// kernel names it: `veilor mesh prepare` and `veilor mesh fence`.
const loader = "veilor"

// kept are the laptop's other packet filters. They are put in place as root, by
// programs that then end; this daemon may load them too and runs on, so that no
// further one needs the right.
func kept(cfg *yggdrasil.Config, siteFile, dir string) []yggdrasil.Kept {
	if len(cfg.Listen) > 0 {
		return nil // a server has neither
	}
	return []yggdrasil.Kept{
		{
			Table: nftguard.Table{Family: nftables.TableFamilyIPv4, Name: loopfilter.Table}, Program: loader,
			Load: func() error {
				f, err := loopfilter.ForMachine(os.DirFS("/"), site.Resolver, loopfilter.Forwarder)
				if err != nil {
					return err
				}
				return f.Load()
			},
		},
		{
			Table: nftguard.Table{Family: nftables.TableFamilyINet, Name: fence.Table}, Program: loader,
			Load: func() error {
				s, err := site.Load(siteFile)
				if err != nil {
					return err
				}
				d, err := directory.Current(dir, s)
				if err != nil {
					return err
				}
				err = fence.Follow(d, fence.Group)
				if errors.Is(err, fence.ErrNoGroup) || errors.Is(err, fence.ErrNoGate) {
					return nil // as `veilor mesh fence` said already
				}
				return err
			},
		},
	}
}
