package rules

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// inputless are the rules that no program could check: what they are about is not
// in the repository. It has no kickstart yet, no built image, no lock (a maintainer
// makes it), and no service dl in its site.
var inputless = []string{"installer-log", "image-overlay", "base-lock", "downloads-reach"}

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// With all programs at hand the repository keeps every rule, and every rule finds
// what breaks it.
func TestRulesWithEveryProgram(t *testing.T) {
	gate.Root(t, "the rules that need programs")
	dir := gate.Cache(t, "the rules that need programs")
	tree, err := debian.Readers.Build(t.Context(), &cache.Cache{Dir: dir}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	program := filepath.Join(scratch, "check.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "./internal/check")
	build.Dir, build.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the tests: %v\n%s", err, out)
	}

	root, err := sandbox.Overlay(tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	// Only what the rules read, at the place where the tests look for it.
	const inside = "/src"
	for _, d := range []string{"overlay", "bluebuild", "site", "kickstart", "cmd", "internal/check"} {
		if _, err := os.Stat(filepath.Join(repository, d)); err != nil {
			continue
		}
		if err := root.Bind(filepath.Join(repository, d), filepath.Join(inside, d)); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Share(scratch); err != nil {
		t.Fatal(err)
	}
	cmd := root.Command(t.Context(), program, "-test.v")
	cmd.Dir = filepath.Join(inside, "internal/check")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, failures(string(out)))
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "SKIPPED") {
			t.Errorf("a program is missing in the root: %s", strings.TrimSpace(line))
		}
	}
	for _, m := range regexp.MustCompile(`NOT CHECKED ([a-z-]+): .*`).FindAllStringSubmatch(string(out), -1) {
		if !slices.Contains(inputless, m[1]) {
			t.Error(m[0])
		}
	}
	t.Logf("%d rules broken, %d ways", strings.Count(string(out), "=== RUN   TestRulesFail/"), strings.Count(string(out), "--- PASS: TestRulesFail/"))
}

// failures are the lines of a test's output that are not about what passed.
func failures(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "=== RUN") && !strings.Contains(line, "--- PASS") {
			b.WriteString(line)
		}
	}
	return b.String()
}
