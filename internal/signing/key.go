// Package signing makes and checks image signatures as cosign does: key pairs,
// simple-signing payloads, and attachments beside the image in its registry. It
// is the one format that containers' policy.json (sigstoreSigned) reads; cosign's
// newer bundles are not read by it.
package signing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

const (
	// privateType is the PEM type that `cosign generate-key-pair` writes.
	privateType = "ENCRYPTED SIGSTORE PRIVATE KEY"
	// oldPrivateType is what cosign wrote before version 2.
	oldPrivateType = "ENCRYPTED COSIGN PRIVATE KEY"
	publicType     = "PUBLIC KEY"
)

// howToMake ends an error about a key that is not there or no key.
const howToMake = "make a pair with: veilor-forge key generate --out DIR --name ci"

// Private is a key that signs.
type Private struct {
	key *ecdsa.PrivateKey
}

// Public is the PEM text of the key that checks (PKIX).
func (p *Private) Public() ([]byte, error) { return publicPEM(&p.key.PublicKey) }

func (p *Private) sign(payload []byte) ([]byte, error) {
	digest := sha256.Sum256(payload)
	return ecdsa.SignASN1(rand.Reader, p.key, digest[:])
}

// Verifier is a public key.
type Verifier struct {
	key *ecdsa.PublicKey
}

func (v *Verifier) verify(payload, signature []byte) bool {
	digest := sha256.Sum256(payload)
	return ecdsa.VerifyASN1(v.key, digest[:], signature)
}

// Generate makes a pair in the directory dir: name.key, encrypted with
// passphrase (which may be empty) and readable only by the owner, and name.pub.
// It does not overwrite.
func Generate(dir, name string, passphrase []byte) (private, public string, err error) {
	private, public = filepath.Join(dir, name+".key"), filepath.Join(dir, name+".pub")
	for _, f := range []string{private, public} {
		if _, err := os.Lstat(f); !errors.Is(err, fs.ErrNotExist) {
			return "", "", fmt.Errorf("making a key pair: %s is there already; choose another --name or --out, or move it away", f)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("making a key pair: %w", err)
	}
	secret, err := marshal(key, passphrase)
	if err != nil {
		return "", "", fmt.Errorf("making a key pair: %w", err)
	}
	pub, err := publicPEM(&key.PublicKey)
	if err != nil {
		return "", "", fmt.Errorf("making a key pair: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("making a key pair: %w", err)
	}
	if err := renameio.WriteFile(private, secret, 0o600, renameio.IgnoreUmask()); err != nil {
		return "", "", fmt.Errorf("making a key pair: %w", err)
	}
	if err := renameio.WriteFile(public, pub, 0o644, renameio.IgnoreUmask()); err != nil {
		return "", "", errors.Join(fmt.Errorf("making a key pair: %w", err), os.Remove(private))
	}
	return private, public, nil
}

// marshal encrypts key as cosign does: PKCS #8 in a scrypt/secretbox envelope.
func marshal(key *ecdsa.PrivateKey, passphrase []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	box, err := encrypted.Encrypt(der, passphrase)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: box}), nil
}

func publicPEM(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}), nil
}

// Load reads the private key in file. passphrase is asked only if the file is a
// key.
func Load(file string, passphrase func(file string) ([]byte, error)) (*Private, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the key: %w; %s", err, howToMake)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return nil, fmt.Errorf("reading the key: %s is not PEM, or cut short; %s", file, howToMake)
	case block.Type == publicType:
		return nil, fmt.Errorf("reading the key: %s is the public half; give the .key file", file)
	case block.Type != privateType && block.Type != oldPrivateType:
		return nil, fmt.Errorf("reading the key: %s holds %q, not %q; %s", file, block.Type, privateType, howToMake)
	}
	pass, err := passphrase(file)
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	der, err := encrypted.Decrypt(block.Bytes, pass)
	if err != nil {
		return nil, fmt.Errorf("opening %s: wrong passphrase, or the file is damaged; give the right one in COSIGN_PASSWORD or at the prompt", file)
	}
	return parsePrivate(file, der)
}

// parsePrivate reads what is in the envelope.
func parsePrivate(file string, der []byte) (*Private, error) {
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", file, err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("opening %s: it holds a %T; cosign's keys are ECDSA; %s", file, any, howToMake)
	}
	return &Private{key}, nil
}

// ParsePublic reads a public key. name is used in errors.
func ParsePublic(name string, data []byte) (*Verifier, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != publicType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("reading %s: not one PEM public key; copy the .pub file whole, or %s", name, howToMake)
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w; copy the .pub file whole", name, err)
	}
	key, ok := any.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("reading %s: it holds a %T; cosign's keys are ECDSA", name, any)
	}
	return &Verifier{key}, nil
}
