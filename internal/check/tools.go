package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// packages are the Debian packages of the tools that rules ask.
var packages = map[string]string{
	"desktop-file-validate": "desktop-file-utils",
	"firewall-offline-cmd":  "firewalld",
	"shellcheck":            "shellcheck",
	"systemd-analyze":       "systemd",
	"usbguard-rule-parser":  "usbguard",
	"visudo":                "sudo",
}

// Packages are the Debian packages of all tools that rules ask, sorted.
func Packages() []string {
	return slices.Compact(slices.Sorted(maps.Values(packages)))
}

// below are where a directory of tools may have its programs: itself, or the root
// of a system.
var below = []string{"", "usr/bin", "usr/sbin", "bin", "sbin"}

// adminDirs have administrators' tools, and are often not on a person's PATH.
var adminDirs = []string{"/usr/sbin", "/sbin"}

// Tools finds the programs that rules ask.
type Tools struct {
	// Dirs are looked through before PATH.
	Dirs []string
}

func (t Tools) find(name string) (string, error) {
	for _, d := range slices.Concat(t.Dirs, []string{""}, adminDirs) {
		if d == "" {
			if p, err := exec.LookPath(name); err == nil {
				return p, nil
			}
			continue
		}
		for _, b := range below {
			p := filepath.Join(d, b, name)
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", skipf("%s is not installed (Debian's package %s)", name, packages[name])
}

// run runs a tool and returns what it printed; its failure is an *exec.ExitError.
func (t Tools) run(ctx context.Context, name string, args ...string) (string, error) {
	p, err := t.find(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, p, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", fmt.Errorf("running %s: %w", name, err)
	}
	return text, err
}

// complaint is what a tool said, without the names of our own temporary files.
func complaint(out string, err error, dir string) string {
	if out == "" {
		return err.Error()
	}
	return strings.ReplaceAll(out, dir+string(filepath.Separator), "")
}

// laid writes files below a temporary directory for tools to read, and removes it
// when done returns.
func laid(files map[string][]byte, done func(dir string) error) error {
	dir, err := os.MkdirTemp("", "veilor-check-")
	if err != nil {
		return fmt.Errorf("laying out files for a tool: %w", err)
	}
	defer os.RemoveAll(dir)
	for name, data := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return fmt.Errorf("laying out files for a tool: %w", err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			return fmt.Errorf("laying out files for a tool: %w", err)
		}
	}
	return done(dir)
}
