package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// replaceable returns an error if dir is there and is no OCI image directory: a
// build replaces the whole directory.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("writing oci:%s: %w", dir, err)
	case len(entries) > 0 && isLayout(dir) != nil:
		return fmt.Errorf("writing oci:%s: the directory has other things in it; name a new one", dir)
	}
	return nil
}

// write makes the OCI image directory beside its place and exchanges the two, so
// that a reader sees the old image or the new one. Layers of the base are hard
// links where the file system allows, and read once to see that they are whole.
func write(ctx context.Context, o Options, img v1.Image) (err error) {
	out, err := filepath.Abs(o.Out.Path)
	if err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	tmp, free, err := WorkDir(out)
	if err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp), free()) }()
	if err := fill(ctx, tmp, o, img); err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	if o.beforeExchange != nil {
		o.beforeExchange()
	}
	if err := exchange(tmp, out); err != nil {
		return fmt.Errorf("writing %s: %w", o.Out, err)
	}
	return nil
}

// workDirTries is how often a directory may be tidied away, by another build,
// between being made and being locked.
const workDirTries = 8

// WorkDir makes a directory beside out, locked until free is called, and removes
// those of builds that were killed: their locks went with them.
func WorkDir(out string) (dir string, free func() error, err error) {
	pattern := "." + filepath.Base(out) + "-"
	entries, err := os.ReadDir(filepath.Dir(out))
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), pattern) || !e.IsDir() {
			continue
		}
		p := filepath.Join(filepath.Dir(out), e.Name())
		unlock, err := lockDir(p)
		if err != nil {
			continue // in use, or gone in the meantime
		}
		if err := errors.Join(os.RemoveAll(p), unlock()); err != nil {
			return "", nil, fmt.Errorf("removing what a killed build left: %w", err)
		}
	}
	for range workDirTries {
		dir, err = os.MkdirTemp(filepath.Dir(out), pattern)
		if err != nil {
			return "", nil, err
		}
		if free, err = lockDir(dir); err != nil {
			continue // another build tidied up in between
		}
		if _, err = os.Stat(dir); err == nil {
			return dir, free, nil
		}
		err = errors.Join(err, free())
	}
	return "", nil, err
}

// lockDir takes the lock of a directory, or fails if another process has it.
func lockDir(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// exchange puts tmp at out. What was at out is at tmp afterwards.
func exchange(tmp, out string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, out, unix.RENAME_EXCHANGE)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// Nothing there yet, or a file system that cannot exchange.
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

func fill(ctx context.Context, dir string, o Options, img v1.Image) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	taken := map[v1.Hash]bool{}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if _, ours := l.(blob); ours || taken[digest] {
			continue // ours are written below
		}
		taken[digest] = true
		size, err := l.Size()
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return take(filepath.Join(o.Base.Path, "blobs", "sha256", digest.Hex), filepath.Join(blobs, digest.Hex), digest, size)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	tag := o.Out.Tag
	if tag == "" {
		tag = o.Version
	}
	return l.AppendImage(img,
		layout.WithAnnotations(map[string]string{refAnnotation: tag}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: o.Arch}))
}

// take puts the base's layer at from also at to, and reads it whole: what the cache
// knows of a layer would hide that it was changed since, until a push or a client
// finds it. Nothing remembers a layer as checked: to link a file changes its ctime, so
// that only the mtime could tell, which anybody can set. A processor reads some 1.4 GB
// a second.
func take(from, to string, digest v1.Hash, size int64) error {
	got, n, err := linkOrCopy(from, to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the base's layer %s is missing; fetch the base again", from)
	case err != nil:
		return err
	case got != digest.Hex || n != size:
		// skopeo keeps a blob that has the name.
		return fmt.Errorf("the base's layer %s is damaged or was changed: it has %d bytes with the digest sha256:%s, the manifest says %d bytes; delete this file and fetch the base again", from, n, got, size)
	}
	return nil
}

// linkOrCopy returns the SHA-256 and the size of what is at to then.
func linkOrCopy(from, to string) (sum string, size int64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return "", 0, err
	}
	defer src.Close()
	h := sha256.New()
	if os.Link(from, to) == nil {
		size, err = io.Copy(h, src)
		return hex.EncodeToString(h.Sum(nil)), size, err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return "", 0, err
	}
	size, err = io.Copy(io.MultiWriter(dst, h), src)
	return hex.EncodeToString(h.Sum(nil)), size, errors.Join(err, dst.Close())
}
