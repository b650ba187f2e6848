package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// sumLength is how many hex digits of the hash go into a directory's name: 80
// bits, far beyond accident.
const sumLength = 20

// Inputs collects everything that an artefact depends on. Each value is hashed
// with its length and kind, so that no two lists of inputs look alike.
type Inputs struct {
	h   hash.Hash
	err error
}

// NewInputs starts a list. The version is the builder's own: raise it when the
// code that builds changes what it makes.
func NewInputs(version string) *Inputs {
	in := &Inputs{h: sha256.New()}
	return in.String(version)
}

func (in *Inputs) field(kind byte, length int64) {
	var head [9]byte
	head[0] = kind
	binary.BigEndian.PutUint64(head[1:], uint64(length))
	in.h.Write(head[:])
}

// String adds values, in order.
func (in *Inputs) String(values ...string) *Inputs {
	for _, v := range values {
		in.field('s', int64(len(v)))
		io.WriteString(in.h, v)
	}
	return in
}

// Bytes adds one value.
func (in *Inputs) Bytes(b []byte) *Inputs {
	in.field('b', int64(len(b)))
	in.h.Write(b)
	return in
}

// File adds a file's content and whether it may be executed.
func (in *Inputs) File(path string) *Inputs {
	if in.err != nil {
		return in
	}
	in.err = in.file(path)
	return in
}

func (in *Inputs) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	in.field('f', info.Size())
	in.field('m', int64(info.Mode()&0o111))
	n, err := io.Copy(in.h, f)
	if err == nil && n != info.Size() {
		err = fmt.Errorf("%s changed while it was read", path)
	}
	return err
}

// Tree adds a directory: every name, kind, target and content below it.
func (in *Inputs) Tree(root string) *Inputs {
	if in.err != nil {
		return in
	}
	in.err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		in.String(rel, d.Type().String())
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			in.String(target)
		case d.Type().IsRegular():
			return in.file(path)
		}
		return nil
	})
	return in
}

// Sum is the hash of all inputs, or the first error met reading them.
func (in *Inputs) Sum() (string, error) {
	if in.err != nil {
		return "", in.err
	}
	return hex.EncodeToString(in.h.Sum(nil))[:sumLength], nil
}
