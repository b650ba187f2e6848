package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// makeFilesystems makes the root, /boot and the mount of both that ostree
// takes for a system.
func (in *installer) makeFilesystems(ctx context.Context) error {
	for _, f := range []struct {
		name, label string
		size, use   int64
	}{
		// The file is as large as the partition, the file system leaves what
		// the encryption puts in front of it.
		{"root.img", "root", in.rootSize(), in.rootSize() - luksHead},
		{"boot.img", "boot", bootSize, bootSize},
	} {
		if err := truncate(in.path(f.name), f.size); err != nil {
			return err
		}
		err := in.run(ctx, "mkfs.ext4", "-q", "-L", f.label, "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-m", "1",
			in.path(f.name), fmt.Sprintf("%dk", f.use>>10))
		if err != nil {
			return err
		}
	}
	return nil
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making an image: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("making an image: %w", err)
	}
	return nil
}

func (in *installer) sysroot() string { return in.path("sysroot") }

func (in *installer) mount(ctx context.Context) error {
	boot := filepath.Join(in.sysroot(), "boot")
	if err := os.MkdirAll(in.sysroot(), 0o755); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	// mount(8) sets its loop devices up so that they go with the mount.
	if err := in.run(ctx, "mount", "-o", "loop", in.path("root.img"), in.sysroot()); err != nil {
		return err
	}
	if err := os.MkdirAll(in.root.Path(boot), 0o755); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	return in.run(ctx, "mount", "-o", "loop", in.path("boot.img"), boot)
}

// unmount is needed before the images are read: unlike a lazy unmount it
// returns when everything is in them.
func (in *installer) unmount() error {
	boot := in.root.Path(filepath.Join(in.sysroot(), "boot"))
	for _, m := range []string{boot, in.root.Path(in.sysroot())} {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", filepath.Base(m), err)
		}
	}
	return nil
}

// deploy makes the ostree system and puts the image into it. A failure leaves
// layers in its repository that a second try would accept unchecked; there is
// no second try on this file system, it is thrown away whole.
func (in *installer) deploy(ctx context.Context) error {
	if err := in.mount(ctx); err != nil {
		return err
	}
	repo := "--repo=" + filepath.Join(in.sysroot(), "ostree/repo")
	for _, args := range [][]string{
		{"admin", "init-fs", "--modern", in.sysroot()},
		{"admin", "stateroot-init", "--sysroot=" + in.sysroot(), Stateroot},
		// Our GRUB reads the entries; ostree writes no configuration for one.
		{"config", repo, "set", "sysroot.bootloader", "none"},
		// /boot is a file system of its own: entries name files without it.
		{"config", repo, "set", "sysroot.bootprefix", "false"},
		{"config", repo, "set", "sysroot.readonly", "true"},
		{"container", "image", "deploy", "--sysroot=" + in.sysroot(), "--stateroot=" + Stateroot, "--imgref=" + in.Imgref},
	} {
		if err := in.run(ctx, "ostree", args...); err != nil {
			return err
		}
	}
	return in.checkDigest(ctx, repo)
}

// checkDigest makes sure that what was deployed is what the caller resolved:
// the tag may have moved, and the cache knows the disk by the digest.
func (in *installer) checkDigest(ctx context.Context, repo string) error {
	deployment, err := in.deployment()
	if err != nil {
		return err
	}
	commit, _, _ := strings.Cut(filepath.Base(deployment), ".")
	out, err := in.root.Output(ctx, in.log, "ostree", "show", repo, "--print-metadata-key=ostree.manifest-digest", commit)
	if err != nil {
		return err
	}
	if got := strings.Trim(strings.TrimSpace(out), "'"); got != in.Digest {
		return fmt.Errorf("%s is %s, want %s: it changed meanwhile, try again", in.Imgref, got, in.Digest)
	}
	return nil
}

// deployment is the directory of the one deployment.
func (in *installer) deployment() (string, error) {
	found, err := filepath.Glob(in.root.Path(filepath.Join(in.sysroot(), "ostree/deploy", Stateroot, "deploy", "*.0")))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("looking for the deployment: found %d, want one", len(found))
	}
	return found[0], nil
}

