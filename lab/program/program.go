// Package program builds the programs that the lab runs: the product's from this
// repository, the others from the versions that lab/go.mod pins.
package program

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/veilor/veilor-os/lab/sandbox"
)

// Set is where the programs are. All are static.
type Set struct {
	Veilor, Forge, Ygg               string // the product's
	Headscale, Tailscaled, Tailscale string // others'
	PublicPeer, Browser, Init, Relay string // the lab's
}

// Build builds all of them into dir, from the checkout source. Go's own cache
// makes this short when nothing has changed. The same sources give the same
// bytes, so that what is made with the programs can be kept by their content.
func Build(ctx context.Context, source, dir string, log io.Writer) (Set, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Set{}, err
	}
	for _, b := range []struct {
		module   string
		packages []string
	}{
		{source, []string{"./cmd/veilor", "./cmd/veilor-forge", "./cmd/veilor-ygg"}},
		{filepath.Join(source, "lab"), []string{
			"github.com/juanfont/headscale/cmd/headscale", "tailscale.com/cmd/tailscaled", "tailscale.com/cmd/tailscale",
			"./cmd/publicpeer", "./cmd/browser", "./cmd/init", "./cmd/relay",
		}},
	} {
		args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir + "/"}, b.packages...)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = b.module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		sandbox.Gentle(cmd)
		if err := sandbox.RunLogged(ctx, cmd, log); err != nil {
			return Set{}, err
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	return Set{
		Veilor: at("veilor"), Forge: at("veilor-forge"), Ygg: at("veilor-ygg"),
		Headscale: at("headscale"), Tailscaled: at("tailscaled"), Tailscale: at("tailscale"),
		PublicPeer: at("publicpeer"), Browser: at("browser"), Init: at("init"), Relay: at("relay"),
	}, nil
}
