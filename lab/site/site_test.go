package site

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/signing"
)

// tree is every file below dir with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMake(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	lab, err := Make(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	first := tree(t, dir)
	inline, err := lab.Inline()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(inline, []byte("PRIVATE")) {
		t.Error("the image would carry a private key")
	}
	again, err := Make(dir, now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(first, tree(t, dir)); d != "" {
		t.Error("the second call changed something\n", d)
	}
	if again.Passphrase != lab.Passphrase || lab.Passphrase == "" {
		t.Error("the passphrase changed, or there is none")
	}
	for _, file := range lab.ImageKeys {
		if _, err := signing.Load(file, func(string) ([]byte, error) { return []byte(lab.Passphrase), nil }); err != nil {
			t.Error(err)
		}
	}
	for _, file := range append(lab.ImageKeys, lab.EdgeKey, lab.PeerKey, lab.AuthorityKey) {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	pair, err := lab.Certificate(now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(lab.Authority.Data)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: ServiceName}); err != nil {
		t.Error(err)
	}
}

func TestMakeMendsHalfAPair(t *testing.T) {
	dir := t.TempDir()
	lab, err := Make(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "keys", "ci.pub")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lab.AuthorityCert); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(dir, time.Now()); err != nil {
		t.Error(err)
	}
}
