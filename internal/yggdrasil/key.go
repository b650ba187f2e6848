package yggdrasil

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
)

// keyBlock is the PEM type that the library reads too (PrivateKeyPath in
// yggdrasil-go, src/config/config.go): PKCS#8 (RFC 8410).
const keyBlock = "PRIVATE KEY"

// maxKey bounds a key file: a real one has 119 bytes.
const maxKey = 16 << 10

// Address is the IPv6 address of the node with that key.
func Address(key ed25519.PublicKey) netip.Addr {
	return netip.AddrFrom16(*address.AddrForKey(key))
}

// ReadKey reads a node's private key.
func ReadKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the node's key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("reading the node's key: others may read %s: it may be known; if it is not, run `chmod 600 %s`", path, path)
	}
	if info.Size() > maxKey {
		return nil, fmt.Errorf("reading the node's key: %s has %d bytes and is no key", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the node's key: %w", err)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("reading the node's key: %s: %w; restore it from a backup, or move it away and start again: the node then gets a new key and a new address", path, err)
	}
	return key, nil
}

// parseKey never quotes what it was given.
func parseKey(data []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != keyBlock || len(rest) > 0 {
		return nil, fmt.Errorf("not one PEM block %q", keyBlock)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS#8 key")
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T, not Ed25519", k)
	}
	return key, nil
}

// MakeKey makes a key and puts it at path, whole and 0600. It never replaces a
// file: the error then is fs.ErrExist.
func MakeKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

// writeNew writes a file whole or not at all, and never over another: the
// rename of renameio would replace one that appeared meanwhile, a link does not.
func writeNew(path string, data []byte) error {
	tmp, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600), renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return err
	}
	defer tmp.Cleanup()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// EnsureKey reads the key at path and makes it if there is none. made says
// which.
func EnsureKey(path string) (key ed25519.PrivateKey, made bool, err error) {
	key, err = ReadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	key, err = MakeKey(path)
	if errors.Is(err, fs.ErrExist) {
		key, err = ReadKey(path)
		return key, false, err
	}
	return key, err == nil, err
}
