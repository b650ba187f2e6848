package headscale

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/veilor/veilor-os/lab/namespace"
)

// transport connects every request to the address to, from inside ns, and asks
// no DNS.
func transport(ns *namespace.Namespace, roots *x509.CertPool, to string) *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return ns.DialContext(ctx, network, to)
		},
	}
}

func rootPool(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the web root: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("reading the web root: %s holds no certificate", file)
	}
	return pool, nil
}
