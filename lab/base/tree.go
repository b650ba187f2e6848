package base

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// files are laid over the Debian root as they are: secureblue's traps, and what
// a machine of the lab needs to boot and get an address.
//
//go:embed all:files
var files embed.FS

// executable says which of them are programs; embedding forgets modes.
func executable(path string) bool { return strings.HasPrefix(path, "usr/libexec/") }

func addFiles(in *cache.Inputs) error {
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(path)
		in.String(path).Bytes(b)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the base's own files: %w", err)
	}
	return nil
}

// enabled and masked units. Masked is what serves package managers and local
// administration of a tree that is read-only here, or only costs boot time.
var (
	enabled = []string{
		"systemd-networkd.service", "systemd-resolved.service",
		"rpm-ostreed-automatic.timer", "lab-ca-trust.service",
	}
	disabled = []string{
		// It fails on a machine without a cable, and nothing here waits for it.
		"systemd-networkd-wait-online.service",
	}
	masked = []string{
		"systemd-firstboot.service",
		"systemd-hwdb-update.service", "ldconfig.service", "systemd-journal-catalog-update.service",
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
		"e2scrub_all.timer", "e2scrub_reap.service",
	}
)

// configure brings the root to what the image shall be, while it is still an
// ordinary Debian tree that programs can run in.
func configure(ctx context.Context, root *sandbox.Root, s Spec, log io.Writer) error {
	// First the files: dracut puts prepare-root.conf into the initramfs.
	if err := layFiles(root.Dir()); err != nil {
		return err
	}
	for _, p := range []struct{ from, to string }{
		{s.Bootc, bootc.Path},
		{s.Bootc, bootc.ExtensionPath}, // a hard link in the commit: same content
		{s.Tailscaled, "/usr/sbin/tailscaled"},
		{s.Tailscale, "/usr/bin/tailscale"},
	} {
		if err := copyFile(p.from, root.Path(p.to), 0o755); err != nil {
			return err
		}
	}
	if err := trust(ctx, root, s.WebCA, log); err != nil {
		return err
	}
	for _, args := range [][]string{
		append([]string{"systemctl", "enable"}, enabled...),
		append([]string{"systemctl", "disable"}, disabled...),
		append([]string{"systemctl", "mask"}, masked...),
		{"systemctl", "set-default", "multi-user.target"},
	} {
		if err := root.Run(ctx, log, nil, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return kernel(ctx, root, log)
}

func layFiles(dir string) error {
	tree, err := fs.Sub(files, "files")
	if err != nil {
		return fmt.Errorf("reading the base's own files: %w", err)
	}
	return fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(dir, path)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		b, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if executable(path) {
			mode = 0o755
		}
		return replaceFile(target, b, mode)
	})
}

// replaceFile writes a file of the tree, never through a link that stands there.
func replaceFile(path string, b []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("laying out the base: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("laying out the base: %w", err)
	}
	if err := os.WriteFile(path, b, mode); err != nil {
		return fmt.Errorf("laying out the base: %w", err)
	}
	return os.Chmod(path, mode) // whatever the umask is
}

func copyFile(from, to string, mode fs.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("laying out the base: %w", err)
	}
	return replaceFile(to, b, mode)
}

// trust adds the lab's web authority to Debian's bundle, and keeps a copy of
// the bundle for lab-ca-trust.service to start from.
func trust(ctx context.Context, root *sandbox.Root, ca []byte, log io.Writer) error {
	if len(ca) > 0 {
		if err := replaceFile(root.Path("/usr/local/share/ca-certificates/lab-web.crt"), ca, 0o644); err != nil {
			return err
		}
	}
	if err := root.Run(ctx, log, nil, "update-ca-certificates"); err != nil {
		return err
	}
	return copyFile(root.Path("/etc/ssl/certs/ca-certificates.crt"), root.Path("/usr/share/lab/ca-certificates.crt"), 0o644)
}

// kernel puts kernel and initramfs where ostree looks for them.
func kernel(ctx context.Context, root *sandbox.Root, log io.Writer) error {
	found, err := filepath.Glob(root.Path("/usr/lib/modules/*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("looking for the base's kernel: %d directories in /usr/lib/modules, want one", len(found))
	}
	release := filepath.Base(found[0])
	modules := "/usr/lib/modules/" + release
	if err := copyFile(root.Path("/boot/vmlinuz-"+release), root.Path(modules+"/vmlinuz"), 0o644); err != nil {
		return err
	}
	return root.Run(ctx, log, nil, "dracut", "--force", "--no-hostonly", "--kver", release, modules+"/initramfs.img")
}

// The top of an ostree deployment: what is state lives in /var, what is
// volatile in /run, and only /usr and /etc are the image's.
var (
	emptied = []string{"boot", "dev", "proc", "run", "sys", "tmp", "var"}
	linked  = map[string]string{
		"home": "var/home", "root": "var/roothome", "opt": "var/opt", "srv": "var/srv", "mnt": "var/mnt",
		"media": "run/media", "ostree": "sysroot/ostree",
	}
	removed = []string{
		"initrd.img", "initrd.img.old", "vmlinuz", "vmlinuz.old", ".dockerenv",
		// Made per machine by the installer.
		"etc/hostname",
		// Makes directories at places that are links here; lab-base.conf does
		// it under /var.
		"usr/lib/tmpfiles.d/home.conf",
	}
)

// shape turns the bare Debian tree into the tree of a commit.
func shape(ctx context.Context, tree *sandbox.Root, log io.Writer) error {
	dir := tree.Dir()
	for _, name := range removed {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("shaping the base: %w", err)
		}
	}
	for _, name := range emptied {
		if err := clearDir(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("shaping the base: %w", err)
		}
	}
	for name, target := range linked {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
			return fmt.Errorf("shaping the base: %w", err)
		}
	}
	// Empty, not absent: systemd makes an ID on the first boot and keeps it, and
	// does not take that boot for one that asks questions.
	if err := replaceFile(filepath.Join(dir, "etc/machine-id"), nil, 0o444); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "sysroot"), 0o755); err != nil {
		return fmt.Errorf("shaping the base: %w", err)
	}
	for _, sudo := range []string{"usr/bin/sudo", "usr/sbin/sshd"} {
		if _, err := os.Lstat(filepath.Join(dir, sudo)); err == nil {
			return fmt.Errorf("shaping the base: /%s is there, and secureblue has none", sudo)
		}
	}
	// Last: ostree wants the defaults of /etc in /usr/etc. mv(1), because
	// rename(2) refuses directories of an overlay's lower layer.
	return tree.Run(ctx, log, nil, "mv", "/etc", "/usr/etc")
}

// clearDir removes what is in a directory.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := cache.RemoveTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
