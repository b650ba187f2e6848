// Package rootdisk says whether the root file system lies on an encrypted disk.
//
// It reads the kernel's own tables, so any user may ask: the device of the
// mount in /proc/self/mountinfo, and from there down the device-mapper stack
// in /sys until a LUKS mapping is found (cryptsetup writes "CRYPT-LUKS2-…" into
// dm/uuid).
package rootdisk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// maxDepth bounds the walk down the stack; crypt on LVM on RAID is three.
const maxDepth = 16

// mounts are where the root file system proper may be, the first found counts:
// on an ostree system / may be a composefs image, and /sysroot the disk.
var mounts = []string{"/sysroot", "/"}

// ErrNoDevice says that the root file system lies on no block device.
var ErrNoDevice = errors.New("the root file system is on no block device")

var device = regexp.MustCompile(`^[0-9]+:[0-9]+$`)

// Encrypted says whether the root file system of the machine whose / is root
// (with proc and sys in it) lies on LUKS. Every device below it must.
func Encrypted(root fs.FS) (bool, error) {
	f, err := root.Open("proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("reading the mounts: %w", err)
	}
	defer f.Close()
	devices, err := rootDevices(f)
	if err != nil {
		return false, err
	}
	for _, d := range devices {
		dir, err := blockDir(root, d)
		if errors.Is(err, fs.ErrNotExist) {
			continue // an overlay or tmpfs has a number, but no device
		}
		if err != nil {
			return false, err
		}
		return luks(root, dir, 0)
	}
	return false, ErrNoDevice
}

// rootDevices returns the candidates' device numbers, "MAJ:MIN", the preferred
// first. The format is in proc(5): the mount point is field 5, the number
// field 3, and a btrfs hides its disk, so that its source names it.
func rootDevices(r io.Reader) ([]string, error) {
	found := map[string][]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || !device.MatchString(fields[2]) {
			return nil, fmt.Errorf("reading the mounts: %.80q is no line of mountinfo", lines.Text())
		}
		candidates := []string{fields[2]}
		for i := 6; i+2 < len(fields); i++ {
			if fields[i] == "-" {
				if name, ok := strings.CutPrefix(fields[i+2], "/dev/"); ok {
					candidates = append(candidates, name)
				}
				break
			}
		}
		found[fields[4]] = candidates // of mounts over each other the last is seen
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the mounts: %w", err)
	}
	var devices []string
	for _, m := range mounts {
		devices = append(devices, found[m]...)
	}
	return devices, nil
}

// blockDir is the directory of a device in /sys, given by number or by its name
// below /dev.
func blockDir(root fs.FS, dev string) (string, error) {
	if device.MatchString(dev) {
		dir := "sys/dev/block/" + dev
		_, err := fs.Stat(root, dir)
		return dir, err
	}
	if name, ok := strings.CutPrefix(dev, "mapper/"); ok {
		return mapped(root, name)
	}
	if dev == "" || strings.Contains(dev, "/") || !fs.ValidPath(dev) {
		return "", fs.ErrNotExist
	}
	dir := "sys/class/block/" + dev
	_, err := fs.Stat(root, dir)
	return dir, err
}

// mapped finds the device-mapper device called name.
func mapped(root fs.FS, name string) (string, error) {
	all, err := fs.ReadDir(root, "sys/class/block")
	if err != nil {
		return "", err
	}
	for _, e := range all {
		dir := path.Join("sys/class/block", e.Name())
		if got, err := fs.ReadFile(root, dir+"/dm/name"); err == nil && strings.TrimSpace(string(got)) == name {
			return dir, nil
		}
	}
	return "", fs.ErrNotExist
}

// luks walks down from the device at dir.
func luks(root fs.FS, dir string, depth int) (bool, error) {
	if depth > maxDepth {
		return false, fmt.Errorf("reading %s: more than %d devices on each other", dir, maxDepth)
	}
	uuid, err := fs.ReadFile(root, dir+"/dm/uuid")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("reading the device stack: %w", err)
	}
	if strings.HasPrefix(string(uuid), "CRYPT-LUKS2-") || strings.HasPrefix(string(uuid), "CRYPT-LUKS1-") {
		return true, nil
	}
	slaves, err := fs.ReadDir(root, dir+"/slaves")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("reading the device stack: %w", err)
	}
	for _, s := range slaves {
		below, err := luks(root, "sys/class/block/"+s.Name(), depth+1)
		if err != nil || !below {
			return false, err
		}
	}
	return len(slaves) > 0, nil
}
