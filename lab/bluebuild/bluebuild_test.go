package bluebuild

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// TestStage looks at what the CLI is given: the recipe with the embedded base, which
// answers over TLS. A script takes the place of the CLI, whose compiling takes ten
// minutes; `make bluebuild` runs the real one.
func TestStage(t *testing.T) {
	gate.Root(t, "what BlueBuild is given")
	dir := gate.Cache(t, "what BlueBuild is given")
	root, err := debian.Tools.Build(t.Context(), &cache.Cache{Dir: dir}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	cli := filepath.Join(t.TempDir(), "bluebuild")
	const script = `#!/bin/sh
set -e
base=$(sed -n 's/^base-image: //p' recipes/recipe.yml)
digest=$(sed -n 's/^image-version: "44@\(.*\)"$/\1/p' recipes/recipe.yml)
skopeo inspect --raw docker://$base@$digest
{ echo "FROM $base"; echo "# $digest"; skopeo inspect --config docker://$base@$digest; } > Containerfile
`
	if err := os.WriteFile(cli, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := Generate(t.Context(), Spec{
		CLI: cli, Root: root, Recipe: filepath.Join("..", "..", "bluebuild", "recipes", "recipe.yml"), Scratch: t.TempDir(), Log: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FROM localhost:", "/secureblue/kinoite-main-hardened\n", `"org.opencontainers.image.version": "44.20261101.0"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	// A CLI that goes by the tag is not taken for one that goes by the digest.
	if err := os.WriteFile(cli, []byte("#!/bin/sh\necho FROM other > Containerfile\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Generate(t.Context(), Spec{CLI: cli, Root: root, Recipe: filepath.Join("..", "..", "bluebuild", "recipes", "recipe.yml"), Scratch: t.TempDir(), Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "it does not build on sha256:") {
		t.Errorf("the base of the tag was taken: %v", err)
	}
	if err := os.WriteFile(cli, []byte("#!/bin/sh\necho no driver found >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Generate(t.Context(), Spec{CLI: cli, Root: root, Recipe: filepath.Join("..", "..", "bluebuild", "recipes", "recipe.yml"), Scratch: t.TempDir(), Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no driver found") {
		t.Errorf("what the CLI said is lost: %v", err)
	}
}
