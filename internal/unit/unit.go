// Package unit switches systemd units on and off.
package unit

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Start enables the unit for every boot and starts it afresh now.
func Start(ctx context.Context, name string) error {
	if err := systemctl(ctx, "enable", name); err != nil {
		return err
	}
	return systemctl(ctx, "restart", name)
}

// Stop stops the unit and disables it.
func Stop(ctx context.Context, name string) error {
	return systemctl(ctx, "disable", "--now", name)
}

// Pause stops units until the next boot or Resume; what is enabled stays so.
func Pause(ctx context.Context, names ...string) error {
	return systemctl(ctx, append([]string{"stop"}, names...)...)
}

// Resume starts units and does not wait for them.
func Resume(ctx context.Context, names ...string) error {
	return systemctl(ctx, append([]string{"start", "--no-block"}, names...)...)
}

// Active says whether a unit runs or is about to.
func Active(ctx context.Context, name string) bool {
	return systemctl(ctx, "is-active", name) == nil
}

// Later runs a command once, after d, under the name of a transient timer. A
// restart of the machine forgets it.
func Later(ctx context.Context, d time.Duration, name string, command ...string) error {
	args := []string{"--quiet", "--no-ask-password", "--collect", "--unit=" + name, fmt.Sprintf("--on-active=%ds", int(d.Seconds())), "--timer-property=AccuracySec=1s", "--"}
	return run(ctx, "systemd-run", append(args, command...)...)
}

func systemctl(ctx context.Context, args ...string) error {
	return run(ctx, "systemctl", append([]string{"--quiet", "--no-ask-password"}, args...)...)
}

func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		what := program
		for _, a := range args {
			if !strings.HasPrefix(a, "--") { // ours, of no interest
				what += " " + a
			}
		}
		if why := strings.TrimSpace(stderr.String()); why != "" {
			return fmt.Errorf("running %s: %s", what, why)
		}
		return fmt.Errorf("running %s: %w", what, err)
	}
	return nil
}
