package floors

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/lab/laptop"
	"github.com/veilor/veilor-os/lab/world"
)

// Town is a world with a laptop in it.
type Town struct {
	World  *world.World
	Laptop *laptop.Laptop
	Site   *site.Site
	// Authority trusts the services' certificates.
	Authority *x509.CertPool

	neighbours []*laptop.Laptop
	admin      *laptop.Laptop

	liar io.Closer
	kept *keptConn
	sent uint64 // packets that had left the café before
}

// knockLimit is how long the lab's own tries take at most.
const knockLimit = 2 * time.Second

// question asks the ISP's resolver for a name from the laptop, and wants a lie
// or no answer at all.
func (t *Town) question(name string, lied bool) error {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 1, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
	}}
	text, err := m.Pack()
	if err != nil {
		return err
	}
	c, err := t.World.Guest.DialContext(context.Background(), "udp4", "10.88.1.1:53")
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(knockLimit))
	c.Write(text)
	n, err := c.Read(text[:cap(text)])
	if !lied {
		if err == nil {
			return fmt.Errorf("the resolver answers for %s", name)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("the lying resolver does not answer: %w", err)
	}
	if err := m.Unpack(text[:n]); err != nil || len(m.Answers) != 1 || *m.Answers[0].Body.(*dnsmessage.AResource) != (dnsmessage.AResource{A: world.Nobody.As4()}) {
		return fmt.Errorf("the resolver does not lie: %v, %v", m.Answers, err)
	}
	return nil
}

// handshake tries TLS as Go does, and wants it to fail.
func (t *Town) handshake(ctx context.Context, name string, at netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	c, err := t.World.Guest.DialContext(ctx, "tcp4", netip.AddrPortFrom(at, 443).String())
	if err != nil {
		return nil // blocked even earlier
	}
	defer c.Close()
	if tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}).HandshakeContext(ctx) == nil {
		return fmt.Errorf("a handshake with %s passes", name)
	}
	return nil
}

// unreached wants that no TCP connection to address comes about.
func (t *Town) unreached(ctx context.Context, address string) error {
	if t.reached(ctx, address) == nil {
		return fmt.Errorf("%s answers though it is blocked", address)
	}
	return nil
}

// reached wants one.
func (t *Town) reached(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	c, err := t.World.Guest.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

func (t *Town) datagrams(to netip.AddrPort, n, size int) error {
	c, err := t.World.Guest.DialContext(context.Background(), "udp4", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	for range n {
		// Refused means that one before was sent, and answered.
		if _, err := c.Write(make([]byte, size)); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// service is the one that a condition is about.
func (t *Town) service(c Condition) (site.Service, error) {
	for _, v := range t.Site.Services {
		if c.Service == "" || v.Name == c.Service {
			return v, nil
		}
	}
	return site.Service{}, fmt.Errorf("the site has no service %s", c.Service)
}

// layer is what `veilor status` says that the service goes over.
func (t *Town) layer(service site.Service) (string, error) {
	out, err := t.Laptop.Veilor("status", "--json")
	var s struct {
		Services []struct{ Name, Layer string }
	}
	// It also says with its exit code that a laptop in a lab is not as it should be.
	if jsonErr := json.Unmarshal([]byte(out), &s); jsonErr != nil {
		return "", fmt.Errorf("reading veilor status: %w, %w", err, jsonErr)
	}
	for _, v := range s.Services {
		if v.Name == service.Name {
			return v.Layer, nil
		}
	}
	return "", fmt.Errorf("veilor status does not know %s: %w", service.Name, err)
}

// direct waits until the laptop's tailscaled reaches the service's host past any
// relay. Somebody has to use the service meanwhile.
func (t *Town) direct(ctx context.Context, service site.Service) error {
	ctx, cancel := context.WithTimeoutCause(ctx, directLimit, fmt.Errorf("the tailnet goes through the relay to %s for longer than %v", service.Name, directLimit))
	defer cancel()
	at, _ := t.World.AddressesOf(service)
	tailscaled := tailnet.New(t.Laptop.Node.Socket)
	for {
		state, err := tailscaled.State(ctx)
		if err != nil {
			return err
		}
		if state.Path(at) == "direct" {
			return nil
		}
		if err := pause(ctx, beat); err != nil {
			return err
		}
	}
}

// keptConn is a connection of the laptop's with the control server, past every
// layer.
type keptConn struct {
	*tls.Conn
	in *bufio.Reader
}

// keep makes one, and asks once.
func (t *Town) keep(ctx context.Context) (*keptConn, error) {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	raw, err := t.World.Guest.DialContext(ctx, "tcp4", netip.AddrPortFrom(world.Control, 443).String())
	if err != nil {
		return nil, err
	}
	// Who it is does not matter here.
	c := tls.Client(raw, &tls.Config{ServerName: t.Site.ControlHost(), InsecureSkipVerify: true})
	k := &keptConn{c, bufio.NewReader(c)}
	if err := k.ask(); err != nil {
		c.Close()
		return nil, err
	}
	return k, nil
}

// ask asks the control server whether it is well.
func (k *keptConn) ask() error {
	k.SetDeadline(time.Now().Add(knockLimit))
	if _, err := fmt.Fprintf(k, "GET /health HTTP/1.1\r\nHost: %s\r\n\r\n", k.ConnectionState().ServerName); err != nil {
		return err
	}
	resp, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
