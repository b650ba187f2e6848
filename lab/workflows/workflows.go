// Package workflows judges the files of .github/workflows, which nothing here can
// run, with the tools that the field has for it: actionlint for what would not
// work, zizmor for what would be unsafe.
package workflows

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/rhysd/actionlint"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

const (
	// zizmorVersion is pinned: a new one has new opinions, and those are a
	// change of their own.
	zizmorVersion = "1.32.0"

	// version of what Zizmor makes of it.
	version = "1"
)

// Actionlint returns what is wrong with the workflow files. Scripts in them are
// judged too where the machine has shellcheck.
func Actionlint(files []string) ([]*actionlint.Error, error) {
	options := &actionlint.LinterOptions{}
	if path, err := exec.LookPath("shellcheck"); err == nil {
		options.Shellcheck = path
	}
	linter, err := actionlint.NewLinter(io.Discard, options)
	if err != nil {
		return nil, fmt.Errorf("starting actionlint: %w", err)
	}
	found, err := linter.LintFiles(files, nil)
	if err != nil {
		return nil, fmt.Errorf("running actionlint: %w", err)
	}
	return found, nil
}

// InstallZizmor returns the path of the program, installing it into the cache
// with the machine's Python if it is not there.
func InstallZizmor(ctx context.Context, c *cache.Cache, log io.Writer) (string, error) {
	const program = "bin/zizmor" // a compiled one: it works wherever the directory is moved
	dir, err := c.Get(ctx, "zizmor", cache.NewInputs(version).String(zizmorVersion), func(ctx context.Context, dir string) error {
		for _, args := range [][]string{
			{"python3", "-m", "venv", dir},
			{filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "zizmor==" + zizmorVersion},
		} {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			sandbox.Gentle(cmd)
			if err := sandbox.RunLogged(ctx, cmd, log); err != nil {
				return fmt.Errorf("installing zizmor %s (it needs python3-venv and Python's package registry): %w", zizmorVersion, err)
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, program), nil
}

// Zizmor judges the workflow files below dir without network. It returns what it
// found as text, "" if nothing.
func Zizmor(ctx context.Context, program, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, program, "--offline", "--no-progress", "--quiet", "--format", "plain", "--no-config", dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	sandbox.Gentle(cmd)
	err := cmd.Run()
	code := 0
	if exit := (*exec.ExitError)(nil); err != nil {
		var ok bool
		if exit, ok = err.(*exec.ExitError); !ok {
			return "", fmt.Errorf("running zizmor: %w", err)
		}
		code = exit.ExitCode()
	}
	// 0 is clean; 11 to 14 say how severe the worst finding is (zizmor's "exit
	// codes"); all else is a failure of its own.
	switch {
	case code == 0:
		return "", nil
	case code >= 11 && code <= 14:
		return out.String(), nil
	}
	return "", fmt.Errorf("running zizmor: %w: %s%s", err, out.Bytes(), errs.Bytes())
}
