// Command init is the first program of a machine that is there for one other: it
// mounts what programs expect, brings loopback up, runs the program that its
// arguments name, says how that ended, and switches the machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/lab/vm"
)

func main() {
	if os.Getpid() != 1 || len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "init: this is for a virtual machine's kernel to start: see lab/vm, RunProgram")
		os.Exit(2)
	}
	err := prepare()
	if err == nil {
		cmd := exec.Command(os.Args[1], os.Args[2:]...)
		cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stderr, "/tmp"
		err = cmd.Run()
	}
	fmt.Println(vm.Ended(err))
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func prepare() error {
	for path, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs"} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, path, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", path, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("bringing loopback up: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing loopback up: %w", err)
	}
	return nil
}
