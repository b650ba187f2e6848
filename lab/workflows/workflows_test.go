package workflows

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/gate"
)

const ours = "../../.github/workflows"

// watch reads our workflows through a link inside of this module: the go command
// runs a test anew only if a file changed that it read there.
func watch(t *testing.T) {
	t.Helper()
	for _, file := range files(t, "testdata/ours") {
		if _, err := os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.yml"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no workflows in %s: %v", dir, err)
	}
	return all
}

// broken is a workflow that both tools must find fault with.
const broken = `name: broken
on: pull_request_target
jobs:
  a:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@main
      - run: echo ${{ github.event.pull_request.title }}
      - run: echo ${{ steps.absent.outputs.x }}
`

func write(t *testing.T, text string) string {
	t.Helper()
	// Only files of this directory of a repository are workflows.
	dir := filepath.Join(t.TempDir(), ".github", "workflows")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestActionlint(t *testing.T) {
	watch(t)
	found, err := Actionlint(files(t, ours))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("%s:%d:%d: %s [%s]", f.Filepath, f.Line, f.Column, f.Message, f.Kind)
	}
	if found, err := Actionlint(files(t, write(t, broken))); err != nil || len(found) == 0 {
		t.Errorf("a broken workflow passed: %v", err)
	}
}

func TestZizmor(t *testing.T) {
	watch(t)
	dir := gate.Cache(t, "the workflows by zizmor")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := InstallZizmor(t.Context(), &cache.Cache{Dir: dir}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := Zizmor(t.Context(), program, ours); err != nil || found != "" {
		t.Errorf("%v\n%s", err, found)
	}
	found, err := Zizmor(t.Context(), program, write(t, broken))
	if err != nil || !strings.Contains(found, "template-injection") || !strings.Contains(found, "dangerous-triggers") {
		t.Errorf("a broken workflow passed: %v\n%s", err, found)
	}
	if _, err := Zizmor(t.Context(), program, filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("it judged a directory that is not there")
	}
}

// Pinned by commit, with the version for people; one exception, which says why.
func TestActionsArePinned(t *testing.T) {
	watch(t)
	const exception = "slsa-framework/slsa-github-generator/.github/workflows/generator_container_slsa3.yml"
	uses := regexp.MustCompile(`^\s*(?:- )?uses: (\S+)(.*)$`)
	pinned := regexp.MustCompile(`^ # v\d+\.\d+\.\d+$`)
	commits := map[string]string{}
	exceptions := 0
	for _, file := range files(t, ours) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(data), "\n") {
			m := uses.FindStringSubmatch(line)
			if m == nil || strings.HasPrefix(m[1], "./") {
				continue
			}
			name, at, _ := strings.Cut(m[1], "@")
			if name == exception {
				exceptions++
				continue
			}
			if len(at) != 40 || !pinned.MatchString(m[2]) {
				t.Errorf("%s:%d: %s: write a commit of 40 digits, and the version in a comment", file, n+1, line)
			}
			// Two versions of one action would be one forgotten.
			if other, ok := commits[name]; ok && other != at+m[2] {
				t.Errorf("%s:%d: %s is %s elsewhere", file, n+1, m[1], other)
			}
			commits[name] = at + m[2]
		}
	}
	if exceptions != 1 {
		t.Errorf("the generator that must be pinned by tag is used %d times", exceptions)
	}
}
