package floors

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/world"
)

// body gives what it is given, and then nothing until it is cancelled or fails.
type body struct {
	io.Reader
	fail chan error
}

func (b *body) Read(p []byte) (int, error) {
	if n, err := b.Reader.Read(p); err == nil {
		return n, nil
	}
	return 0, <-b.fail
}

func (*body) Close() error { return nil }

// endless never stalls, but ends when it is cancelled.
type endless struct{ done chan error }

func (e endless) Read(p []byte) (int, error) {
	select {
	case err := <-e.done:
		return 0, err
	default:
		return len(p), nil
	}
}

func (endless) Close() error { return nil }

func TestDownloadStalls(t *testing.T) {
	const wait = 100 * time.Millisecond
	reset := errors.New("connection reset")
	start := func(limit time.Duration) (*download, chan error) {
		fail := make(chan error, 1)
		return watchDownload(&body{strings.NewReader("some bytes"), fail}, func() { fail <- errors.New("cancelled") }, limit), fail
	}

	d, fail := start(time.Minute)
	from := time.Now()
	time.AfterFunc(wait, func() { fail <- reset })
	if got, err := d.stalled(from); err != nil || got < wait.Seconds()*0.9 || got > 10 {
		t.Errorf("told after %v: %.3f s, %v", wait, got, err)
	}

	d, _ = start(wait)
	if got, err := d.stalled(time.Now()); err != nil || got < wait.Seconds()*0.9 {
		t.Errorf("told nothing in %v: %.3f s, %v", wait, got, err)
	}

	d, fail = start(time.Minute)
	fail <- reset
	<-d.ended
	if _, err := d.stalled(time.Now()); !errors.Is(err, reset) {
		t.Errorf("ended before the block: %v", err)
	}

	d, fail = start(time.Minute)
	from = time.Now()
	fail <- io.EOF
	if _, err := d.stalled(from); err == nil || !strings.Contains(err.Error(), "was over") {
		t.Errorf("downloaded to its end: %v", err)
	}

	done := make(chan error, 1)
	d = watchDownload(endless{done}, func() { done <- errors.New("cancelled") }, 10*wait)
	if _, err := d.stalled(time.Now()); err == nil || !strings.Contains(err.Error(), "went on") {
		t.Errorf("went on through the block: %v", err)
	}
}

// TestDownload has a real server fall silent, and then abort.
func TestDownload(t *testing.T) {
	gate.Root(t, "a download that stalls")
	ns, err := namespace.New("guest", namespace.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const wait = 300 * time.Millisecond
	block := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if want := "/bytes/1073741824"; r.URL.Path != want {
			t.Errorf("%s is asked for, not %s", r.URL.Path, want)
		}
		for {
			select {
			case <-block:
				time.Sleep(wait)
				panic(http.ErrAbortHandler)
			default:
				rw.Write(make([]byte, 4096))
			}
		}
	}))
	loopback := netip.MustParseAddr("127.83.0.1")
	if srv.Listener, err = ns.Listen("tcp", netip.AddrPortFrom(loopback, 443).String()); err != nil {
		t.Fatal(err)
	}
	srv.StartTLS()
	defer srv.Close()
	authority := x509.NewCertPool()
	authority.AddCert(srv.Certificate())
	town := &Town{World: &world.World{Guest: ns}, Authority: authority,
		Site: &site.Site{Services: []site.Service{{Name: "example.com", Loopback: loopback}}}} // as httptest's certificate has it
	d, err := town.download(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.cancel()
	from := time.Now()
	close(block)
	if got, err := d.stalled(from); err != nil || got < wait.Seconds() || got > 10 {
		t.Errorf("stalled for %.3f s, %v", got, err)
	}
}
