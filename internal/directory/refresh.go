package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

const (
	// fetchLimit is how long one file may take: 64 KiB at 3 kB/s, which is less
	// than what a throttled connection still gives.
	fetchLimit = 25 * time.Second
	// refreshEvery is how often the timestamp, 400 bytes, is asked for. An edge
	// is moved within the hour; so everybody must ask twice in it.
	refreshEvery = 25 * time.Minute
	// retryFirst and retryMost are the waits after a failure, doubling.
	retryFirst = 30 * time.Second
	retryMost  = refreshEvery
)

// HTTP is the repository below base, a URL, through client, which knows the
// layers. Redirects are not followed: a repository needs none, and a portal's
// would be.
func HTTP(ctx context.Context, client *http.Client, base *url.URL) Source {
	c := *client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return func(name string, limit int64) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, fetchLimit)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(name).String(), nil)
		if err != nil {
			return nil, err
		}
		res, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		switch res.StatusCode {
		case http.StatusOK:
		case http.StatusNotFound, http.StatusGone:
			return nil, fmt.Errorf("%s: %w", req.URL, fs.ErrNotExist)
		default:
			return nil, fmt.Errorf("%s: the server says %s", req.URL, res.Status)
		}
		data, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
		if err != nil {
			return nil, err
		}
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("%s: %w: more than %d bytes", req.URL, ErrTooLarge, limit)
		}
		return data, nil
	}
}

// Refresher keeps a laptop's directory new.
type Refresher struct {
	Store Store
	// Client reaches Base over whatever layer is up; Base is the repository.
	Client *http.Client
	Base   *url.URL
	// Now is the clock.
	Now func() time.Time
	// After is time.After but in tests.
	After func(time.Duration) <-chan time.Time
	// Changed is called with each newer directory. Failed is called with what
	// was refused or could not be had.
	Changed func(Directory)
	Failed  func(error)
}

// Run asks until ctx ends. kick says that what failed may succeed now, as after a
// layer came up.
func (r *Refresher) Run(ctx context.Context, kick <-chan struct{}) {
	wait := retryFirst
	for {
		d, err := r.Store.Take(HTTP(ctx, r.Client, r.Base), r.Now())
		next := refreshEvery
		var early <-chan struct{} // only for what failed: a flapping layer is no reason to ask
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait = retryFirst
			r.Changed(d)
		case errors.Is(err, ErrCurrent):
			wait = retryFirst
		default:
			r.Failed(err)
			next, wait, early = wait, min(2*wait, retryMost), kick
		}
		// Not all laptops at once, and not at an hour that tells a laptop.
		next += time.Duration(rand.Int64N(int64(next)/4 + 1))
		select {
		case <-ctx.Done():
			return
		case <-early:
		case <-r.After(next):
		}
	}
}
