// Package overlay renders overlay/, the files that veilor adds to its base, for
// one site: a tree of paths, modes and contents that is the same on any machine.
// BlueBuild on GitHub and `veilor-forge image build` on a desk use this one
// renderer.
//
// A file whose name ends in .tmpl is a text/template over [site.Site]; the suffix
// is dropped. Beside the methods of Site it has these functions:
//
//	json V            V as JSON on one line, also as a JSON string in a template
//	join LIST SEP     the texts of LIST with SEP between
//	trimPrefix P S    S without P in front
//	resolver          where the stub for the zone listens: 127.83.0.53
//	mirror            where the image lies on the mesh: dl.veilor/veilor/veilor-os
//	der CERTIFICATE   a PEM certificate as base64 of its DER form
//	include PATH      what the template PATH.tmpl of the overlay becomes
//	hex, rgb, unit    a colour of the theme by its name; see [theme.Theme.Funcs]
//
// What is then called NAME.png.svg is drawn, and the image has NAME.png.
//
// overlay/undo.yaml and overlay/base-policy.yaml are not part of the image; see
// [Undo] and [BaseScope].
package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Group says in which layer of an image an entry lies; groups are ordered by how
// often they change.
type Group int

const (
	Programs Group = iota // our programs
	Config                // what is the same for every site
	Branding              // pictures, fonts and themes
	Site                  // what the site or the version decides
)

// Groups are all groups in the order of their layers.
var Groups = []Group{Programs, Config, Branding, Site}

func (g Group) String() string {
	return [...]string{"programs", "config", "branding", "site"}[g]
}

// Entry is one file or symbolic link. Its mode is 0644, 0755 or a link's, its
// owner root: overlay/ says no more, whatever umask it was checked out with.
type Entry struct {
	// Path is relative to the root of the image, with slashes: "usr/bin/veilor".
	Path string
	// Link is the target if this is a symbolic link.
	Link string
	Exec bool
	Data []byte
	Group
}

// Perm is the entry's permission bits.
func (e Entry) Perm() fs.FileMode {
	switch {
	case e.Link != "":
		return 0o777
	case e.Exec:
		return 0o755
	}
	return 0o644
}

// Tree is a set of entries, sorted by path.
type Tree []Entry

// Find returns the entry at p.
func (t Tree) Find(p string) (Entry, bool) {
	i, ok := slices.BinarySearchFunc(t, p, func(e Entry, p string) int { return strings.Compare(e.Path, p) })
	if !ok {
		return Entry{}, false
	}
	return t[i], true
}

// Join returns the union of t and more. No path may be in both.
func (t Tree) Join(more ...Entry) (Tree, error) {
	all := append(slices.Clone(t), more...)
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(all); i++ {
		switch a, b := all[i-1].Path, all[i].Path; {
		case a == b:
			return nil, fmt.Errorf("joining trees: /%s is there twice; remove or rename one of its sources", a)
		case strings.HasPrefix(b, a+"/"):
			return nil, fmt.Errorf("joining trees: /%s is a file and a directory; rename one", a)
		}
	}
	return all, nil
}

// Check returns an error for each link that leads nowhere: neither into t nor to
// a path for which inBase is true. inBase may be nil. A link to /dev/null masks
// a unit and is right.
func (t Tree) Check(inBase func(path string) bool) error {
	dirs := map[string]bool{}
	for _, e := range t {
		for d := path.Dir(e.Path); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	var errs []error
	for _, e := range t {
		if e.Link == "" || e.Link == "/dev/null" {
			continue
		}
		target := e.Link
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(e.Path), target)
		}
		target = strings.TrimPrefix(path.Clean(target), "/")
		if _, ok := t.Find(target); ok || dirs[target] || (inBase != nil && inBase(target)) {
			continue
		}
		where := "the overlay or the base"
		if inBase == nil {
			where = "the overlay (if the base has it, say so with --base oci:DIR)"
		}
		errs = append(errs, fmt.Errorf("checking the overlay: /%s leads to %s, which is not in %s; correct or remove the link", e.Path, e.Link, where))
	}
	return errors.Join(errs...)
}

// Write writes t below dir, which must exist, with t's modes whatever the umask.
func (t Tree) Write(dir string) error {
	for _, e := range t {
		file := filepath.Join(dir, filepath.FromSlash(e.Path))
		// Directories of ours are 0755 in the image; make them so one by one,
		// because MkdirAll obeys the umask.
		for _, d := range parents(e.Path) {
			d = filepath.Join(dir, filepath.FromSlash(d))
			if err := os.Mkdir(d, 0o755); err == nil {
				err = os.Chmod(d, 0o755)
				if err != nil {
					return fmt.Errorf("writing the overlay: %w", err)
				}
			} else if !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("writing the overlay: %w", err)
			}
		}
		if e.Link != "" {
			if err := os.Symlink(e.Link, file); err != nil {
				return fmt.Errorf("writing the overlay: %w", err)
			}
			continue
		}
		if err := os.WriteFile(file, e.Data, 0o600); err != nil {
			return fmt.Errorf("writing the overlay: %w", err)
		}
		if err := os.Chmod(file, e.Perm()); err != nil {
			return fmt.Errorf("writing the overlay: %w", err)
		}
	}
	return nil
}

// parents are the directories above p, outermost first.
func parents(p string) []string {
	var dirs []string
	for i, c := range p {
		if c == '/' {
			dirs = append(dirs, p[:i])
		}
	}
	return dirs
}
