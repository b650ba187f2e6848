package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

// LockPath is where the base is pinned, in a checkout.
const LockPath = "bluebuild/base.lock"

// Lock pins the base image: a tag moves, and whoever may move it could put
// anything under us.
type Lock struct {
	// Image is the base's repository, Release the tag that was looked up.
	Image   string `yaml:"image"`
	Release int    `yaml:"release"`
	// Digest is what the registry has under the tag: "sha256:" and 64 hex digits.
	Digest string `yaml:"digest"`
	// Platforms are, if that is an index, the images in it by Go's name of their
	// architecture: what a single image that was copied from it has as its digest.
	Platforms map[string]string `yaml:"platforms,omitempty"`
	// Date is the day of the look-up, UTC.
	Date string `yaml:"date"`
}

// ErrNoLock says that the base is not pinned yet.
var ErrNoLock = errors.New("the base is not pinned: there is no " + LockPath + "; ask the registry for its digest, and write it there, with: veilor-forge image lock")

// LoadLock reads LockPath in the checkout src; ErrNoLock if it is not there.
func LoadLock(src fs.FS) (*Lock, error) {
	data, err := fs.ReadFile(src, LockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLock
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lock of the base: %w", err)
	}
	return ParseLock(LockPath, data)
}

// LoadLockDir is LoadLock of the checkout in the directory dir.
func LoadLockDir(dir string) (*Lock, error) { return LoadLock(os.DirFS(dir)) }

var (
	digestRe = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	// repositoryRe is a registry and a repository in it, without tag or digest
	// (OCI distribution-spec).
	repositoryRe = regexp.MustCompile(`^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`)
	archRe       = regexp.MustCompile(`^[a-z0-9]{1,16}$`)
)

// relock is the advice for a lock that somebody damaged.
const relock = "; write it anew with: veilor-forge image lock"

// ParseLock checks the text of a lock. name is used in errors, each of which is a
// [strictyaml.Problem].
func ParseLock(name string, data []byte) (*Lock, error) {
	var l Lock
	doc, err := strictyaml.Decode(name, data, &l, "write the file anew with: veilor-forge image lock")
	if err != nil {
		return nil, err
	}
	var problems []error
	add := func(at, format string, args ...any) { problems = append(problems, doc.Problem(at, format, args...)) }
	if !repositoryRe.MatchString(l.Image) {
		add("image", "%q is no repository without tag"+relock, l.Image)
	}
	if l.Release <= 0 {
		add("release", "%d is no release of Fedora"+relock, l.Release)
	}
	if !digestRe.MatchString(l.Digest) {
		add("digest", "%q is no sha256:<64 hex digits>"+relock, l.Digest)
	}
	for _, arch := range slices.Sorted(maps.Keys(l.Platforms)) {
		if !archRe.MatchString(arch) || !digestRe.MatchString(l.Platforms[arch]) {
			add("platforms", "%q: %q is no architecture with its digest"+relock, arch, l.Platforms[arch])
		}
	}
	if t, err := time.Parse(time.DateOnly, l.Date); err != nil || t.Format(time.DateOnly) != l.Date {
		add("date", "%q is no day (2026-11-23)"+relock, l.Date)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &l, nil
}

// Text is the lock as a file.
func (l *Lock) Text() []byte {
	var b bytes.Buffer
	b.WriteString(`# The base image, by digest: a tag moves, this does not. GitHub builds on it, and a
# workflow proposes a newer one every day. Written by ` + "`veilor-forge image lock`" + `.
`)
	fmt.Fprintf(&b, "image: %s\nrelease: %d\ndigest: %s\n", l.Image, l.Release, l.Digest)
	if len(l.Platforms) > 0 {
		b.WriteString("platforms:\n")
	}
	for _, arch := range slices.Sorted(maps.Keys(l.Platforms)) {
		fmt.Fprintf(&b, "  %s: %s\n", arch, l.Platforms[arch])
	}
	fmt.Fprintf(&b, "date: %q\n", l.Date)
	return b.Bytes()
}

// Same says whether both pin the same image; the day may be another.
func (l *Lock) Same(o *Lock) bool {
	return l.Image == o.Image && l.Release == o.Release && l.Digest == o.Digest && maps.Equal(l.Platforms, o.Platforms)
}

// Agree returns an error if the lock pins another base than recipe and site name.
func (l *Lock) Agree(r *Recipe, s *site.Site) error {
	var errs []error
	for _, c := range []struct{ what, locked, wanted string }{
		{"the recipe's base-image", l.Image, r.BaseImage},
		{"the recipe's image-version", fmt.Sprint(l.Release), string(r.ImageVersion)},
		{"the site's image.base", l.Image, s.Image.Base},
		{"the site's os.release", fmt.Sprint(l.Release), fmt.Sprint(s.OS.Release)},
	} {
		if c.locked != c.wanted {
			errs = append(errs, fmt.Errorf("comparing the lock of the base: it is of %s, and %s is %s; pin that with: veilor-forge image lock", c.locked, c.what, c.wanted))
		}
	}
	return errors.Join(errs...)
}

// Pins says whether an image for arch with the given digest is the one that is
// pinned, alone or out of the index.
func (l *Lock) Pins(digest, arch string) bool {
	return digest == l.Digest || digest == l.Platforms[arch]
}

// versionLine is where a recipe names the base's tag; Parse has seen that there
// is one at the top.
var versionLine = regexp.MustCompile(`(?m)^image-version:.*$`)

// Pin returns the recipe text with the lock's digest behind its tag, as BlueBuild
// takes it: the CLI puts base-image and image-version together with a colon and
// reads that as a reference (0.9.37, recipe; its schema has no other place for a
// digest, blue-build/cli#409).
func Pin(name string, text []byte, l *Lock) ([]byte, error) {
	r, err := Parse(name, text)
	if err != nil {
		return nil, err
	}
	if n := len(versionLine.FindAll(text, 2)); n != 1 {
		return nil, strictyaml.Problem{File: name, Text: "image-version must stand on one line of its own; write for example image-version: 44"}
	}
	if r.BaseImage != l.Image || string(r.ImageVersion) != fmt.Sprint(l.Release) {
		return nil, fmt.Errorf("pinning %s: it builds on %s:%s, and the lock is of %s:%d; pin that with: veilor-forge image lock", name, r.BaseImage, r.ImageVersion, l.Image, l.Release)
	}
	pinned := versionLine.ReplaceAllLiteral(text, fmt.Appendf(nil, "image-version: \"%d@%s\"", l.Release, l.Digest))
	got, err := Parse(name, pinned)
	if err != nil {
		return nil, fmt.Errorf("pinning %s: %w", name, err)
	}
	if want := fmt.Sprintf("%d@%s", l.Release, l.Digest); string(got.ImageVersion) != want || strings.Contains(got.BaseImage, "@") {
		return nil, fmt.Errorf("pinning %s: it would build on %s:%s", name, got.BaseImage, got.ImageVersion)
	}
	return pinned, nil
}
