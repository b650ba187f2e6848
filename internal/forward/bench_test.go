package forward

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/mesh"
)

// BenchmarkForwardThroughput downloads over the forwarder and directly, in turn,
// and reports both and their ratio. Here the direct way is no layer: two sockets
// of one machine, and so nothing but processor time.
func BenchmarkForwardThroughput(b *testing.B) {
	r1, _ := routes()
	throughput(b, r1, 128<<20, nil)
}

// BenchmarkForwardThroughputTUN is the same over a layer as an overlay is: each
// packet goes through a process that encrypts it.
func BenchmarkForwardThroughputTUN(b *testing.B) {
	r, in := tunnel(b, 0)
	throughput(b, r, 16<<20, in)
}

// BenchmarkForwardThroughputLink is the same over a layer that is as fast as its
// network lets it be, and not as the processor does: 100 Mbit/s.
func BenchmarkForwardThroughputLink(b *testing.B) {
	r, in := tunnel(b, 100e6/8)
	throughput(b, r, 4<<20, in)
}

// throughput downloads size bytes from the host of a route. in runs a function
// where the host is; nil means here.
func throughput(b *testing.B, r Route, size int, in func(func())) {
	if in == nil {
		in = func(f func()) { f() }
	}
	port := freePort(b)
	chunk := make([]byte, 1<<20)
	in(func() {
		serve(b, netip.AddrPortFrom(r.Addr, port), func(c *net.TCPConn) {
			for sent := 0; sent < size; sent += len(chunk) {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		})
	})
	_, via := start(b, port, r)
	direct := netip.AddrPortFrom(r.Addr, port).String()
	buf := make([]byte, 256<<10)
	download := func(addr string) time.Duration {
		began := time.Now()
		c := dial(b, addr)
		defer c.Close()
		c.SetDeadline(time.Time{})
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf)
		if err != nil || n != int64(size) {
			b.Fatalf("got %d bytes: %v", n, err)
		}
		return time.Since(began)
	}
	download(via) // warm up
	var (
		d, f   []time.Duration
		ratios []float64
	)
	for b.Loop() {
		var one, other time.Duration
		if len(d)%2 == 0 { // neither is always first
			one, other = download(direct), download(via)
		} else {
			other = download(via)
			one = download(direct)
		}
		d, f, ratios = append(d, one), append(f, other), append(ratios, one.Seconds()/other.Seconds())
	}
	mb := float64(size) / 1e6
	b.ReportMetric(mb/median(d).Seconds(), "direct-MB/s")
	b.ReportMetric(mb/median(f).Seconds(), "forward-MB/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op") // which go test then leaves out
}

func median[T time.Duration | float64](all []T) T {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

// BenchmarkForwardSetup measures from connect to the first byte of the answer:
// directly, over a relay that does nothing but accept, dial and copy, and over
// the forwarder, in turn. What the relay adds is a second handshake and four
// wakes of a thread; no program in between does without.
func BenchmarkForwardSetup(b *testing.B) {
	port := freePort(b)
	serve(b, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) { c.Write([]byte("hello")) })
	r1, _ := routes()
	_, via := start(b, port, r1)
	direct := netip.AddrPortFrom(tailnetAddr, port).String()
	plain := relayTo(b, port, direct)
	once := func(addr string) time.Duration {
		began := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 8)); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	var d, p, f []time.Duration
	for b.Loop() {
		d = append(d, once(direct))
		p = append(p, once(plain))
		f = append(f, once(via))
	}
	reportMedians(b, d, p, f)
}

