package censor

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/webca"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// town is a laptop, an ISP and two servers: a and b.
type town struct {
	t                 *testing.T
	laptop, isp, home *namespace.Namespace
	censor            *Censor
}

const (
	a = "10.88.3.10"
	b = "10.88.4.10"
	// Their other family.
	a6 = "2001:db8:3::a"
	b6 = "2001:db8:4::a"
)

func newTown(t *testing.T) *town {
	t.Helper()
	gate.Root(t, "the censor")
	w := &town{t: t}
	dir := t.TempDir()
	for name, ns := range map[string]**namespace.Namespace{"laptop": &w.laptop, "isp": &w.isp, "home": &w.home} {
		n, err := namespace.New(name, namespace.Options{Dir: dir})
		w.must(err)
		t.Cleanup(func() { n.Close() })
		*ns = n
	}
	for _, ns := range []*namespace.Namespace{w.laptop, w.isp, w.home} {
		// Its addresses are there at once.
		w.must(ns.Sysctl("net.ipv6.conf.all.accept_dad", "0"))
		w.must(ns.Sysctl("net.ipv6.conf.default.accept_dad", "0"))
	}
	w.must(namespace.Cable(namespace.End{In: w.isp, Name: "to-laptop", Addresses: []string{"10.88.1.1/24", "2001:db8:1::1/64"}},
		namespace.End{In: w.laptop, Name: "eth0", Addresses: []string{"10.88.1.10/24", "2001:db8:1::a/64"}}))
	w.must(namespace.Cable(namespace.End{In: w.isp, Name: "to-home", Addresses: []string{"10.88.3.1/24", "10.88.4.1/24", "2001:db8:3::1/64", "2001:db8:4::1/64"}},
		namespace.End{In: w.home, Name: "eth0", Addresses: []string{a + "/24", b + "/24", a6 + "/64", b6 + "/64"}}))
	w.must(w.laptop.Gateway(net.ParseIP("2001:db8:1::1")))
	w.must(w.home.Gateway(net.ParseIP("2001:db8:3::1")))
	w.must(w.isp.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	w.must(w.laptop.Gateway(net.ParseIP("10.88.1.1")))
	w.must(w.home.Gateway(net.ParseIP("10.88.3.1")))
	w.must(w.isp.Sysctl("net.ipv4.ip_forward", "1"))
	w.must(w.isp.Sysctl("net.netfilter.nf_conntrack_acct", "1"))
	c, err := New(w.isp.FD(), "to-laptop")
	w.must(err)
	t.Cleanup(c.Close)
	w.censor = c
	return w
}

func (w *town) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// serve answers "ok" to each line at ports of a server, by TLS at 443.
func (w *town) serve(ca *webca.CA) {
	cert, err := ca.Certificate("hs.lab.test")
	w.must(err)
	for _, at := range []string{a + ":443", b + ":443", a + ":80", b + ":80", six(a6, 443), six(b6, 443), six(a6, 80), six(b6, 80)} {
		l, err := w.home.Listen("tcp", at)
		w.must(err)
		if strings.HasSuffix(at, ":443") {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
	}
	for _, at := range []string{a + ":5000", b + ":5000", a + ":443", a + ":53", six(a6, 5000), six(b6, 5000), six(a6, 443), six(a6, 53)} {
		var c net.PacketConn
		w.must(w.home.Do(func() (err error) { c, err = net.ListenPacket("udp", at); return err }))
		w.t.Cleanup(func() { c.Close() })
		go echo(c)
	}
}

func six(address string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(address), port).String()
}

func echo(c net.PacketConn) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		c.WriteTo(buffer[:n], from)
	}
}

const patience = time.Second

// udp sends text and says whether it comes back.
func (w *town) udp(to string, text string) error {
	var c net.Conn
	if err := w.laptop.Do(func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte(text))
	_, err := c.Read(make([]byte, 2048))
	return err
}

func (w *town) tcp(to string) (net.Conn, error) {
	var c net.Conn
	err := w.laptop.Do(func() (err error) {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial("tcp", to)
		return err
	})
	return c, err
}

// echoed sends n bytes on c and reads them back.
func echoed(c net.Conn, n int) error {
	c.SetDeadline(time.Now().Add(2 * patience))
	var wg sync.WaitGroup
	wg.Go(func() { c.Write(make([]byte, n)) })
	_, err := io.CopyN(io.Discard, c, int64(n))
	wg.Wait()
	return err
}

func (w *town) plain(to string) error {
	c, err := w.tcp(to)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoed(c, 10)
}

// split writes in small pieces, each a segment of its own.
type split struct{ net.Conn }

func (s split) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var k int
		k, err = s.Conn.Write(p[:min(len(p), 40)])
		n, p = n+k, p[k:]
	}
	return n, err
}

