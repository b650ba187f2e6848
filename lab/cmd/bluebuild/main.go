// Command bluebuild generates the Containerfile of our recipe with the real
// BlueBuild CLI. See `make bluebuild`.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/lab/bluebuild"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

func main() {
	source := flag.String("source", ".", "the checkout of veilor-os")
	out := flag.String("out", "out", "where the Containerfile goes")
	dir := flag.String("cache", "out/cache", "what later runs use again")
	flag.Parse()
	os.Exit(sandbox.Run(func(ctx context.Context) int {
		if err := run(ctx, *source, *out, *dir); err != nil {
			fmt.Fprintln(os.Stderr, "bluebuild:", err)
			return 1
		}
		return 0
	}))
}

func run(ctx context.Context, source, out, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(out, "bluebuild.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := &cache.Cache{Dir: dir, Notify: func(e cache.Event) { fmt.Fprintln(os.Stderr, e.Name, e.What, e.Took.Round(time.Second)) }}
	root, err := bluebuild.Root.Build(ctx, c, log)
	if err != nil {
		return err
	}
	cli, err := bluebuild.BuildCLI(ctx, c, log)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(dir, "bluebuild-run-")
	if err != nil {
		return err
	}
	defer cache.RemoveTree(scratch)
	text, err := bluebuild.Generate(ctx, bluebuild.Spec{
		CLI: cli, Root: root, Recipe: filepath.Join(source, "bluebuild", "recipes", "recipe.yml"), Scratch: scratch, Log: log,
	})
	if err != nil {
		return fmt.Errorf("%w (all it said: %s)", err, log.Name())
	}
	file := filepath.Join(out, "Containerfile")
	if err := renameio.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %d modules\n", file, bytes.Count(text, []byte("run_module.sh")))
	return nil
}
