package main

import (
	"os"
	"path/filepath"
	"strings"
)

// osName is what the system calls itself (os-release(5)).
type osName struct{ name, version string }

// osRelease reads it; what cannot be read stays empty.
func (a *app) osRelease() osName {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		if data, err := os.ReadFile(filepath.Join(a.root, p)); err == nil {
			return parseOSRelease(string(data))
		}
	}
	return osName{}
}

// parseOSRelease takes NAME and the most exact version there is.
func parseOSRelease(text string) osName {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if n := len(v); n >= 2 && (v[0] == '"' || v[0] == '\'') && v[n-1] == v[0] {
			v = v[1 : n-1]
		}
		fields[k] = v
	}
	n := osName{name: fields["NAME"]}
	for _, k := range []string{"IMAGE_VERSION", "OSTREE_VERSION", "VERSION_ID"} {
		if n.version == "" {
			n.version = fields[k]
		}
	}
	return n
}
