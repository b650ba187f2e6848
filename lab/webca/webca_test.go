package webca

import (
	"bytes"
	"crypto/x509"
	"os"
	"testing"
	"time"
)

func TestStable(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	a, err := Open(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.Files("hs.lab.test")
	if err != nil {
		t.Fatal(err)
	}
	read := func(file string) []byte {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	root, leaf := read(a.CertFile()), read(cert)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}

	b, err := Open(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Files("hs.lab.test"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(root, read(b.CertFile())) || !bytes.Equal(leaf, read(cert)) {
		t.Error("the second opening made new certificates")
	}

	now = now.Add(leafLife)
	pair, err := b.Certificate("hs.lab.test")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(leaf, read(cert)) {
		t.Error("an old certificate was not renewed")
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), DNSName: "hs.lab.test", CurrentTime: now}); err != nil {
		t.Error(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), DNSName: "edge.lab.test", CurrentTime: now}); err == nil {
		t.Error("it is good for another name")
	}

	now = now.Add(rootLife)
	if _, err := Open(dir, clock); err == nil {
		t.Error("an expired root was opened")
	}
}
