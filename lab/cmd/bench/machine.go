package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/cost"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/vm"
)

const (
	// manyConnections is the benchmark that needs more files than some machines let
	// even root have.
	manyConnections = "ForwardConnections"
	// machineMemory, in MiB, is for three processes and the kernel's part of 40,000
	// sockets.
	machineMemory = 3072
)

// tooFew finds the benchmark if this machine had no files for as many connections as
// are promised.
func tooFew(all []cost.Benchmark) *cost.Benchmark {
	i := slices.IndexFunc(all, func(b cost.Benchmark) bool { return b.Name == manyConnections })
	if i < 0 || all[i].Metrics["allowed-conns"] >= cost.LeastCarried {
		return nil
	}
	return &all[i]
}

// inMachine measures it anew in a machine of its own, whose root may have as many
// files as it likes. What is measured there is memory and not time.
func inMachine(ctx context.Context, o options, b *cost.Benchmark, say func(string, ...any)) error {
	dir, err := filepath.Abs(o.cache)
	if err != nil {
		return err
	}
	c := &cache.Cache{Dir: dir}
	programs, err := program.Build(ctx, o.source, filepath.Join(dir, "bin"), os.Stderr)
	if err != nil {
		return err
	}
	root, err := debian.Tools.Build(ctx, c, os.Stderr)
	if err != nil {
		return err
	}
	base, err := debian.Base.Build(ctx, c, os.Stderr)
	if err != nil {
		return err
	}
	kernel, err := debian.Kernel(base)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "bench")
	if err != nil {
		return fmt.Errorf("measuring in a machine: %w", err)
	}
	defer os.RemoveAll(scratch)
	tools, err := sandbox.Overlay(root, filepath.Join(scratch, "tools"))
	if err != nil {
		return err
	}
	defer tools.Close()
	accel, err := vm.Probe(ctx, c, tools, kernel, io.Discard)
	if err != nil {
		return err
	}
	file := filepath.Join(scratch, "forward.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", file, "./internal/forward")
	build.Dir = o.source
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("measuring in a machine: building the benchmark: %w", err)
	}
	say("%s again in a machine of its own: here are files for %.0f connections only", manyConnections, b.Metrics["allowed-conns"])
	var out bytes.Buffer
	err = vm.RunProgram(ctx, vm.Program{
		Tools: tools, Kernel: kernel, Init: programs.Init, File: file, Memory: machineMemory, Accel: accel.Accel,
		Args: []string{"-test.run=^$", "-test.bench=^Benchmark" + manyConnections + "$", "-test.benchtime=1x"},
	}, io.MultiWriter(&out, os.Stderr))
	if err != nil {
		return err
	}
	found, err := cost.ReadBenchmarks(&out)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("measuring in a machine: %d benchmarks reported, want %s alone", len(found), manyConnections)
	}
	*b = found[0]
	b.Where = fmt.Sprintf("in a virtual machine (%s)", accel.Accel)
	return nil
}
