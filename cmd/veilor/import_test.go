package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/site"
)

// signers are two maintainers, of whom both must sign, and one for addresses.
type signers struct {
	keys  []signature.Signer
	trust directory.Trust
}

func newSigners(t *testing.T) *signers {
	t.Helper()
	s := &signers{trust: directory.Trust{Threshold: 2, AddressesThreshold: 1}}
	for i := range 3 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := signature.LoadECDSASigner(k, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		s.keys = append(s.keys, signer)
		if i < 2 {
			s.trust.Keys = append(s.trust.Keys, &k.PublicKey)
		} else {
			s.trust.AddressKeys = append(s.trust.AddressKeys, &k.PublicKey)
		}
	}
	return s
}

// publish signs what v says and returns the repository and its packed form.
func (s *signers) publish(t *testing.T, f directory.Files, v *site.Site, now time.Time) (directory.Files, []byte) {
	t.Helper()
	d, err := directory.FromSite(v)
	if err != nil {
		t.Fatal(err)
	}
	if f, _, err = directory.Draft(f, d, s.trust, false, now); err != nil {
		t.Fatal(err)
	}
	for _, k := range s.keys {
		if f, _, err = f.Sign(k); err != nil {
			t.Fatal(err)
		}
	}
	c, err := directory.Verify(f["1.root.json"], nil, f.Get, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := directory.Pack(c.Files)
	if err != nil {
		t.Fatal(err)
	}
	return f, packed
}

// importer is a laptop: a root with a site whose image carries a signed directory.
type importer struct {
	*testing.T
	root, site string
}

func newImporter(t *testing.T, v *site.Site, packed []byte) importer {
	t.Helper()
	c := *v
	c.Directory = &site.Directory{Signed: site.File{Data: packed}, Threshold: 1, Addresses: site.AddressSigners{Threshold: 1}}
	one := []site.File{{Data: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY"})}}
	c.Directory.Keys, c.Directory.Addresses.Keys = one, one
	c.Authority, c.Image.Signatures = one[0], []site.SignatureGroup{{Name: "ci", Keys: one}}
	text, err := c.Inline()
	if err != nil {
		t.Fatal(err)
	}
	l := importer{t, t.TempDir(), ""}
	l.site = filepath.Join(l.root, "site.yaml")
	if err := os.WriteFile(l.site, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(l.root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l importer) veilor(stdin []byte, args ...string) (code int, stdout, stderr string) {
	l.Helper()
	a := defaults()
	a.euid = func() int { return 0 }
	var out, errs bytes.Buffer
	code = a.run(append([]string{"--root", l.root, "--site", l.site, "--ygg-socket", filepath.Join(l.root, "ygg.sock")}, args...), bytes.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestMeshImportAndPin(t *testing.T) {
	v := testSite(t)
	v.Control.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	now := time.Now()
	s := newSigners(t)
	f, packed := s.publish(t, directory.Files{}, v, now)
	l := newImporter(t, v, packed)
	hosts := filepath.Join(l.root, "etc", "hosts")
	pinned := func(address string) {
		t.Helper()
		if code, _, stderr := l.veilor(nil, "mesh", "pin"); code != 0 {
			t.Fatalf("pin: %s", stderr)
		}
		text, err := os.ReadFile(hosts)
		if err != nil || !strings.Contains(string(text), "\n"+address+" "+v.ControlHost()+"\n") {
			t.Errorf("%v: %s", err, text)
		}
	}
	pinned("192.0.2.10")

	v.Control.Addresses[0] = netip.MustParseAddr("192.0.2.20")
	f, newer := s.publish(t, f, v, now)
	codes, err := directory.QR(newer)
	if err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := l.veilor([]byte(strings.Join(codes, "\n")), "mesh", "import", "-"); code != 0 || !strings.Contains(stdout, "In force now: directory 1 with addresses 2") {
		t.Fatalf("exit %d\n%s\n%s", code, stdout, stderr)
	}
	pinned("192.0.2.20")
	if code, stdout, _ := l.veilor(newer, "mesh", "import", "-", "--json"); code != 0 || !strings.Contains(stdout, `"changed": false`) {
		t.Errorf("once more: exit %d, %s", code, stdout)
	}

	file := filepath.Join(t.TempDir(), "directory.pem")
	v.Control.Addresses[0] = netip.MustParseAddr("192.0.2.30")
	_, expired := s.publish(t, f, v, now.AddDate(-2, 0, 0))
	_, stranger := newSigners(t).publish(t, directory.Files{}, v, now.AddDate(0, 0, 1))
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"older", packed, "[directory-older]"},
		{"expired", expired, "timedatectl set-ntp true"},
		{"by strangers", stranger, "[directory-unsigned]"},
		{"large", bytes.Repeat([]byte("x"), directory.MaxPacket+1), "[directory-oversized]"},
		{"damaged", newer[:len(newer)/2], "[directory-damaged]"},
		{"empty", nil, "there is nothing"},
	} {
		if err := os.WriteFile(file, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := l.veilor(nil, "mesh", "import", file)
		if code != 1 || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %q\n%s", c.name, code, stdout, stderr)
		}
		if c.data != nil && !strings.Contains(stderr, "Nothing was changed") {
			t.Errorf("%s: nobody says that nothing was changed:\n%s", c.name, stderr)
		}
		pinned("192.0.2.20")
	}
	if code, _, stderr := l.veilor(nil, "mesh", "import"); code != 2 || !strings.Contains(stderr, "one file is wanted") {
		t.Errorf("no file: exit %d, %s", code, stderr)
	}
}

// A service that only the signed directory has is known to every command, and a
// directory that cannot be used is said and stops nothing.
func TestSiteInForce(t *testing.T) {
	v := testSite(t)
	now := time.Now()
	s := newSigners(t)
	f, packed := s.publish(t, directory.Files{}, v, now)
	l := newImporter(t, v, packed)
	more := v.Services[0]
	more.Name, more.Loopback = "later.veilor", netip.MustParseAddr("127.83.0.77")
	v.Services = append(v.Services, more)
	_, newer := s.publish(t, f, v, now)

	// veilor runs a command where no daemon answers.
	veilor := func(args ...string) (int, string, string) {
		return l.veilor(nil, append([]string{"--mesh-socket", filepath.Join(l.root, "m"), "--tailscaled-socket", filepath.Join(l.root, "t")}, args...)...)
	}
	ask := func(want string) {
		t.Helper()
		for _, command := range []string{"test", "explain"} {
			if code, _, stderr := veilor("mesh", command, "later"); code != 1 || !strings.Contains(stderr, want) {
				t.Errorf("mesh %s: exit %d, %s; want %s", command, code, stderr, want)
			}
		}
	}
	says := func(want, not string) {
		t.Helper()
		if code, stdout, stderr := veilor("status"); code != 0 || !strings.Contains(stdout, want) || strings.Contains(stdout, not) {
			t.Errorf("status: exit %d, want %q without %q\n%s%s", code, want, not, stdout, stderr)
		}
	}
	ask("no service is called")
	says("x.veilor", "[directory-")
	if code, _, stderr := l.veilor(newer, "mesh", "import", "-"); code != 0 {
		t.Fatal(stderr)
	}
	ask("[mesh-stopped]") // it would have asked the daemon
	says("later.veilor", "[directory-")

	kept := filepath.Join(l.root, directory.Dir, "directory.pem")
	if err := os.WriteFile(kept, newer[:len(newer)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	ask("no service is called")
	says("[directory-lost]", "later.veilor")
}

// What a reserve file brings of the group's password is put where veilor-ygg
// looks, and told without being shown.
func TestKeepGroup(t *testing.T) {
	a := defaults()
	a.root = t.TempDir()
	kept := filepath.Join(a.root, "var/lib/veilor-ygg/group")
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	const secret = "only these machines know it"
	var r imported
	if err := a.keepGroup(nil, &r, now); err != nil || r.Group {
		t.Errorf("nothing was brought: %+v, %v", r, err)
	}
	if err := a.keepGroup([]byte(secret), &r, now); err == nil || !strings.Contains(err.Error(), "start veilor-ygg") {
		t.Errorf("without veilor-ygg's directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{secret + "\n", "uses it within a minute"},
		{"from 2026-12-01T00:00:00Z\n" + secret + "\n", "begins to count on 2026-12-01 00:00 UTC"},
	} {
		var r imported
		var out bytes.Buffer
		if err := a.keepGroup([]byte(c.text), &r, now); err != nil || !r.Group || !r.Changed {
			t.Fatalf("%+v, %v", r, err)
		}
		if err := r.text(&out); err != nil || !strings.Contains(out.String(), c.want) || strings.Contains(out.String(), secret) {
			t.Errorf("%v:\n%s", err, out.String())
		}
		if data, err := os.ReadFile(kept); err != nil || string(data) != c.text {
			t.Errorf("kept: %q, %v", data, err)
		}
	}
	if err := a.keepGroup([]byte("from tomorrow\n"+secret), &r, now); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a mistake: %v", err)
	}
}
