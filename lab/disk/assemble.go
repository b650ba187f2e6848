package disk

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// grubConfig reads ostree's boot entries; see the comments in it.
//
//go:embed grub.cfg
var grubConfig []byte

// grubModules are built into the loader. Not among them: linux, which would
// shadow the function of that name in grub.cfg.
var grubModules = []string{
	"memdisk", "tar", "normal", "part_gpt", "ext2", "fat", "search", "search_label", "serial", "terminal",
	"echo", "regexp", "test", "true", "configfile", "gzio", "sleep", "minicmd",
}

const (
	grubPlatform = "/usr/lib/grub/x86_64-efi"

	// sector of the disk in bytes; sgdisk counts in them.
	sector = 512

	// copyBlock is the unit in which holes are kept when an image is copied.
	copyBlock = 1 * mib
)

// GPT partition types, as sgdisk abbreviates them.
const (
	typeESP   = "ef00"
	typeXBOOT = "ea00" // extended boot loader: /boot
	typeLUKS  = "8309"
)

// assemble puts the parts together on a disk at path.
func (in *installer) assemble(ctx context.Context, path string) error {
	if err := in.makeESP(ctx); err != nil {
		return err
	}
	if err := truncate(path, in.Size); err != nil {
		return err
	}
	parts := []struct {
		file, name, kind string
		size             int64
	}{
		{"esp.img", "esp", typeESP, espSize},
		{"boot.img", "boot", typeXBOOT, bootSize},
		{"root.img", "root", typeLUKS, in.rootSize()},
	}
	// Not --quiet: with it sgdisk leaves without writing.
	args := []string{"--clear"}
	start := int64(margin)
	for i, p := range parts {
		n := i + 1
		args = append(args,
			fmt.Sprintf("--new=%d:%d:%d", n, start/sector, (start+p.size)/sector-1),
			fmt.Sprintf("--typecode=%d:%s", n, p.kind), fmt.Sprintf("--change-name=%d:%s", n, p.name))
		start += p.size
	}
	if err := in.run(ctx, "sgdisk", append(args, path)...); err != nil {
		return err
	}
	start = margin
	for _, p := range parts {
		if err := place(ctx, in.path(p.file), path, start, p.size); err != nil {
			return err
		}
		// Twice the space for a moment is enough.
		if err := os.Remove(in.path(p.file)); err != nil {
			return fmt.Errorf("clearing up: %w", err)
		}
		start += p.size
	}
	return nil
}

// makeESP makes a FAT image with GRUB at the path of removable media, which
// every firmware looks at.
func (in *installer) makeESP(ctx context.Context) error {
	platform := filepath.Join(in.path("memdisk"), "boot/grub/x86_64-efi")
	if err := os.MkdirAll(platform, 0o755); err != nil {
		return fmt.Errorf("making the boot loader: %w", err)
	}
	deps, err := os.ReadFile(in.root.Path(grubPlatform + "/moddep.lst"))
	if err != nil {
		return fmt.Errorf("making the boot loader: %w", err)
	}
	for _, m := range closure("linux", string(deps)) {
		b, err := os.ReadFile(in.root.Path(filepath.Join(grubPlatform, m+".mod")))
		if err == nil {
			err = os.WriteFile(filepath.Join(platform, m+".mod"), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("making the boot loader: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(in.path("memdisk"), "boot/grub/grub.cfg"), grubConfig, 0o644); err != nil {
		return fmt.Errorf("making the boot loader: %w", err)
	}
	esp, loader, memdisk := in.path("esp.img"), in.path("bootx64.efi"), in.path("memdisk.tar")
	mkimage := append([]string{"-O", "x86_64-efi", "-o", loader, "-p", "(memdisk)/boot/grub", "-m", memdisk}, grubModules...)
	for _, args := range [][]string{
		{"tar", "-C", in.path("memdisk"), "-cf", memdisk, "boot"},
		append([]string{"grub-mkimage"}, mkimage...),
		{"mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "-C", esp, fmt.Sprint(espSize >> 10)},
		{"mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if err := in.run(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// closure is a GRUB module and all that it needs, from moddep.lst ("a: b c").
func closure(module, deps string) []string {
	needs := map[string][]string{}
	for _, line := range strings.Split(deps, "\n") {
		if name, list, ok := strings.Cut(line, ":"); ok {
			needs[strings.TrimSpace(name)] = strings.Fields(list)
		}
	}
	var all []string
	seen := map[string]bool{}
	for queue := []string{module}; len(queue) > 0; queue = queue[1:] {
		m := queue[0]
		if seen[m] {
			continue
		}
		seen[m] = true
		all = append(all, m)
		queue = append(queue, needs[m]...)
	}
	return all
}

// place copies a partition's image to its offset on the disk. Blocks of zeros
// are left as holes.
func place(ctx context.Context, from, to string, offset, size int64) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copying a partition: %w", err)
	}
	defer src.Close()
	if info, err := src.Stat(); err != nil || info.Size() != size {
		return fmt.Errorf("copying a partition: %s is not %d bytes long", filepath.Base(from), size)
	}
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("copying a partition: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf, zeros := make([]byte, copyBlock), make([]byte, copyBlock)
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return fmt.Errorf("copying a partition: %w", context.Cause(ctx))
		}
		n, err := io.ReadFull(src, buf[:min(copyBlock, size-at)])
		if err != nil {
			return fmt.Errorf("copying a partition: %w", err)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := dst.WriteAt(buf[:n], offset+at); err != nil {
				return fmt.Errorf("copying a partition: %w", err)
			}
		}
		at += int64(n)
	}
	return nil
}
