package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSuites: every benchmark that must report is there, and no suite has that of
// another.
func TestSuites(t *testing.T) {
	for _, s := range suites(options{source: "../../..", benchtime: "1s"}) {
		pattern := regexp.MustCompile(s.pattern)
		for _, name := range s.want {
			top, _, _ := strings.Cut("Benchmark"+name, "/")
			if !pattern.MatchString(top) {
				t.Errorf("%s in %s does not run %s", s.pattern, s.pkg, top)
			}
			cmd := exec.Command("grep", "-rlw", "--include=*_test.go", "func "+top, filepath.Join(s.module, strings.TrimSuffix(s.pkg, "/...")))
			if out, err := cmd.Output(); err != nil {
				t.Errorf("%s is not in %s: %v, %s", top, s.pkg, err, out)
			}
		}
	}
}
