// Package gate says, loudly and in one way, what a test of the lab cannot do on
// the machine that it runs on.
package gate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// CacheVar names the directory of what the lab makes once and keeps, so that
// tests and demo share it. `make test` sets it.
const CacheVar = "VEILOR_LAB_CACHE"

// Root skips the test without root. untested is what then is not shown: "the
// fence".
func Root(t testing.TB, untested string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIPPED, NOT TESTED: %s. It needs root, for namespaces and mounts", untested)
	}
}

// Long skips the test where only short ones are wanted.
func Long(t testing.TB, untested string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("SKIPPED, NOT TESTED: %s. It takes minutes, and -short was given", untested)
	}
}

// Cache returns the lab's cache, and skips the test if none is named.
func Cache(t testing.TB, untested string) string {
	t.Helper()
	dir := os.Getenv(CacheVar)
	if dir == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s. Set %s to the lab's cache (or where it shall be), or run make test", untested, CacheVar)
	}
	return dir
}

// logEnd is how much of a log is shown, in bytes.
const logEnd = 3000

// ShowLogs shows the ends of the daemons' logs in dir: of those named, or of all.
func ShowLogs(t testing.TB, dir string, names ...string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".log")
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		data, _ := os.ReadFile(f)
		t.Logf("%s ends:\n%s", name, data[max(0, len(data)-logEnd):])
	}
}
