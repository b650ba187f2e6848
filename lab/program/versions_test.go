package program

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Versions(Set{Tailscaled: self, Headscale: self, Ygg: self})
	if err != nil || got["Go"] != strings.TrimPrefix(runtime.Version(), "go") {
		t.Errorf("Versions = %v, %v", got, err)
	}
	if _, err := Versions(Set{Tailscaled: self, Headscale: filepath.Join(t.TempDir(), "none"), Ygg: self}); err == nil {
		t.Error("a program that is not there has a version")
	}
}
