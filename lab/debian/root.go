// Package debian makes the Debian roots that the lab works in: one with the
// tools, so that a test never depends on which versions the machine happens to
// have, and one that the lab's base image is made of.
package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

const (
	// suite has the first ostree that keeps an image's /var (2025.2), and a
	// skopeo whose proxy obeys policy.json (1.18; 1.9 accepts anything).
	suite = "trixie"

	// version of what Build makes of a Spec; raise it when that changes.
	version = "1"

	// dirName is where the tree is in its artefact.
	dirName = "root"
)

// Spec describes a root: which packages, and whether it is kept small.
type Spec struct {
	// Name of the artefact in the cache.
	Name string
	// Packages beyond the essential ones; recommended ones are not added.
	Packages []string
	// Slim leaves out manuals, translations and documentation other than
	// licences: right for an image that is deployed and encrypted many times.
	Slim bool
}

// Tools is where the lab composes, signs, installs and boots.
var Tools = Spec{
	Name: "tools",
	Packages: []string{
		"qemu-system-x86", "qemu-utils", "ovmf", "ipxe-qemu", "seabios", // the machine
		"ostree", "skopeo", "ca-certificates", // images
		"cryptsetup-bin", "e2fsprogs", "dosfstools", "mtools", "gdisk", // disks
		"grub-efi-amd64-bin", "grub-common", "grub2-common", // its boot loader
		"dnsmasq-base", "iproute2", "nftables", // the world around it
	},
}

// Base is what the lab's base image is made of. It has no sshd and no sudo.
var Base = Spec{
	Name: "base-root",
	Packages: []string{
		"systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "libpam-systemd", "login", "passwd",
		"linux-image-cloud-amd64", "kmod", "dracut",
		"systemd-cryptsetup", "cryptsetup-bin", // systemd-cryptsetup is a package of its own since trixie
		"ostree", "ostree-boot", "skopeo", "bubblewrap",
		"e2fsprogs", "util-linux", "iproute2", "ca-certificates",
		"zstd", // dracut compresses with it
	},
	Slim: true,
}

// Readers are programs of a laptop that are asked to read what veilor writes for
// them. They are no tools of the lab, and their Python is not put among those.
var Readers = Spec{
	Name: "readers",
	Packages: []string{
		"firewalld", "network-manager",
		// What the rules of veilor-forge check ask beside firewalld.
		"desktop-file-utils", "shellcheck", "sudo", "systemd", "usbguard",
	},
	Slim: true,
}

// slimPaths are dpkg's filters for a small root; licences stay.
var slimPaths = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
}

// Build returns the directory of the root, making it if the cache has none.
// Output of the package tools goes to log.
//
// A root is made once from whatever the archive has that day and then kept:
// the archive has no names for days. Delete it from the cache to renew it.
func (s Spec) Build(ctx context.Context, c *cache.Cache, log io.Writer) (string, error) {
	dir, err := c.Get(ctx, s.Name, s.inputs(), func(ctx context.Context, dir string) error {
		return s.make(ctx, dir+"/"+dirName, log)
	})
	if err != nil {
		return "", err
	}
	return dir + "/" + dirName, nil
}

// Built reports whether Build has nothing to make.
func (s Spec) Built(c *cache.Cache) bool { return c.Has(s.Name, s.inputs()) }

func (s Spec) inputs() *cache.Inputs {
	return cache.NewInputs(version).String(suite, fmt.Sprint(s.Slim)).String(s.Packages...)
}

func (s Spec) make(ctx context.Context, dir string, log io.Writer) error {
	args := []string{
		// No mirror is given: mmdebstrap takes Debian's own, or a proxy from
		// the environment or the machine's apt configuration.
		"--mode=root", "--variant=minbase", "--format=directory",
		`--aptopt=Apt::Install-Recommends "false"`,
		`--aptopt=Acquire::Retries "3"`,
		"--include=" + strings.Join(s.Packages, ","),
	}
	if s.Slim {
		for _, p := range slimPaths {
			args = append(args, "--dpkgopt="+p)
		}
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, suite, dir)...)
	// INITRD=No: the kernel's hook would make an initramfs before the
	// configuration that has to be in it exists.
	cmd.Env = append(os.Environ(), "INITRD=No", "LC_ALL=C.UTF-8")
	sandbox.Gentle(cmd)
	return sandbox.RunLogged(ctx, cmd, log)
}

// Kernel finds the one of a root.
func Kernel(root string) (string, error) {
	pattern := filepath.Join(root, "boot/vmlinuz-*")
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("looking for one %s: %d found (%v)", pattern, len(found), err)
	}
	return found[0], nil
}