// configure does to the deployment what Anaconda does after it, and sets the
// kernel arguments as `bootc install` does.
func (in *installer) configure(ctx context.Context) error {
	deployment, err := in.deployment()
	if err != nil {
		return err
	}
	image, err := imageKargs(os.DirFS(deployment), runtime.GOARCH)
	if err != nil {
		return err
	}
	luks := "luks-" + in.disk.LUKS
	in.disk.Kargs = slices.Concat(
		[]string{"root=/dev/mapper/" + luks, "rw", "rd.luks.uuid=" + luks},
		image, in.Kargs)
	args := []string{"admin", "instutil", "set-kargs", "--sysroot=" + in.sysroot()}
	for _, k := range in.disk.Kargs {
		args = append(args, "--append="+k)
	}
	if err := in.run(ctx, "ostree", args...); err != nil {
		return err
	}
	if err := checkEntry(os.DirFS(in.root.Path(filepath.Join(in.sysroot(), "boot"))), in.disk.Kargs); err != nil {
		return err
	}
	etc := filepath.Join(deployment, "etc")
	for name, content := range map[string]string{
		"hostname": in.Hostname + "\n",
		"fstab": "# The root is found by the kernel's command line.\n" +
			"LABEL=boot /boot ext4 defaults,nosuid,nodev 0 2\n",
		"crypttab": fmt.Sprintf("%s UUID=%s none x-initrd.attach\n", luks, in.disk.LUKS),
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing the system's configuration: %w", err)
		}
	}
	if in.RootHash != "" {
		if err := setPassword(filepath.Join(etc, "shadow"), "root", in.RootHash); err != nil {
			return err
		}
	}
	return in.unmount()
}

// kargsDir is where an image has its kernel arguments (bootc,
// docs/src/building/kernel-arguments.md).
const kargsDir = "usr/lib/bootc/kargs.d"

// imageKargs reads the kernel arguments of an image, for an architecture as Go
// names it.
func imageKargs(image fs.FS, goarch string) ([]string, error) {
	names, err := fs.Glob(image, kargsDir+"/*.toml") // in order of name
	if err != nil {
		return nil, fmt.Errorf("looking for kernel arguments: %w", err)
	}
	var all []string
	for _, name := range names {
		b, err := fs.ReadFile(image, name)
		if err != nil {
			return nil, fmt.Errorf("reading kernel arguments: %w", err)
		}
		kargs, err := parseKargs(b, goarch)
		if err != nil {
			return nil, fmt.Errorf("reading kernel arguments: %s: %w", name, err)
		}
		all = append(all, kargs...)
	}
	return all, nil
}

// bootcArch is how bootc names an architecture: as Rust does.
var bootcArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "powerpc64", "s390x": "s390x"}

func parseKargs(b []byte, goarch string) ([]string, error) {
	var f struct {
		Kargs  []string `toml:"kargs"`
		Arches []string `toml:"match-architectures"`
	}
	if err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, err
	}
	if f.Arches != nil && !slices.Contains(f.Arches, bootcArch[goarch]) {
		return nil, nil
	}
	for _, k := range f.Kargs {
		if k == "" || strings.ContainsAny(k, "\n\x00") {
			return nil, fmt.Errorf("%q is no kernel argument", k)
		}
	}
	return f.Kargs, nil
}

// checkEntry makes sure that the one boot entry has all kernel arguments: a
// machine without its root's says nothing at all.
func checkEntry(boot fs.FS, kargs []string) error {
	names, err := fs.Glob(boot, "loader/entries/*.conf")
	if err != nil || len(names) != 1 {
		return fmt.Errorf("looking for the boot entry: found %d, want one", len(names))
	}
	b, err := fs.ReadFile(boot, names[0])
	if err != nil {
		return fmt.Errorf("reading the boot entry: %w", err)
	}
	var have []string
	for _, line := range strings.Split(string(b), "\n") {
		if options, ok := strings.CutPrefix(line, "options "); ok {
			have = strings.Fields(options)
		}
	}
	for _, k := range kargs {
		if !slices.Contains(have, k) {
			return fmt.Errorf("the boot entry lacks the kernel argument %s", k)
		}
	}
	return nil
}

// setPassword replaces the password field of a user in a shadow(5) file.
func setPassword(path, user, hash string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("setting a password: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if fields[0] != user || len(fields) < 3 {
			continue
		}
		fields[1] = hash
		lines[i] = strings.Join(fields, ":")
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o640); err != nil {
			return fmt.Errorf("setting a password: %w", err)
		}
		return nil
	}
	return fmt.Errorf("setting a password: %s has no user %s", filepath.Base(path), user)
}

// newUUID is a random one (RFC 9562, version 4).
func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("making a UUID: %w", err)
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}
