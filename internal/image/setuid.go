package image

import (
	"archive/tar"
	"maps"
	"slices"
	"strings"
)

// Setuid returns the files of the image that have a setuid or setgid bit, sorted.
// Objects of ostree are left out: they are the same files under another name.
func (b *Base) Setuid() []string {
	var found []string
	for _, p := range slices.Sorted(maps.Keys(b.files)) {
		if f := b.files[p]; f.typ == tar.TypeReg && f.mode&0o6000 != 0 && !strings.HasPrefix(p, objects) {
			found = append(found, p)
		}
	}
	return found
}
