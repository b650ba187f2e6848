package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/veilor/veilor-os/lab/sandbox"
)

// Program is a static program that runs in a machine of its own, with nothing
// around it but a kernel and lab/cmd/init: there it may do what the machine below
// does not let it, such as having more files open.
type Program struct {
	// Tools is the root that has QEMU.
	Tools *sandbox.Root
	// Kernel is a file; Init and File are the programs'.
	Kernel, Init, File string
	// Args are the program's. None has a space in it: they go through the kernel's
	// command line.
	Args []string
	// Memory is the machine's, in MiB.
	Memory int
	Accel  Accel
}

// programPath is where the program is in its machine.
const programPath = "/program"

// ended is what the last line begins with that a machine says.
const ended = "init: "

// Ended is that line.
func Ended(err error) string {
	if err != nil {
		return ended + strings.Join(strings.Fields(err.Error()), " ")
	}
	return ended + "done"
}

// RunProgram runs it to its end, and writes what it says to out as it comes.
func RunProgram(ctx context.Context, p Program, out io.Writer) error {
	for _, a := range p.Args {
		if strings.ContainsAny(a, " \t\n\"") {
			return fmt.Errorf("running a program in a machine: the argument %q has a space or a quote in it", a)
		}
	}
	dir, err := os.MkdirTemp("", "program")
	if err != nil {
		return fmt.Errorf("running a program in a machine: %w", err)
	}
	defer os.RemoveAll(dir)
	initramfs := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(initramfs, map[string]string{"init": p.Init, strings.TrimPrefix(programPath, "/"): p.File}); err != nil {
		return fmt.Errorf("running a program in a machine: %w", err)
	}
	if err := errors.Join(p.Tools.Share(dir), p.Tools.Share(filepath.Dir(p.Kernel))); err != nil {
		return fmt.Errorf("running a program in a machine: %w", err)
	}
	args := append(p.Accel.bare(), "-no-reboot", "-smp", "2", "-m", strconv.Itoa(p.Memory), "-serial", "stdio", "-kernel", p.Kernel, "-initrd", initramfs, "-append",
		strings.Join(append([]string{"console=ttyS0", "quiet", "panic=-1", "--", programPath}, p.Args...), " "))
	cmd := p.Tools.Command(ctx, "qemu-system-x86_64", args...)
	said, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("running a program in a machine: %w", err)
	}
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running a program in a machine: %w", err)
	}
	end := "" // the machine's last line
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if strings.HasPrefix(line, ended) {
			end = line
			continue
		}
		fmt.Fprintln(out, line)
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("running a program in a machine: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("running a program in a machine: %w: %s", err, lastLine(trouble.String()))
	case end == "":
		return errors.New("running a program in a machine: the machine ended before the program did")
	case end != Ended(nil):
		return fmt.Errorf("running a program in a machine: %s", strings.TrimPrefix(end, ended))
	}
	return nil
}

// writeInitramfs makes an archive of programs, by their names in it.
func writeInitramfs(path string, programs map[string]string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	for name, from := range programs {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}
