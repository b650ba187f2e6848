package signing

import (
	"crypto"
	"crypto/ecdsa"

	sigstore "github.com/sigstore/sigstore/pkg/signature"
)

// Signer signs other things than images with the same key, as TUF wants it:
// ECDSA over the SHA-256 of the message.
func (p *Private) Signer() (sigstore.Signer, error) {
	return sigstore.LoadECDSASigner(p.key, crypto.SHA256)
}

// PublicKey is the key itself.
func (v *Verifier) PublicKey() *ecdsa.PublicKey { return v.key }
