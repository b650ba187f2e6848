package floors

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	// downloadSize is minutes at the pace below: no block finds it at its end.
	downloadSize = 1 << 30
	// piece is read every pieceEvery, 4 MB/s, which leaves two cores time for the
	// rest. It is the receive buffer, too: what lies there when the layer falls is
	// read before the error.
	piece      = 64 << 10
	pieceEvery = 16 * time.Millisecond
	// underWay is read before a block: the connection is past its slow start.
	underWay = 1 << 20
)

// download is of the product and under way. It is over with the first error.
type download struct {
	cancel context.CancelFunc
	limit  time.Duration // patience
	// ended is closed when it is over; then these are set: when its last byte and
	// when its error came.
	ended      chan struct{}
	last, told time.Time
	err        error
}

// download begins one and returns when it is under way.
func (t *Town) download(ctx context.Context) (*download, error) {
	service := t.Site.Services[0]
	h := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: t.Authority},
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c, err := t.World.Guest.DialContext(ctx, network, netip.AddrPortFrom(service.Loopback, 443).String())
			if tcp, ok := c.(*net.TCPConn); ok {
				err = tcp.SetReadBuffer(piece)
			}
			return c, err
		},
	}}
	ctx, cancel := context.WithCancel(ctx)
	body, err := fetch(ctx, h, fmt.Sprintf("https://%s/bytes/%d", service.Name, downloadSize))
	if err != nil {
		cancel()
		return nil, err
	}
	begun := time.AfterFunc(patience, cancel)
	_, err = io.CopyN(io.Discard, body, underWay)
	if !begun.Stop() || err != nil {
		cancel()
		return nil, fmt.Errorf("reading its first %d bytes: %w", underWay, errors.Join(err, ctx.Err()))
	}
	return watchDownload(body, cancel, patience), nil
}

// fetch returns the body of an answer that has begun to come.
func fetch(ctx context.Context, h *http.Client, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.Body, nil
}

// watchDownload reads body, which must end with an error when cancel is called.
func watchDownload(body io.ReadCloser, cancel context.CancelFunc, limit time.Duration) *download {
	d := &download{cancel: cancel, limit: limit, ended: make(chan struct{}), last: time.Now()}
	go d.read(body)
	return d
}

func (d *download) read(body io.ReadCloser) {
	defer close(d.ended)
	defer body.Close()
	tick := time.NewTicker(pieceEvery)
	defer tick.Stop()
	for buf := make([]byte, piece); ; <-tick.C {
		for got := 0; got < piece; {
			n, err := body.Read(buf)
			if n > 0 {
				d.last = time.Now()
				got += n
			}
			if err != nil {
				d.told, d.err = time.Now(), err
				return
			}
		}
	}
}

// stalled waits until the download ends, which a block at from should have it do,
// and returns how many seconds after the block that was, or after its last byte if
// that is longer: what comes after the block has lain in a buffer. One that is told
// nothing is given up, late.
func (d *download) stalled(from time.Time) (float64, error) {
	late := time.NewTimer(d.limit)
	defer late.Stop()
	given := false
	select {
	case <-d.ended:
	case <-late.C:
		given = true
		d.cancel()
		<-d.ended
	}
	silent, since := d.told.Sub(d.last), d.told.Sub(from)
	switch {
	case errors.Is(d.err, io.EOF):
		return 0, errors.New("the download was over before it could stall")
	case since < 0:
		return 0, fmt.Errorf("the download ended before the block: %w", d.err)
	case given && silent < d.limit/2:
		return 0, errors.New("the download went on through the block, so it was not on the layer that is blocked")
	}
	return max(silent, since).Seconds(), nil
}
