package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are the commands of this module that the image carries in usr/bin.
var programs = []string{"veilor", "veilor-ygg"}

// BuildPrograms compiles the image's programs from the module at source into
// the directory out and returns them as entries. The same source and Go release
// give the same bytes on any machine. Files in out from an earlier build are
// reused by the go command if nothing changed.
func BuildPrograms(ctx context.Context, source, out, arch string) (Tree, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("building the programs: %w", err)
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out + string(filepath.Separator)}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = source
	// What else of the environment changes the result is set, not inherited.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("building the programs: %w; install Go, or give compiled ones with --programs DIR", err)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("building the programs: %w", ctx.Err())
		}
		return nil, fmt.Errorf("building the programs with go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return ReadPrograms(out)
}

// ReadPrograms takes the image's programs from the directory dir.
func ReadPrograms(dir string) (Tree, error) {
	var t Tree
	for _, p := range programs {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, fmt.Errorf("reading the programs: %w", err)
		}
		t = append(t, Entry{Path: "usr/bin/" + p, Exec: true, Data: data, Group: Programs})
	}
	return t.Join()
}
