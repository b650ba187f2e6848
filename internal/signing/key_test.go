package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// keys are what a parser of keys is fuzzed with first: ours, and those of others.
func keys(t testing.TB) (private []crypto.Signer) {
	t.Helper()
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private = append(private, k)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return append(private, other)
}

// A public key that is read is the one that containers' policy.json reads there, and
// comes out again as it went in.
func FuzzParsePublic(f *testing.F) {
	for _, k := range keys(f) {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			f.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der})
		f.Add(text)
		f.Add(append(bytes.Clone(text), text...))
		f.Add(append([]byte("a key:\n"), text...))
		f.Add(pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: der}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParsePublic("ci.pub", data)
		if err != nil {
			if !strings.Contains(err.Error(), "ci.pub") {
				t.Errorf("which file is it? %v", err)
			}
			return
		}
		there, err := cryptoutils.UnmarshalPEMToPublicKey(data)
		if err != nil {
			t.Fatalf("accepted, and a laptop refuses it: %v", err)
		}
		if !v.key.Equal(there) {
			t.Errorf("read %+v, a laptop reads %+v", v.key, there)
		}
		text, err := publicPEM(v.key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePublic("again", text)
		if err != nil || !again.key.Equal(v.key) {
			t.Errorf("written and read again: %+v, %v", again, err)
		}
		if v.verify([]byte("payload"), data) {
			t.Error("it takes its own text for a signature")
		}
	})
}

// signs fails unless what k signs is verified by the public half that it gives out,
// and nothing else is.
func signs(t *testing.T, k *Private) {
	t.Helper()
	pub, err := k.Public()
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParsePublic("ci.pub", pub)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte("payload")
	signature, err := k.sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	if !v.verify(payload, signature) || v.verify([]byte("another"), signature) {
		t.Error("its signature does not tell payloads apart")
	}
}

// What an envelope holds is a key that signs, or no key.
func FuzzParsePrivate(f *testing.F) {
	for _, k := range keys(f) {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := parsePrivate("ci.key", der)
		if err != nil {
			if !strings.Contains(err.Error(), "ci.key") {
				t.Errorf("which file is it? %v", err)
			}
			return
		}
		signs(t, k)
	})
}

const secret = "correct horse"

// tryLoad returns whether a file with data in it is opened by secret. It fails unless
// that is the one passphrase that opens it, is asked only for a key, does not stay in
// memory, and is not in what is printed.
func tryLoad(t *testing.T, data []byte) (opened bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ci.key")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var given []byte
	load := func(passphrase string) (*Private, error) {
		return Load(file, func(string) ([]byte, error) {
			given = []byte(passphrase)
			return given, nil
		})
	}
	k, err := load(secret)
	if block, _ := pem.Decode(data); given != nil && (block == nil || !strings.HasSuffix(block.Type, " PRIVATE KEY")) {
		t.Error("asked for the passphrase of what is no key")
	}
	if strings.Trim(string(given), "\x00") != "" {
		t.Errorf("the passphrase stays in memory: %q", given)
	}
	if err != nil {
		if !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), secret) {
			t.Errorf("got %v", err)
		}
		return false
	}
	signs(t, k)
	if _, err := load(secret + "?"); err == nil {
		t.Error("another passphrase opens it too")
	}
	return true
}

// envelope is k in a file of the type kind; of all ways to encrypt it, the quickest.
func envelope(t testing.TB, k crypto.Signer, kind string) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	box, err := encrypted.EncryptWithCustomKDFParameters(der, []byte(secret), encrypted.Legacy)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: box})
}

func TestLoad(t *testing.T) {
	all := keys(t)
	for name, c := range map[string]struct {
		data []byte
		want bool
	}{
		"cosign's":               {envelope(t, all[0], privateType), true},
		"of cosign before 2":     {envelope(t, all[0], oldPrivateType), true},
		"of another curve":       {envelope(t, all[1], privateType), true},
		"of another kind":        {envelope(t, all[2], privateType), false},
		"called the public half": {envelope(t, all[0], publicType), false},
		"no key in it":           {pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: []byte("{}")}), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tryLoad(t, c.data); got != c.want {
				t.Errorf("opened: %v, want %v", got, c.want)
			}
		})
	}
}

// The seeds stop before the passphrase is stretched, which is slow by design: what can
// be got wrong is in front of that, and behind it, for which FuzzParsePrivate is.
func FuzzLoad(f *testing.F) {
	for _, box := range []string{
		`{"kdf":{"name":"scrypt","params":{"N":1073741824,"r":8,"p":1},"salt":"AAAA"},"cipher":{"name":"nacl/secretbox","nonce":"AAAA"},"ciphertext":"AAAA"}`,
		`{"kdf":{"name":"argon2"}}`, `{`, ``,
	} {
		for _, kind := range []string{privateType, oldPrivateType, publicType} {
			f.Add(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(box)}))
		}
	}
	f.Add([]byte("-----BEGIN"))
	f.Fuzz(func(t *testing.T, data []byte) { tryLoad(t, data) })
}
