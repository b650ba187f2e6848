package forward

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// BenchmarkForwardThroughput downloads over the forwarder and directly, in turn,
// and reports both and their ratio.
func BenchmarkForwardThroughput(b *testing.B) {
	const size = 512 << 20
	port := freePort(b)
	chunk := make([]byte, 1<<20)
	serve(b, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) {
		for sent := 0; sent < size; sent += len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	r1, _ := routes()
	_, via := start(b, port, r1)
	direct := netip.AddrPortFrom(tailnetAddr, port).String()
	buf := make([]byte, 256<<10)
	download := func(addr string) time.Duration {
		began := time.Now()
		c := dial(b, addr)
		defer c.Close()
		c.SetDeadline(time.Time{})
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf)
		if err != nil || n != size {
			b.Fatalf("got %d bytes: %v", n, err)
		}
		return time.Since(began)
	}
	download(via) // warm up
	var d, f time.Duration
	for b.Loop() {
		d += download(direct)
		f += download(via)
	}
	mb := float64(b.N) * size / 1e6
	b.ReportMetric(mb/d.Seconds(), "direct-MB/s")
	b.ReportMetric(mb/f.Seconds(), "forward-MB/s")
	b.ReportMetric(d.Seconds()/f.Seconds(), "ratio")
}

// BenchmarkForwardSetup measures from connect to the first byte of the answer
// over the forwarder and directly, in turn, and reports the medians.
func BenchmarkForwardSetup(b *testing.B) {
	port := freePort(b)
	serve(b, netip.AddrPortFrom(tailnetAddr, port), func(c *net.TCPConn) { c.Write([]byte("hello")) })
	r1, _ := routes()
	_, via := start(b, port, r1)
	direct := netip.AddrPortFrom(tailnetAddr, port).String()
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
	var d, f []time.Duration
	for b.Loop() {
		d = append(d, once(direct))
		f = append(f, once(via))
	}
	slices.Sort(d)
	slices.Sort(f)
	md, mf := d[len(d)/2], f[len(f)/2]
	b.ReportMetric(float64(md.Microseconds()), "direct-µs")
	b.ReportMetric(float64(mf.Microseconds()), "forward-µs")
	b.ReportMetric(float64((mf - md).Microseconds()), "added-µs")
}
