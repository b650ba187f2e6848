package act

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// scratch makes an empty directory with a short path (a socket's has 107
// bytes) on a tmpfs of the sandbox's own: its content goes with the sandbox,
// however that ends.
func scratch() (string, error) {
	dir, err := os.MkdirTemp("", "veilor-")
	if err != nil {
		return "", fmt.Errorf("making a scratch directory: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		os.Remove(dir)
		return "", fmt.Errorf("mounting a scratch directory: %w", err)
	}
	return dir, nil
}

func dropScratch(dir string) {
	// Lazily: a daemon that is just ending may still have a file open.
	if unix.Unmount(dir, unix.MNT_DETACH) == nil {
		os.Remove(dir)
	}
}
