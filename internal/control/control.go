// Package control asks the control server, before anything is changed on the
// laptop, whether it can be reached, whether its certificate holds, and how far
// the laptop's clock is off.
//
// A wrong clock makes every certificate look wrong, and the person is told
// about certificates when the cure is the clock. So the certificate is checked
// twice: at a moment within its validity, which says whether this is the right
// server; and now, which says whether the clock lets us use it.
package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/veilor/veilor-os/internal/advice"
)

const (
	// limit bounds the whole exchange: name, TCP, TLS, one request.
	limit = 10 * time.Second
	// dateStep is the resolution of HTTP's Date; half of it is added, so that
	// the error is half a second either way (RFC 9110 §5.6.7).
	dateStep = time.Second
)

// ErrClock says that the laptop's clock is why the certificate does not hold.
var ErrClock = errors.New("clock is wrong")

// Result is what the control server told.
type Result struct {
	// Skew is how far the laptop's clock is ahead of the server's, to half a
	// second; negative if it is behind. Valid only if HasSkew.
	Skew    time.Duration
	HasSkew bool
	// Took is the time to connect and to get the answer.
	Took time.Duration
}

// Checker asks control servers.
type Checker struct {
	// Now is the laptop's clock; nil means time.Now.
	Now func() time.Time
	// Roots are the trusted authorities; nil means the system's.
	Roots *x509.CertPool
	// Dial connects; nil means net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Check asks the server at base ("https://hs.example.org"). Its errors are
// advice.Error where a person can help.
func (c Checker) Check(ctx context.Context, base string) (Result, error) {
	now := c.Now
	if now == nil {
		now = time.Now
	}
	u, err := url.Parse(base)
	if err != nil {
		return Result{}, fmt.Errorf("reading the control server's address: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var leaf *x509.Certificate
	transport := &http.Transport{
		DialContext:       c.Dial,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			// VerifyConnection does the library's verification, at another time.
			InsecureSkipVerify: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				leaf = cs.PeerCertificates[0]
				opts := x509.VerifyOptions{
					DNSName: u.Hostname(), Roots: c.Roots, Intermediates: x509.NewCertPool(),
					CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2),
				}
				for _, ic := range cs.PeerCertificates[1:] {
					opts.Intermediates.AddCert(ic)
				}
				_, err := leaf.Verify(opts)
				return err
			},
		},
	}
	// /health answers 200 without secrets (hscontrol/app.go).
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("health").String(), nil)
	if err != nil {
		return Result{}, fmt.Errorf("reading the control server's address: %w", err)
	}
	began := now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Result{}, explain(u.Hostname(), err)
	}
	defer resp.Body.Close()
	ended := now()
	r := Result{Took: ended.Sub(began)}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		r.Skew, r.HasSkew = began.Add(r.Took/2).Sub(date.Add(dateStep/2)), true
	}
	if ended.Before(leaf.NotBefore) || ended.After(leaf.NotAfter) {
		return r, clockError(r, leaf, ended)
	}
	if resp.StatusCode != http.StatusOK {
		return r, &advice.Error{
			Text: fmt.Sprintf("the control server %s answers %q: it is there, but not well", u.Hostname(), resp.Status),
			Todo: "Try again in a few minutes; then tell the operator this line.",
		}
	}
	return r, nil
}

// clockError says that the certificate is good, but not at the laptop's time.
func clockError(r Result, leaf *x509.Certificate, now time.Time) error {
	off := ""
	switch {
	case r.HasSkew && r.Skew < 0:
		off = days(-r.Skew) + " behind"
	case r.HasSkew && r.Skew > dateStep:
		off = days(r.Skew) + " ahead"
	}
	if off == "" || r.Skew.Abs() < time.Minute {
		return &advice.Error{
			Text: fmt.Sprintf("the control server's certificate is valid from %s to %s, and it is %s", day(leaf.NotBefore), day(leaf.NotAfter), day(now)),
			Todo: "Your clock agrees with the server's, so the operator must renew the certificate. Tell the operator this line.",
		}
	}
	return &advice.Error{
		Text:  fmt.Sprintf("your clock is %s; the control server's certificate is not valid at that time", off),
		Todo:  "Set it with: timedatectl set-ntp true     then: run0 veilor join",
		Cause: ErrClock,
	}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02") }

// days says d in the unit that fits.
func days(d time.Duration) string {
	h := d.Hours()
	switch {
	case h >= 48:
		return fmt.Sprintf("%.0f days", math.Floor(h/24))
	case h >= 2:
		return fmt.Sprintf("%.0f hours", h)
	}
	return fmt.Sprintf("%.0f minutes", d.Minutes())
}

// explain says what err means for a person.
func explain(host string, err error) error {
	var (
		dns     *net.DNSError
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
	)
	e := &advice.Error{Cause: err}
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		e.Text = fmt.Sprintf("the name %s of the control server is not found", host)
		e.Todo = "The network's DNS may be hiding it, or there is no network: `nmcli` shows. Try another network, such as a phone's."
	case errors.As(err, &dns):
		e.Text = fmt.Sprintf("no DNS server answers, so %s cannot be looked up", host)
		e.Todo = "Is there a network? `nmcli` shows. If a portal page wants something, open it first."
	case errors.As(err, &name), errors.As(err, &unknown), errors.As(err, &invalid):
		e.Text = fmt.Sprintf("whoever answers for %s is not the control server: %v", host, err)
		e.Todo = "A portal page or someone on this network stands in between. Nothing was sent. Try another network."
	default:
		e.Text = fmt.Sprintf("the control server %s does not answer: %s", host, reason(err))
		e.Todo = "This network may be blocking it. Joining needs it once: try another network, such as a phone's."
	}
	return e
}

// reason is err without the addresses around it.
func reason(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("nothing within %v", limit)
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}
