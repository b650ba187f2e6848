// Package webca stands in for the public web PKI: one root that the lab's
// machines trust as they trust the public roots, and certificates for the
// lab's public names. It has nothing to do with the site's own authority.
//
// Keys and certificates are made once per directory and stay the same, since
// the root's certificate is part of the lab's base image.
package webca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

const (
	// rootLife outlives any checkout of the lab.
	rootLife = 10 * 365 * 24 * time.Hour
	// leafLife is what Apple and Chromium accept of a leaf (398 days).
	leafLife = 397 * 24 * time.Hour
	// leafLeft is how long a leaf must be good for, to be used again.
	leafLeft = 7 * 24 * time.Hour
	// backdate allows for machines whose clock is a little behind.
	backdate = 24 * time.Hour
)

// CA is the lab's web root.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	now  func() time.Time
}

// Open reads the root in dir, or makes it there.
func Open(dir string, now func() time.Time) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the web CA: %w", err)
	}
	c := &CA{dir: dir, now: now}
	pair, err := c.read("ca")
	if errors.Is(err, fs.ErrNotExist) {
		if err = c.makeRoot(); err == nil {
			pair, err = c.read("ca")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the web CA: %w", err)
	}
	c.cert, c.key = pair.Leaf, pair.PrivateKey.(crypto.Signer)
	if now().After(c.cert.NotAfter) {
		return nil, fmt.Errorf("opening the web CA: it expired on %s; remove %s to make a new one", c.cert.NotAfter.Format(time.DateOnly), dir)
	}
	return c, nil
}

// CertFile is the root's certificate (PEM), as SSL_CERT_FILE wants it.
func (c *CA) CertFile() string { return filepath.Join(c.dir, "ca.pem") }

// Pool holds the root only.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// Files are the certificate and key files (PEM) of name, made or renewed if
// need be.
func (c *CA) Files(name string) (cert, key string, err error) {
	cert, key = filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+".key")
	pair, err := c.read(name)
	if err == nil && c.now().Add(leafLeft).Before(pair.Leaf.NotAfter) {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: c.Pool(), DNSName: name, CurrentTime: c.now()}); err == nil {
			return cert, key, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("reading the certificate of %s: %w", name, err)
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name},
		NotBefore:   c.now().Add(-backdate),
		NotAfter:    c.now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if err := c.make(name, t, c.cert, c.key); err != nil {
		return "", "", fmt.Errorf("issuing a certificate for %s: %w", name, err)
	}
	return cert, key, nil
}

// Certificate is the pair of name, as a server wants it.
func (c *CA) Certificate(name string) (tls.Certificate, error) {
	cert, key, err := c.Files(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(cert, key)
}

func (c *CA) makeRoot() error {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Lab stand-in for the public web PKI"},
		NotBefore:             c.now().Add(-backdate),
		NotAfter:              c.now().Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return c.make("ca", t, nil, nil)
}

// make signs t, with a new key, by parent (itself if nil) and writes both
// files; the certificate last, so that a pair is whole or absent.
func (c *CA) make(name string, t, parent *x509.Certificate, signer crypto.Signer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return err
	}
	if parent == nil {
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(c.dir, name+".key"), pemOf("PRIVATE KEY", keyDER), 0o600); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(c.dir, name+".pem"), pemOf("CERTIFICATE", der), 0o644)
}

func (c *CA) read(name string) (tls.Certificate, error) {
	return tls.LoadX509KeyPair(filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+".key"))
}

func pemOf(kind string, der []byte) []byte {
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	return b.Bytes()
}
