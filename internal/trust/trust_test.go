package trust

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func parse(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func authority(t *testing.T) (*Authority, *Pair) {
	t.Helper()
	p, err := Create("veilor", now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open("authority.pem", p.Certificate, "authority.key", p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return a, p
}

func TestAuthorityIsBoundToItsZone(t *testing.T) {
	a, p := authority(t)
	c := parse(t, p.Certificate)
	if !c.IsCA || !c.MaxPathLenZero || !c.PermittedDNSDomainsCritical || len(c.PermittedDNSDomains) != 1 || c.PermittedDNSDomains[0] != "veilor" {
		t.Errorf("authority: %+v", c)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c)
	check := func(leaf []byte, name string, at time.Time) error {
		_, err := parse(t, leaf).Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
		return err
	}

	good, err := a.Issue([]string{"x.veilor", "y.veilor"}, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"x.veilor", "y.veilor"} {
		if err := check(good.Certificate, n, now); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	for n, at := range map[string]time.Time{"z.veilor": now, "x.veilor": now.Add(LeafLife + time.Hour)} {
		if check(good.Certificate, n, at) == nil {
			t.Errorf("%s at %v is accepted", n, at)
		}
	}
	if err := check(good.Certificate, "x.veilor", now.Add(-backdate/2)); err != nil {
		t.Errorf("with a clock that is behind: %v", err)
	}

	// Whoever steals the key can sign anything; no verifier may believe it.
	for name, forged := range map[string]*x509.Certificate{
		"evil.example":  {DNSNames: []string{"evil.example"}},
		"veilor.evil":   {DNSNames: []string{"veilor.evil"}},
		"notveilor":     {DNSNames: []string{"notveilor"}},
		"192.0.2.1":     {IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}},
		"2001:db8::1":   {IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}},
		"x.veilor.evil": {DNSNames: []string{"x.veilor", "x.veilor.evil"}},
	} {
		forged.NotBefore, forged.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		forged.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		leaf, err := issue(forged, a.cert, a.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(leaf.Certificate, name, now); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}

	// Nor may it make another authority.
	sub := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: now, NotAfter: now.Add(time.Hour)}
	inter, err := issue(sub, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(inter.Key)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issue(&x509.Certificate{DNSNames: []string{"x.veilor"}, NotBefore: now, NotAfter: now.Add(time.Hour)}, parse(t, inter.Certificate), key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parse(t, inter.Certificate))
	if _, err := parse(t, leaf.Certificate).Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, DNSName: "x.veilor", CurrentTime: now}); err == nil {
		t.Error("a second authority below the first is accepted")
	}
}

func TestIssueRefuses(t *testing.T) {
	a, _ := authority(t)
	for _, names := range [][]string{nil, {"x.example.org"}, {"veilor"}, {"x.veilor", "y"}, {".veilor"}, {"a/b.veilor"}} {
		if _, err := a.Issue(names, now); err == nil {
			t.Errorf("%v is issued", names)
		}
	}
	if _, err := a.Issue([]string{"x.veilor"}, now.Add(AuthorityLife)); err == nil || !strings.Contains(err.Error(), "expired on 2036") {
		t.Errorf("an expired authority: %v", err)
	}
	late, err := a.Issue([]string{"x.veilor"}, now.Add(AuthorityLife-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if end := parse(t, late.Certificate).NotAfter; end.After(a.cert.NotAfter) {
		t.Errorf("a certificate outlives its authority: %v", end)
	}
}

func TestOpenRefuses(t *testing.T) {
	a, p := authority(t)
	_, other := authority(t)
	leaf, err := a.Issue([]string{"x.veilor"}, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ cert, key []byte }{
		"not PEM":       {[]byte("x"), p.Key},
		"key cut short": {p.Certificate, p.Key[:40]},
		"other key":     {p.Certificate, other.Key},
		"a leaf":        {leaf.Certificate, leaf.Key},
		"two":           {append(p.Certificate[:len(p.Certificate):len(p.Certificate)], other.Certificate...), p.Key},
	} {
		if _, err := Open("c", c.cert, "k", c.key); err == nil {
			t.Errorf("%s is accepted", name)
		} else if strings.Contains(err.Error(), string(p.Key)) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	for _, zone := range []string{"", "a.b", "*", "a b"} {
		if _, err := Create(zone, now); err == nil {
			t.Errorf("zone %q is accepted", zone)
		}
	}
}
