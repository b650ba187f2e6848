package control

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/advice"
)

// server is a control server whose clock is at date (zero: now).
func server(t *testing.T, date time.Time, status int) (Checker, string) {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if !date.IsZero() {
			w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	s.Config.ErrorLog = nil
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return Checker{Roots: roots, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
	}}, "https://example.com"
}

func TestCheck(t *testing.T) {
	c, url := server(t, time.Time{}, 200)
	r, err := c.Check(t.Context(), url)
	if err != nil || !r.HasSkew || r.Skew.Abs() > 2*time.Second {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestClock(t *testing.T) {
	// httptest's certificate is valid from 1970 to 2084.
	for _, tt := range []struct {
		now, server time.Time
		want, todo  string
	}{
		{time.Date(2085, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), "your clock is 21225 days ahead; the control server's certificate is not valid at that time", "timedatectl set-ntp true"},
		{time.Date(1969, 12, 30, 0, 0, 0, 0, time.UTC), time.Date(1971, 2, 4, 0, 0, 0, 0, time.UTC), "your clock is 401 days behind", "timedatectl"},
		{time.Date(2085, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(2085, 1, 2, 0, 0, 0, 0, time.UTC), "valid from 1970-01-01 to 2084-01-29, and it is 2085-01-02", "operator must renew"},
	} {
		c, url := server(t, tt.server, 200)
		c.Now = func() time.Time { return tt.now }
		_, err := c.Check(t.Context(), url)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(advice.Todo(err), tt.todo) {
			t.Errorf("%v at %v: %v / %s", tt.server, tt.now, err, advice.Todo(err))
		}
		if clock := strings.Contains(tt.todo, "timedatectl"); errors.Is(err, ErrClock) != clock {
			t.Errorf("%v at %v: blames the clock: %v", tt.server, tt.now, !clock)
		}
	}
	c, url := server(t, time.Now().Add(-3*time.Hour), 200)
	if r, err := c.Check(t.Context(), url); err != nil || r.Skew < 2*time.Hour {
		t.Errorf("a clock that is off within the validity: %+v, %v", r, err)
	}
}

func TestErrors(t *testing.T) {
	c, url := server(t, time.Time{}, 200)
	stranger := c
	stranger.Roots = x509.NewCertPool()
	refused := Checker{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:1")
	}}
	nowhere := Checker{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "hs.example", IsNotFound: true}
	}}
	silent := Checker{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "i/o timeout", Name: "hs.example", IsTimeout: true}
	}}
	ill, illURL := server(t, time.Time{}, 503)
	for _, tt := range []struct {
		c         Checker
		url, want string
	}{
		{stranger, url, "whoever answers for example.com is not the control server"},
		{c, "https://other.test", "whoever answers for other.test is not the control server"},
		{refused, url, "does not answer: connect: connection refused"},
		{nowhere, url, "the name example.com of the control server is not found"},
		{silent, url, "no DNS server answers"},
		{ill, illURL, `answers "503 Service Unavailable"`},
	} {
		_, err := tt.c.Check(t.Context(), tt.url)
		if err == nil || !strings.Contains(err.Error(), tt.want) || advice.Todo(err) == "" {
			t.Errorf("got %v (todo %q), want %q", err, advice.Todo(err), tt.want)
		}
	}
}
