// Package trust is the site's own certificate authority. Services under the
// site's zone have certificates of it; the image trusts it. It is bound by a
// critical name constraint to the zone, so that whoever gets hold of its key can
// not speak for any other name.
package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"
)

const (
	// AuthorityLife is long because changing the authority needs a new image on
	// every laptop.
	AuthorityLife = 10 * 365 * 24 * time.Hour
	// LeafLife is below the 398 days that browsers take (CA/Browser Forum, until
	// 2026-03) so that one year of service needs one renewal.
	LeafLife = 397 * 24 * time.Hour
	// backdate is for laptops whose clock is behind, by as much as a wrong time
	// zone makes.
	backdate = 24 * time.Hour
	// serialBits is what CA/Browser Forum's baseline wants at least 64 of.
	serialBits = 127
)

const (
	certificateType = "CERTIFICATE"
	privateType     = "PRIVATE KEY"
)

// A Pair is a certificate and its private key, in PEM.
type Pair struct {
	Certificate []byte
	Key         []byte // PKCS #8; a secret
}

// Create makes an authority for zone ("veilor").
func Create(zone string, now time.Time) (*Pair, error) {
	if zone == "" || strings.ContainsAny(zone, ". *") {
		return nil, fmt.Errorf("making the authority: %q is no zone; write one label, for example veilor", zone)
	}
	any4 := net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	any6 := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "veilor authority for ." + zone},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(AuthorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leaves only

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{zone},
		// A constraint binds only names of its own kind (RFC 5280, 4.2.1.10):
		// without this it could still speak for any IP address.
		ExcludedIPRanges: []*net.IPNet{&any4, &any6},
	}
	return issue(t, nil, nil)
}

// Authority can issue certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open reads an authority's pair. The names of the files are used in errors.
func Open(certName string, cert []byte, keyName string, key []byte) (*Authority, error) {
	c, err := parseCertificate(certName, cert)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(key)
	if block == nil || block.Type != privateType {
		return nil, fmt.Errorf("reading %s: not a PEM private key, or cut short; make the authority with: veilor-forge authority create --site FILE --out DIR", keyName)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", keyName, err)
	}
	k, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !k.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("reading %s: it is not the key of the certificate in %s", keyName, certName)
	}
	return &Authority{c, k}, nil
}

func parseCertificate(name string, data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != certificateType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("reading %s: not one PEM certificate; copy it whole", name)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if !c.IsCA || len(c.PermittedDNSDomains) == 0 || !c.PermittedDNSDomainsCritical {
		return nil, fmt.Errorf("reading %s: not an authority that is bound to a zone; make one with: veilor-forge authority create --site FILE --out DIR", name)
	}
	return c, nil
}

// Issue makes a server certificate for names, all in the authority's zone.
func (a *Authority) Issue(names []string, now time.Time) (*Pair, error) {
	if len(names) == 0 {
		return nil, errors.New("issuing a certificate: no name; give one, for example x.veilor")
	}
	zone := a.cert.PermittedDNSDomains[0]
	for _, n := range names {
		if !strings.HasSuffix(n, "."+zone) || strings.HasPrefix(n, ".") || strings.ContainsAny(n, "/ ") {
			return nil, fmt.Errorf("issuing a certificate: %q is not a name in .%s, to which the authority is bound", n, zone)
		}
	}
	end := now.Add(LeafLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	if !now.Before(end) {
		return nil, fmt.Errorf("issuing a certificate: the authority expired on %s; make a new one and put it into the site", a.cert.NotAfter.Format(time.DateOnly))
	}
	return issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: names[0]},
		DNSNames:              names,
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, a.cert, a.key)
}

// issue makes a pair from t, signed by parent or, if that is nil, by itself.
func issue(t, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits)); err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	if parent == nil {
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	return &Pair{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: secret}),
	}, nil
}
