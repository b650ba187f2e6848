// Package unit switches systemd units on and off.
package unit

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
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

func systemctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "systemctl", append([]string{"--quiet", "--no-ask-password"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if why := strings.TrimSpace(stderr.String()); why != "" {
			return fmt.Errorf("running systemctl %s: %s", strings.Join(args, " "), why)
		}
		return fmt.Errorf("running systemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