func (w *town) tls(to string, cfg *tls.Config, splits bool) error {
	c, err := w.tcp(to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * patience))
	if splits {
		c = split{c}
	}
	t := tls.Client(c, cfg)
	if err := t.Handshake(); err != nil {
		return err
	}
	return echoed(t, 10)
}

func TestRules(t *testing.T) {
	w := newTown(t)
	ca, err := webca.Open(t.TempDir(), time.Now)
	w.must(err)
	w.serve(ca)
	hello := func(name string, suites ...uint16) *tls.Config {
		return &tls.Config{ServerName: name, InsecureSkipVerify: true, CipherSuites: suites}
	}
	big := func(to string) error {
		c, err := w.tcp(to)
		if err != nil {
			return err
		}
		defer c.Close()
		return echoed(c, 64<<10)
	}
	const question = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02hs\x03lab\x04test\x00\x00\x01\x00\x01"
	other := strings.Replace(question, "\x02hs", "\x02x1", 1)
	type probe func() error
	udp := func(to, text string) probe { return func() error { return w.udp(to, text) } }
	tcp := func(to string) probe { return func() error { return w.plain(to) } }
	tlsTo := func(to string, c *tls.Config, splits bool) probe {
		return func() error { return w.tls(to, c, splits) }
	}
	onA, netA, netB := netip.MustParsePrefix(a+"/32"), netip.MustParsePrefix("2001:db8:3::/64"), netip.MustParsePrefix("2001:db8:4::/64")
	both := []netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr(a6)}
	for name, c := range map[string]struct {
		rules       []Rule
		hit, missed probe
		reset       bool
		alsoHit     probe
	}{
		"UDP":             {rules: []Rule{UDP()}, hit: udp(a+":5000", "x"), missed: tcp(a + ":80")},
		"a host":          {rules: []Rule{Host("a", netip.MustParseAddr(a))}, hit: tcp(a + ":80"), alsoHit: udp(a+":5000", "x"), missed: tcp(b + ":80")},
		"a host, reset":   {rules: []Rule{Reset(Host("a", netip.MustParseAddr(a)))}, hit: tcp(a + ":80"), reset: true, alsoHit: udp(a+":5000", "x"), missed: tcp(b + ":80")},
		"networks":        {rules: []Rule{Hosts("net", "home", netip.MustParsePrefix("10.88.3.0/24"))}, hit: tcp(a + ":80"), missed: tcp(b + ":80")},
		"an allow-list":   {rules: []Rule{Only("list", "only b", netip.MustParsePrefix("10.88.4.0/24"), netip.MustParsePrefix("10.88.9.0/24"))}, hit: tcp(a + ":80"), missed: tcp(b + ":80")},
		"a question":      {rules: []Rule{Question("dns", "hs.lab.test")}, hit: udp(a+":53", question), missed: udp(a+":53", other)},
		"WireGuard":       {rules: []Rule{WireGuard("wg")}, hit: udp(a+":5000", "\x01\x00\x00\x00and so on"), alsoHit: udp(a+":5000", "TS💬and so on"), missed: udp(a+":5000", "\x01\x00\x00\x01")},
		"QUIC":            {rules: []Rule{QUIC("quic")}, hit: udp(a+":443", "x"), missed: udp(a+":5000", "x")},
		"frozen":          {rules: []Rule{Frozen("frozen", 16<<10, onA)}, hit: func() error { return big(a + ":80") }, missed: func() error { return errors.Join(big(b+":80"), w.plain(a+":80")) }},
		"no Internet":     {rules: []Rule{Offline("offline")}, hit: tcp(a + ":80"), missed: tcp("10.88.1.1:80")},
		"a server name":   {rules: []Rule{ServerName("sni", "hs.lab.test")}, hit: tlsTo(a+":443", hello("hs.lab.test"), false), reset: true, missed: tlsTo(a+":443", hello("x.lab.test"), false)},
		"a name in parts": {rules: []Rule{ServerName("sni", "hs.lab.test")}, hit: tlsTo(b+":443", hello("hs.lab.test"), true), reset: true, missed: tlsTo(a+":443", hello("x.lab.test"), true)},
		"Go's TLS": {rules: []Rule{GoTLS("go")}, hit: tlsTo(a+":443", hello("x.lab.test"), false), reset: true,
			missed: func() error {
				cfg := hello("x.lab.test", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
				cfg.MaxVersion = tls.VersionTLS12
				return w.tls(a+":443", cfg, false)
			}},
		"UDP, IPv6":           {rules: []Rule{UDP()}, hit: udp(six(a6, 5000), "x"), missed: tcp(six(a6, 80))},
		"a host, IPv6":        {rules: []Rule{Host("a", both...)}, hit: tcp(six(a6, 80)), alsoHit: tcp(a + ":80"), missed: tcp(six(b6, 80))},
		"a host, reset, IPv6": {rules: []Rule{Reset(Host("a", both...))}, hit: tcp(six(a6, 80)), reset: true, alsoHit: udp(six(a6, 5000), "x"), missed: tcp(six(b6, 80))},
		"networks, IPv6":      {rules: []Rule{Hosts("net", "home", netA)}, hit: tcp(six(a6, 80)), missed: tcp(six(b6, 80))},
		"an allow-list of both": {rules: []Rule{Only("list", "only b", netip.MustParsePrefix("10.88.4.0/24"), netip.MustParsePrefix("2001:db8:1::/64"), netB)}, hit: tcp(six(a6, 80)),
			alsoHit: tcp(a + ":80"), missed: func() error { return errors.Join(w.plain(six(b6, 80)), w.plain(b+":80")) }},
		"a list without IPv6": {rules: []Rule{Only("list", "only b", netip.MustParsePrefix("10.88.4.0/24"))}, hit: tcp(six(b6, 80)), missed: tcp(b + ":80")},
		"a question, IPv6":    {rules: []Rule{Question("dns", "hs.lab.test")}, hit: udp(six(a6, 53), question), missed: udp(six(a6, 53), other)},
		"WireGuard, IPv6":     {rules: []Rule{WireGuard("wg")}, hit: udp(six(a6, 5000), "\x01\x00\x00\x00and so on"), alsoHit: udp(six(a6, 5000), "TS💬and so on"), missed: udp(six(a6, 5000), "\x01\x00\x00\x01")},
		"QUIC, IPv6":          {rules: []Rule{QUIC("quic")}, hit: udp(six(a6, 443), "x"), missed: udp(six(a6, 5000), "x")},
		"frozen, IPv6":        {rules: []Rule{Frozen("frozen", 16<<10, netA)}, hit: func() error { return big(six(a6, 80)) }, missed: func() error { return errors.Join(big(six(b6, 80)), w.plain(six(a6, 80))) }},
		"a server name, IPv6": {rules: []Rule{ServerName("sni", "hs.lab.test")}, hit: tlsTo(six(a6, 443), hello("hs.lab.test"), true), reset: true, missed: tlsTo(six(a6, 443), hello("x.lab.test"), true)},
		"no Internet, IPv6":   {rules: []Rule{Offline("offline")}, hit: tcp(six(a6, 80)), missed: func() error { return nil }},
		"IPv4":                {rules: []Rule{Family4("ipv4")}, hit: tcp(a + ":80"), missed: tcp(six(a6, 80))},
		"IPv6":                {rules: []Rule{Family6("ipv6")}, hit: tcp(six(a6, 80)), missed: tcp(a + ":80")},
		"a portal":            {rules: Portal("portal", 8080), hit: tlsTo(a+":443", hello("hs.lab.test"), false), reset: true, alsoHit: udp(a+":5000", "x"), missed: func() error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			if name == "no Internet" {
				l, err := w.isp.Listen("tcp", "10.88.1.1:80")
				w.must(err)
				defer l.Close()
				go func() {
					if c, err := l.Accept(); err == nil {
						io.Copy(c, c)
						c.Close()
					}
				}()
			}
			w.must(w.censor.Block(c.rules...))
			defer w.censor.Clear()
			if err := c.missed(); err != nil {
				t.Errorf("what is not meant: %v", err)
			}
			for _, p := range []probe{c.hit, c.alsoHit} {
				if p == nil {
					continue
				}
				err := p()
				if err == nil {
					t.Error("what is meant passes")
				}
			}
			if err := c.hit(); c.reset != errors.Is(err, syscall.ECONNRESET) && c.reset != errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("what is meant: %v; want a reset: %t", err, c.reset)
			}
			hit := c.rules[len(c.rules)-1].Name
			if err := w.censor.Hit(hit); err != nil {
				t.Error(err)
			}
			if _, err := w.censor.Clear(); err != nil {
				t.Fatal(err)
			}
			if err := c.hit(); err != nil && name != "a portal" {
				t.Errorf("after it was lifted: %v", err)
			}
		})
	}
}

