package rootdisk

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"testing/fstest"
)

// disk makes a machine: mountinfo, and files below sys.
func disk(mountinfo string, sys ...string) fstest.MapFS {
	m := fstest.MapFS{"proc/self/mountinfo": {Data: []byte(mountinfo)}}
	for i := 0; i+1 < len(sys); i += 2 {
		m["sys/"+sys[i]] = &fstest.MapFile{Data: []byte(sys[i+1])}
	}
	return m
}

const (
	ext4Root = "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/luks-1234 rw\n"
	luks2    = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-luks-1234\n"
)

func TestEncrypted(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    fstest.MapFS
		want bool
	}{
		{"LUKS", disk(ext4Root, "dev/block/253:0/dm/uuid", luks2, "dev/block/253:0/slaves/vda3/x", ""), true},
		{"plain partition", disk("22 1 254:3 / / rw - ext4 /dev/vda3 rw\n", "dev/block/254:3/partition", "3"), false},
		{"plain dm-crypt is not LUKS", disk(ext4Root, "dev/block/253:0/dm/uuid", "CRYPT-PLAIN-swap\n"), false},
		{"ostree: composefs on /, disk on /sysroot", disk(
			"22 1 0:33 / / ro - overlay composefs ro\n23 22 253:0 / /sysroot ro - xfs /dev/mapper/luks-1234 rw\n",
			"dev/block/253:0/dm/uuid", luks2), true},
		{"LVM on LUKS", disk("22 1 253:1 / / rw - xfs /dev/mapper/vg-root rw\n",
			"dev/block/253:1/dm/uuid", "LVM-abc", "dev/block/253:1/slaves/dm-0/x", "", "class/block/dm-0/dm/uuid", luks2), true},
		{"LVM on LUKS and a plain disk", disk("22 1 253:1 / / rw - xfs /dev/mapper/vg-root rw\n",
			"dev/block/253:1/dm/uuid", "LVM-abc", "dev/block/253:1/slaves/dm-0/x", "", "dev/block/253:1/slaves/vdb/x", "",
			"class/block/dm-0/dm/uuid", luks2, "class/block/vdb/size", "1"), false},
		{"btrfs, whose number is its own", disk("22 1 0:26 /root / rw shared:1 - btrfs /dev/mapper/luks-1234 rw\n",
			"class/block/dm-0/dm/name", "luks-1234\n", "class/block/dm-0/dm/uuid", luks2, "class/block/vda/size", "1"), true},
		{"btrfs on a partition", disk("22 1 0:26 /root / rw - btrfs /dev/vda3 rw\n", "class/block/vda3/partition", "3"), false},
		{"mounted over", disk("22 1 254:3 / / rw - ext4 /dev/vda3 rw\n"+ext4Root,
			"dev/block/254:3/partition", "3", "dev/block/253:0/dm/uuid", luks2), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Encrypted(tt.m)
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestOdd(t *testing.T) {
	if _, err := Encrypted(disk("22 1 0:33 / / rw - tmpfs tmpfs rw\n")); !errors.Is(err, ErrNoDevice) {
		t.Errorf("tmpfs: %v", err)
	}
	if _, err := Encrypted(disk("garbage\n")); err == nil {
		t.Error("garbage was read")
	}
	if _, err := Encrypted(fstest.MapFS{}); err == nil {
		t.Error("no /proc is no error")
	}
	loop := disk(ext4Root, "dev/block/253:0/slaves/dm-1/x", "", "class/block/dm-1/slaves/dm-1/x", "")
	if _, err := Encrypted(loop); err == nil {
		t.Error("a loop ends in no error")
	}
}

// TestHere only checks that the real tables can be read.
func TestHere(t *testing.T) {
	if _, err := Encrypted(os.DirFS("/")); err != nil && !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
}

func FuzzRootDevices(f *testing.F) {
	f.Add([]byte(ext4Root))
	f.Add([]byte("22 1 0:26 /root / rw shared:1 - btrfs /dev/mapper/luks-1234 rw\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := disk(string(bytes.Clone(data)), "class/block/dm-0/dm/name", "x")
		if got, _ := Encrypted(m); got {
			t.Error("encrypted, and no device has LUKS")
		}
	})
}
