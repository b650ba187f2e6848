package program

import (
	"os/exec"
	"path/filepath"
	"strings"
)

// Commit of the checkout source, "-dirty" if there is more in it; "unknown" where
// git cannot say.
func Commit(source string) string {
	root, err := filepath.Abs(source)
	if err != nil {
		return "unknown"
	}
	// Whoever runs the lab as root does so in somebody's checkout.
	out, err := exec.Command("git", "-c", "safe.directory="+root, "-C", root, "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
