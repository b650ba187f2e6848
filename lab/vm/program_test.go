package vm_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/vm"
)

// TestRunProgram: what a program says comes out of its machine, and how it ended.
func TestRunProgram(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	tools := must(sandbox.Overlay(must(debian.Tools.Build(ctx, l.cache, l.log))(t), t.TempDir()))(t)
	t.Cleanup(func() { tools.Close() })
	kernel := must(debian.Kernel(must(debian.Base.Build(ctx, l.cache, l.log))(t)))(t)
	programs := must(program.Build(ctx, "../..", filepath.Join(l.cache.Dir, "bin"), l.log))(t)
	p := vm.Program{Tools: tools, Kernel: kernel, Accel: vm.TCG, Init: programs.Init, File: programs.Veilor, Args: []string{"version"}, Memory: 512}
	var out bytes.Buffer
	if err := vm.RunProgram(ctx, p, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "veilor") {
		t.Errorf("veilor version says:\n%s", &out)
	}
	p.Args = []string{"no-such-command"}
	if err := vm.RunProgram(ctx, p, &out); err == nil || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("a program that fails: %v", err)
	}
	p.Args = []string{"two words"}
	if err := vm.RunProgram(ctx, p, &out); err == nil {
		t.Error("an argument with a space in it is taken")
	}
}
