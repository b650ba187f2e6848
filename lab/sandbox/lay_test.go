package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A link in the root must not lead the installer out of it.
func TestLayReplacesLinks(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	err := errors.Join(
		os.MkdirAll(filepath.Join(from, "etc"), 0o755), os.MkdirAll(filepath.Join(to, "etc"), 0o755),
		os.WriteFile(filepath.Join(from, "etc/policy.json"), []byte("new"), 0o644),
		os.Symlink("policy.json", filepath.Join(from, "etc/link")),
		os.WriteFile(outside, []byte("old"), 0o644),
		os.Symlink(outside, filepath.Join(to, "etc/policy.json")),
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Root{dir: to}).Lay(from); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(to, "etc/link"))
	old, _ := os.ReadFile(outside)
	if string(b) != "new" || string(old) != "old" {
		t.Errorf("the root has %q, outside has %q", b, old)
	}
}
