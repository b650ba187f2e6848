package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	rpmdb "github.com/knqyf263/go-rpmdb/pkg"
	_ "modernc.org/sqlite" // the driver by which rpmdb reads
)

// maxDatabase bounds a package database. Kinoite's has some 60 MB, because it
// lists every file of every package.
const maxDatabase = 1 << 30

// packageFormat changes with the form of the cached list.
const packageFormat = "1"

// databases is where an image may have its RPM database: ostree's place, Fedora's
// since 36, and the one before.
var databases = []string{
	"usr/share/rpm/rpmdb.sqlite",
	"usr/lib/sysimage/rpm/rpmdb.sqlite",
	"var/lib/rpm/rpmdb.sqlite",
}

// Package is an installed RPM.
type Package struct {
	Name, Version, Release, Arch, License string
	Epoch                                 int
	Provides                              []string
	// Programs are its files in directories of programs, absolute.
	Programs []string
}

// String is the package's name as rpm prints it.
func (p Package) String() string {
	return fmt.Sprintf("%s-%s.%s", p.Name, p.EVR(), p.Arch)
}

// EVR is epoch, version and release, as rpm compares them.
func (p Package) EVR() string {
	v := p.Version + "-" + p.Release
	if p.Epoch > 0 {
		v = fmt.Sprintf("%d:%s", p.Epoch, v)
	}
	return v
}

// errNoDatabase says that an image has no RPM database.
var errNoDatabase = errors.New("it has no RPM database")

// Packages lists what RPMs the image has, by name, and where it says so.
func (b *Base) Packages(ctx context.Context) (all []Package, database string, err error) {
	for _, p := range databases {
		f, err := b.resolve(p)
		if err != nil {
			continue
		}
		all, err := b.packages(ctx, f)
		if err != nil {
			return nil, "", fmt.Errorf("reading the package database /%s: %w", p, err)
		}
		return all, "/" + p, nil
	}
	return nil, "", errNoDatabase
}

func (b *Base) packages(ctx context.Context, f file) ([]Package, error) {
	name, err := b.content(f)
	if err != nil {
		return nil, err
	}
	name += "-packages-" + packageFormat
	if data, ok := kept(name); ok {
		var all []Package
		if gob.NewDecoder(bytes.NewReader(data)).Decode(&all) == nil {
			return all, nil
		}
	}
	// Its own directory: SQLite puts files beside a database in WAL mode.
	dir, err := os.MkdirTemp(b.cache, "rpm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	db := filepath.Join(dir, "rpmdb.sqlite")
	if err := b.extract(ctx, f, db); err != nil {
		return nil, err
	}
	all, err := readPackages(db)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := gob.NewEncoder(&out).Encode(all); err != nil {
		return nil, err
	}
	return all, keepSummed(name, out.Bytes())
}

// extract writes the content of f to a new file.
func (b *Base) extract(ctx context.Context, f file, to string) (err error) {
	if f.size > maxDatabase {
		return fmt.Errorf("it has %d bytes, more than the %d that are believed", f.size, maxDatabase)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return b.walk(ctx, f.layer, func(h *tar.Header, r io.Reader) error {
		if clean(h.Name) != f.name {
			return nil
		}
		if _, err := io.Copy(out, r); err != nil {
			return err
		}
		return io.EOF
	})
}

// readPackages reads the RPM database in file.
func readPackages(file string) (all []Package, err error) {
	// The reader indexes into headers without checking every bound.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it is damaged (%v); fetch the image again", r)
		}
	}()
	db, err := rpmdb.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w; fetch the image again", err)
	}
	defer db.Close()
	list, err := db.ListPackages()
	if err != nil {
		return nil, fmt.Errorf("%w; fetch the image again", err)
	}
	for _, p := range list {
		n := Package{Name: p.Name, Version: p.Version, Release: p.Release, Arch: p.Arch, License: p.License, Provides: p.Provides}
		if p.Epoch != nil {
			n.Epoch = *p.Epoch
		}
		files, err := p.InstalledFileNames()
		if err != nil {
			return nil, fmt.Errorf("%s: %w; fetch the image again", p.Name, err)
		}
		for _, f := range files {
			if strings.HasPrefix(f, "/usr/bin/") || strings.HasPrefix(f, "/usr/sbin/") {
				n.Programs = append(n.Programs, f)
			}
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b Package) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}
