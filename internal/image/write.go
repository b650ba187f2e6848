package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
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
// links where the file system allows.
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
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		from := filepath.Join(o.Base.Path, "blobs", "sha256", digest.Hex)
		if info, err := os.Stat(from); err != nil || info.Size() != size {
			if _, ours := l.(blob); ours {
				continue // written below
			}
			return fmt.Errorf("the base's layer %s is missing or has another size; fetch the image again", digest)
		}
		if err := linkOrCopy(from, filepath.Join(blobs, digest.Hex)); err != nil {
			return err
		}
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

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return errors.Join(err, dst.Close())
	}
	return dst.Close()
}