// TestDegrees holds the rules that act on some packets only.
func TestDegrees(t *testing.T) {
	w := newTown(t)
	ca, err := webca.Open(t.TempDir(), time.Now)
	w.must(err)
	w.serve(ca)
	var c net.Conn
	w.must(w.laptop.Do(func() (err error) { c, err = net.Dial("udp4", a+":5000"); return err }))
	defer c.Close()
	// burst sends n datagrams of so many bytes and counts what comes back.
	burst := func(n, size int) (back int) {
		text := bytes.Repeat([]byte("x"), size)
		for range n {
			c.Write(text)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		for back < n {
			if _, err := c.Read(text); err != nil {
				break
			}
			back++
		}
		return back
	}
	if n := burst(100, 100); n != 100 {
		t.Fatalf("without a rule %d of 100 come back", n)
	}
	t.Run("loss", func(t *testing.T) {
		w.must(w.censor.Block(Loss("loss", 30)))
		defer w.censor.Clear()
		// 0.7² is 49 %; three in a million are beyond 36 to 62 of 100 at 4.5 sigma.
		if n := burst(400, 100); n < 140 || n > 252 {
			t.Errorf("%d of 400 come back through 30 %% loss each way", n)
		}
	})
	t.Run("throttled", func(t *testing.T) {
		w.must(w.censor.Block(UDPAbove("slow", 100_000)))
		defer w.censor.Clear()
		if n := burst(400, 1000); n < 5 || n > 200 {
			t.Errorf("%d of 400 KB at once come back through 100 KB/s", n)
		}
		if err := w.censor.Hit("slow"); err != nil {
			t.Error(err)
		}
	})
	t.Run("jitter", func(t *testing.T) {
		w.must(w.censor.Block(Jitter("jitter", 100*time.Millisecond, 200*time.Millisecond)))
		defer w.censor.Clear()
		began := time.Now()
		if n := burst(20, 100); n != 20 {
			t.Errorf("%d of 20 come back", n)
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("there and back took %v, want at least 200ms", took)
		}
		if err := w.censor.Hit("jitter"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a lying resolver", func(t *testing.T) {
		var liar net.PacketConn
		w.must(w.isp.Do(func() (err error) { liar, err = net.ListenPacket("udp4", "10.88.1.1:5354"); return err }))
		defer liar.Close()
		got := make(chan string, 1)
		go func() {
			buffer := make([]byte, 512)
			if n, _, err := liar.ReadFrom(buffer); err == nil {
				got <- string(buffer[:n])
			}
		}()
		w.must(w.censor.Block(Resolver("lie", 5354)))
		defer w.censor.Clear()
		w.udp(a+":53", "question")
		select {
		case text := <-got:
			if text != "question" {
				t.Errorf("the liar got %q", text)
			}
		case <-time.After(patience):
			t.Error("the liar was not asked")
		}
		if err := w.censor.Hit("lie"); err != nil {
			t.Error(err)
		}
	})
}

func FuzzHello(f *testing.F) {
	for _, seed := range [][]byte{{22, 3, 1, 0, 4, 1, 0, 0, 0}, {0x16}, {23, 3, 3}} {
		f.Add(seed)
	}
	// Packets: a segment to port 443 by each family.
	segment := append([]byte{0x9c, 0x40, 1, 187, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 2, 0, 0, 0, 0, 0, 0}, 22, 3, 1)
	f.Add(append(append([]byte{0x45, 0, 0, size4 + 23, 0, 0, 0, 0, 64, protocolTCP}, make([]byte, size4-10)...), segment...))
	f.Add(append(append([]byte{0x60, 0, 0, 0, 0, 23, protocolTCP, 64}, make([]byte, size6-8)...), segment...))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, r := parseHello(data)
		if r != complete && h.serverName != "" && r == incomplete {
			t.Errorf("a name %q in half a hello", h.serverName)
		}
		// What was said of a beginning stands for the whole.
		for _, n := range []int{len(data) / 3, len(data) / 2} {
			if p, rp := parseHello(data[:n]); rp == complete && (r != complete || p.serverName != h.serverName) {
				t.Errorf("%d bytes: %v, all: %v", n, p, h)
			}
		}
		if _, s, _, ok := parseTCP(data); ok && len(s.data) > len(data)-size4-sizeTCP {
			t.Errorf("%d bytes of data in a packet of %d", len(s.data), len(data))
		}
	})
}

func TestParseTCP(t *testing.T) {
	segment := append([]byte{0x9c, 0x40, 1, 187, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 2, 0, 0, 0, 0, 0, 0}, "hello"...)
	six := append([]byte{0x60, 0, 0, 0, 0, byte(len(segment)), protocolTCP, 64}, make([]byte, size6-8)...)
	six[source6+15], six[destination6+15] = 1, 2
	f, s, up, ok := parseTCP(append(six, segment...))
	want := flow{netip.MustParseAddrPort("[::1]:40000"), netip.MustParseAddrPort("[::2]:443")}
	if !ok || !up || f != want || !s.syn || string(s.data) != "hello" {
		t.Errorf("%v %+v %t %t", f, s, up, ok)
	}
	if _, _, _, ok := parseTCP(six); ok {
		t.Error("a packet without its segment is read")
	}
}
