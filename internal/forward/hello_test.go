package forward

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// certificate is a service's, which signs itself.
func certificate(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// secure is handle behind TLS.
func secure(cert tls.Certificate, handle func(net.Conn)) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			handle(s)
			s.Close()
		}
	}
}

// startTLS is start for a service whose port speaks TLS.
func startTLS(t testing.TB, port uint16, roots *x509.CertPool, log *slog.Logger, routes ...Route) (*Forwarder, string) {
	t.Helper()
	f := New([]Service{{Name: "x.veilor", Listen: serviceAddr, Ports: []uint16{port}, TLS: []uint16{port}, Routes: routes}}, log, nil)
	f.services[0].roots = roots
	run(t, f)
	return f, netip.AddrPortFrom(serviceAddr, port).String()
}

func TestNameDecides(t *testing.T) {
	port := freePort(t)
	cert, roots := certificate(t, "x.veilor")
	o := serve(t, netip.AddrPortFrom(tailnetAddr, port), secure(cert, func(c net.Conn) { io.Copy(c, c) }))
	r1, _ := routes()
	var logs bytes.Buffer
	f := New([]Service{{Name: "x.veilor", Listen: serviceAddr, Ports: []uint16{port}, TLS: []uint16{port}, Routes: []Route{r1}}}, slog.New(slog.NewTextHandler(&logs, nil)), nil)
	f.services[0].roots = roots
	news := make(chan News, 100)
	f.Tell(func(n News) { news <- n })
	run(t, f)
	addr := netip.AddrPortFrom(serviceAddr, port).String()

	for _, name := range []string{"x.veilor", "X.Veilor"} {
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, RootCAs: roots})
		if err != nil {
			t.Fatalf("asking for %s: %v", name, err)
		}
		io.WriteString(c, "hello")
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			t.Errorf("asking for %s: %q, %v", name, got, err)
		}
		c.Close()
	}
	before := o.conns.Load()

	for range 3 {
		_, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true})
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("asking for another name: %v; want the TLS alert", err)
		}
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("a client that names nobody was let in")
	}
	c := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x.veilor\r\n\r\n")
	if got, err := io.ReadAll(c); len(got) > 0 || err == nil {
		t.Errorf("plaintext: %q, %v; want a reset", got, err)
	}
	if n := o.conns.Load(); n != before {
		t.Errorf("the host was dialled %d times for clients that are refused", n-before)
	}
	got := f.services[0].status().Refusals
	for why, want := range map[string]int{WrongName: 3, NoName: 1, NotTLS: 1} {
		if got[why].Count != want {
			t.Errorf("%s: counted %d, want %d", why, got[why].Count, want)
		}
	}
	if got[WrongName].Name != "evil.example" {
		t.Errorf("the name it wanted: %q", got[WrongName].Name)
	}
	// Who watches is told once of each reason.
	var told []string
	for len(told) < 3 {
		select {
		case n := <-news:
			if n.What == RefusedOne {
				told = append(told, n.Why)
			}
		case <-time.After(time.Minute):
			t.Fatalf("told of %q only", told)
		}
	}
	slices.Sort(told)
	if !slices.Equal(told, []string{NoName, NotTLS, WrongName}) {
		t.Errorf("told of %q", told)
	}
	if n := strings.Count(logs.String(), "wants=evil.example"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, logs.String())
	}
}

// TestHelloInPieces: a hello may come byte by byte, and with bytes behind it.
func TestHelloInPieces(t *testing.T) {
	hello := append(helloOf(t, "x.veilor"), "early data"...)
	for _, r := range []io.Reader{iotest.OneByteReader(bytes.NewReader(hello)), bytes.NewReader(hello), iotest.HalfReader(bytes.NewReader(hello))} {
		name, read, err := readHello(r)
		rest, _ := io.ReadAll(r)
		if err != nil || name != "x.veilor" || !bytes.Equal(slices.Concat(read, rest), hello) {
			t.Errorf("readHello = %q, %d of %d bytes, %v", name, len(read)+len(rest), len(hello), err)
		}
	}
}

func TestMuteClient(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	a.SetReadDeadline(time.Now().Add(-time.Second))
	_, err := admit(a, "x.veilor")
	var no *refused
	if !errors.As(err, &no) || no.why != Mute {
		t.Errorf("admit = %v", err)
	}
	a, b = net.Pipe()
	b.Close()
	if _, err := admit(a, "x.veilor"); errors.As(err, &no) {
		t.Errorf("a client that hangs up is refused: %v", err)
	}
}

// TestWaitingLimit: clients that say nothing do not pile up.
func TestWaitingLimit(t *testing.T) {
	port := freePort(t)
	_, roots := certificate(t, "x.veilor")
	r1, _ := routes()
	f, addr := startTLS(t, port, roots, slog.New(slog.DiscardHandler), r1)
	s := f.services[0]
	for take(s.waiting) {
	}
	if got, _ := who(t, addr); !strings.Contains(got, "connection reset") {
		t.Errorf("over the limit: %s", got)
	}
	if n := s.status().Refusals[Full].Count; n != 1 {
		t.Errorf("counted %d", n)
	}
	if n := len(s.slots); n != 0 {
		t.Errorf("%d slots are lost", n)
	}
}

// helloOf is the ClientHello of crypto/tls for name.
func helloOf(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true}).HandshakeContext(context.Background())
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func FuzzHello(f *testing.F) {
	f.Add(helloOf(f, "x.veilor"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 0, 1, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		name, read, err := readHello(in)
		if !bytes.HasPrefix(data, read) {
			t.Fatal("what it read is not what it was given")
		}
		if err == nil && len(read)+in.Len() != len(data) {
			t.Fatalf("%d bytes are lost", len(data)-len(read)-in.Len())
		}
		if err != nil && name != "" {
			t.Fatalf("a name %q with the error %v", name, err)
		}
		if _, err := admit(bytes.NewReader(data), "x.veilor"); err == nil && name != "x.veilor" {
			t.Fatalf("%q was let in", name)
		}
	})
}
