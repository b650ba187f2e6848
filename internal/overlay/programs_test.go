package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module writes a module whose programs say their package path and directory.
func module(t *testing.T, body string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"go.mod": "module example.org/veilor\n\ngo 1.24\n"}
	for _, p := range programs {
		files["cmd/"+p+"/main.go"] = "package main\n\n" + body
	}
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The programs are the same bytes from two directories, and whatever the
// environment asks of the compiler.
func TestBuildProgramsIsReproducible(t *testing.T) {
	const body = "func main() { panic(1) }\n"
	a, err := BuildPrograms(t.Context(), module(t, body), t.TempDir(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOFLAGS", "-race")
	t.Setenv("GOAMD64", "v3")
	t.Setenv("CGO_ENABLED", "1")
	b, err := BuildPrograms(t.Context(), module(t, body), t.TempDir(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != len(programs) || !a[0].Exec || a[0].Group != Programs {
		t.Errorf("programs: %d, %+v", len(a), a[0].Path)
	}
	if !cmp.Equal(a, b) {
		t.Error("the programs differ")
	}
}

func TestBuildProgramsFails(t *testing.T) {
	_, err := BuildPrograms(t.Context(), module(t, "func main() { nothing() }\n"), t.TempDir(), "amd64")
	if err == nil || !strings.Contains(err.Error(), "undefined: nothing") {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err = BuildPrograms(t.Context(), module(t, ""), t.TempDir(), "amd64")
	if err == nil || !strings.Contains(err.Error(), "install Go, or give compiled ones with --programs DIR") {
		t.Errorf("got %v", err)
	}
}