// BenchmarkForwardEcho measures a question and its answer on an open connection
// over a TUN: directly, over such a relay and over the forwarder, in turn. What
// is added is the latency of every byte that goes through.
func BenchmarkForwardEcho(b *testing.B) {
	r, in := tunnel(b, 0)
	port := freePort(b)
	in(func() { serve(b, netip.AddrPortFrom(r.Addr, port), echo) })
	_, via := start(b, port, r)
	host := netip.AddrPortFrom(r.Addr, port).String()
	direct, plain, forwarded := dial(b, host), dial(b, relayTo(b, port, host)), dial(b, via)
	once := func(c *net.TCPConn) time.Duration {
		c.SetDeadline(time.Time{})
		began := time.Now()
		if _, err := c.Write([]byte("?")); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	var d, p, f []time.Duration
	for b.Loop() {
		d = append(d, once(direct))
		p = append(p, once(plain))
		f = append(f, once(forwarded))
	}
	reportMedians(b, d, p, f)
}

// relayTo runs the least that a relay can be, and returns its address.
func relayTo(b *testing.B, port uint16, to string) string {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.83.0.2"), port)
	serve(b, at, func(c *net.TCPConn) {
		onward, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer onward.Close()
		go func() {
			io.Copy(onward, c)
			onward.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, onward)
	})
	return at.String()
}

// reportMedians reports what a plain relay and the forwarder add to a direct
// connection.
func reportMedians(b *testing.B, direct, plain, forwarded []time.Duration) {
	d, p, f := median(direct), median(plain), median(forwarded)
	b.ReportMetric(micros(d), "direct-µs")
	b.ReportMetric(micros(p-d), "plain-added-µs")
	b.ReportMetric(micros(f-d), "added-µs")
	b.ReportMetric(0, "ns/op")
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// tunnel makes a layer: a TUN device here, another in a network namespace of its
// own, and between them what an overlay does to each packet: a read, sealing,
// opening, a write. The host is at the other end, and sends at rate (bytes a
// second, 0 for as fast as it can).
func tunnel(b *testing.B, rate uint64) (Route, func(func())) {
	if os.Geteuid() != 0 {
		b.Skip("NOT MEASURED without root: it needs a TUN device and a network namespace")
	}
	here, there := netip.MustParsePrefix("198.18.83.1/30"), netip.MustParsePrefix("198.18.83.2/30")
	const name = "veilorbench0"
	a := tun(b, name, here, 0)
	work := make(chan func())
	ready := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // it is in the namespace and dies with it
		if ns, err := netns.New(); err == nil {
			defer ns.Close()
			ready <- tun(b, name, there, rate)
		} else {
			b.Error(err)
			close(ready)
		}
		for f := range work {
			f()
		}
	}()
	z := <-ready
	if z == nil {
		b.FailNow()
	}
	go relay(a, z)
	go relay(z, a)
	b.Cleanup(func() {
		a.Close()
		z.Close()
		close(work)
	})
	return Route{mesh.Tailnet, name, there.Addr()}, func(f func()) {
		done := make(chan bool)
		work <- func() { f(); close(done) }
		<-done
	}
}

// tun makes a TUN device where the thread is, with an overlay's MTU.
func tun(b *testing.B, name string, addr netip.Prefix, rate uint64) *os.File {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		b.Error(err)
		return nil
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	var link netlink.Link
	if err == nil {
		link, err = netlink.LinkByName(name)
	}
	if err == nil {
		err = errors.Join(
			netlink.LinkSetMTU(link, 1280),
			netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}}),
			netlink.LinkSetUp(link),
		)
	}
	if err == nil && rate > 0 {
		err = netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Buffer: uint32(rate / 100), Limit: uint32(rate / 20),
		})
	}
	if err != nil {
		unix.Close(fd)
		b.Error(err)
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// relay carries packets from one device to the other, and encrypts each on the
// way as if there were a network between them.
func relay(from, to *os.File) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := make([]byte, aead.NonceSize())
	packet, sealed := make([]byte, 2048), make([]byte, 0, 4096)
	for n := uint64(1); ; n++ {
		size, err := from.Read(packet)
		if err != nil {
			return
		}
		binary.BigEndian.PutUint64(nonce, n)
		sealed = aead.Seal(sealed[:0], nonce, packet[:size], nil)
		plain, err := aead.Open(packet[:0], nonce, sealed, nil)
		if err != nil {
			return
		}
		to.Write(plain) // a device that is gone, or whose queue is full
	}
}

// BenchmarkForwardHello is what it takes to learn whom a client wants.
func BenchmarkForwardHello(b *testing.B) {
	hello := helloOf(b, "x.veilor")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := admit(bytes.NewReader(hello), "x.veilor"); err != nil {
			b.Fatal(err)
		}
	}
}
