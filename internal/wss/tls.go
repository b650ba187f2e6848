package wss

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"

	utls "github.com/refraction-networking/utls"
)

// browser is whose ClientHello ours is: the newest that the library knows. Go's
// own is rare on the web and so an easy thing to block.
var browser = utls.HelloChrome_133

// handshake opens TLS on raw with the hello of a browser that opens a
// WebSocket. Only the hello is a browser's: certificates are verified as Go
// does.
func handshake(ctx context.Context, raw net.Conn, host string, roots *x509.CertPool, verify bool) (net.Conn, error) {
	spec, err := hello(host)
	if err != nil {
		return nil, err
	}
	c := utls.UClient(raw, &utls.Config{
		ServerName:         host,
		RootCAs:            roots,
		InsecureSkipVerify: !verify, // see Target.Verify
	}, utls.HelloCustom)
	if err := c.ApplyPreset(&spec); err != nil {
		return nil, fmt.Errorf("writing a ClientHello: %w", err)
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// hello is the browser's for a page, with what it leaves out for a WebSocket:
// that is HTTP/1.1, so h2 and its settings are not offered.
func hello(host string) (utls.ClientHelloSpec, error) {
	spec, err := utls.UTLSIdToSpec(browser)
	if err != nil {
		return spec, fmt.Errorf("choosing a ClientHello: %w", err)
	}
	_, err = netip.ParseAddr(host)
	literal := err == nil
	var kept []utls.TLSExtension
	for _, e := range spec.Extensions {
		switch e := e.(type) {
		case *utls.ALPNExtension:
			e.AlpnProtocols = []string{"http/1.1"}
		case *utls.ApplicationSettingsExtensionNew, *utls.ApplicationSettingsExtension:
			continue
		case *utls.SNIExtension:
			if literal {
				continue // a name only (RFC 6066 §3)
			}
		}
		kept = append(kept, e)
	}
	spec.Extensions = kept
	return spec, nil
}
