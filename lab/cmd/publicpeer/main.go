// Command publicpeer is a public Yggdrasil peer: the upstream library as it is,
// without a tunnel of its own, carrying other people's traffic. It shares no
// code with veilor-ygg, so that the lab proves that veilor-ygg speaks with
// upstream.
//
// It listens for WebSocket peerings in the clear; put TLS in front of it.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/gologme/log"
	"github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
)

func main() {
	key := flag.String("key", "", "private key `file` (PEM, PKCS #8 Ed25519)")
	listen := flag.String("listen", "ws://127.0.0.1:8081", "where to take peerings")
	peer := flag.String("peer", "", "another to peer with: `wss://ADDRESS:PORT?key=HEX`")
	flag.Parse()
	if *key == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "publicpeer: --key FILE is missing, or there are arguments; write publicpeer --key FILE [--listen ws://ADDRESS:PORT] [--peer wss://ADDRESS:PORT]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *key, *listen, *peer); err != nil {
		fmt.Fprintln(os.Stderr, "publicpeer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keyFile, listen, peer string) error {
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("reading the key: %w", err)
	}
	cfg := config.GenerateConfig()
	if err := cfg.UnmarshalPEMPrivateKey(pem); err != nil {
		return fmt.Errorf("reading the key %s: %w", keyFile, err)
	}
	if err := cfg.GenerateSelfSignedCertificate(); err != nil {
		return fmt.Errorf("making the node's certificate: %w", err)
	}
	logger := log.New(os.Stderr, "", log.Ltime|log.Lmicroseconds)
	for _, level := range []string{"error", "warn", "info"} {
		logger.EnableLevel(level)
	}
	options := []core.SetupOption{
		core.ListenAddress(listen), core.NodeInfoPrivacy(true),
		// A peering must not run through the overlay that it carries.
		core.PeerFilter(func(ip net.IP) bool { return ip[0]&0xfe != 0x02 || ip.To4() != nil }),
	}
	if peer != "" {
		options = append(options, core.Peer{URI: peer})
	}
	node, err := core.New(cfg.Certificate, logger, options...)
	if err != nil {
		return fmt.Errorf("starting the node: %w", err)
	}
	<-ctx.Done()
	node.Stop()
	return nil
}
