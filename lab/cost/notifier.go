package cost

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/veilor/veilor-os/internal/desktop/desktoptest"
	"github.com/veilor/veilor-os/lab/daemon"
	"github.com/veilor/veilor-os/lab/outfit"
)

// startNotifier runs `veilor notify` on a session bus, as a desktop does for who
// logs in. Without a dbus-daemon here it is not measured.
func (t *town) startNotifier(ctx context.Context, f *outfit.Outfit, say func(string, ...any)) (stop func(), err error) {
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		say("NOT MEASURED: %s, which needs a dbus-daemon", notify)
		return func() {}, nil
	}
	socket, config := f.At("bus"), f.At("bus.conf")
	if err := os.WriteFile(config, desktoptest.Config("unix:path="+socket), 0o600); err != nil {
		return nil, fmt.Errorf("starting a session bus: %w", err)
	}
	bus, err := t.startListener(ctx, "dbus-daemon", exec.Command(program, "--config-file="+config, "--nofork"), "unix", socket)
	if err != nil {
		return nil, err
	}
	// The same laptop as lab/laptop's own.
	dir := f.At("laptop")
	cmd := exec.Command(f.Programs.Veilor, "--root", filepath.Join(dir, "root"), "--site", f.Lab.File, "--mesh-socket", filepath.Join(dir, "mesh.sock"),
		"--ygg-socket", filepath.Join(dir, "ygg.sock"), "--tailscaled-socket", t.laptop.Node.Socket, "notify")
	cmd.Env = append(os.Environ(), "DBUS_SESSION_BUS_ADDRESS=unix:path="+socket)
	n, err := daemon.Start(t.world.Guest, notify, t.log(notify), cmd)
	if err != nil {
		bus.Stop()
		return nil, err
	}
	return func() {
		n.Stop()
		bus.Stop()
	}, nil
}
