package yggdrasil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/admin"

	"github.com/veilor/veilor-os/internal/nftguard"
)

// ErrNotRunning says that no node answers on the admin socket.
var ErrNotRunning = errors.New("veilor-ygg is not running")

// Status is what a running node says of itself.
type Status struct {
	// Key is the public key, 64 hex digits, and Address its IPv6 address.
	Key     string `json:"key"`
	Address string `json:"address"`
	// Peer is the name of the one dialled peer, empty if there is none.
	Peer string `json:"peer"`
	// Up says that the handshake with Peer is done.
	Up bool `json:"up"`
	// Latency to Peer; 0 if unknown.
	Latency time.Duration `json:"-"`
	// Inbound is the number of nodes that peer with this one, 0 unless it is an
	// edge.
	Inbound int `json:"inbound,omitempty"`
	// Filters says whether somebody changed the packet filters.
	Filters nftguard.Tally `json:"packet_filters"`
}

// Query asks the node on the admin socket at path. The error is ErrNotRunning
// if nobody answers there.
func Query(ctx context.Context, path string) (*Status, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("asking yggdrasil: %w (%s); see `systemctl status veilor-ygg`", ErrNotRunning, path)
	case err != nil:
		return nil, fmt.Errorf("asking yggdrasil: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(adminTimeout))
	dec := json.NewDecoder(io.LimitReader(conn, maxReply))
	ask := func(name string, into any) error {
		if err := json.NewEncoder(conn).Encode(admin.AdminSocketRequest{Name: name, Arguments: json.RawMessage("{}"), KeepAlive: true}); err != nil {
			return err
		}
		return readReply(dec, into)
	}
	var self selfReply
	var peers peersReply
	for _, q := range []struct {
		name string
		into any
	}{{"getSelf", &self}, {"getPeers", &peers}} {
		if err := ask(q.name, q.into); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, fmt.Errorf("asking yggdrasil for %s: %w", q.name, err)
		}
	}
	s, err := summarize(&self.GetSelfResponse, &peers)
	if err != nil {
		return nil, err
	}
	s.Filters = self.Filters
	return s, nil
}

// readReply reads one answer of the admin protocol.
func readReply(dec *json.Decoder, into any) error {
	var r admin.AdminSocketResponse
	if err := dec.Decode(&r); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if r.Status != "success" {
		return fmt.Errorf("the node refused: %q", shorten(r.Error))
	}
	if err := json.Unmarshal(r.Response, into); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

func summarize(self *admin.GetSelfResponse, peers *peersReply) (*Status, error) {
	if a, err := netip.ParseAddr(self.IPAddress); err != nil || !Overlay(a) {
		return nil, fmt.Errorf("asking yggdrasil: it says that its address is %q", shorten(self.IPAddress))
	}
	s := &Status{Key: self.PublicKey, Address: self.IPAddress}
	for _, p := range peers.Peers {
		switch {
		case p.Inbound && p.Up:
			s.Inbound++
		case p.Inbound:
		case !s.Up:
			s.Peer, s.Up, s.Latency = p.Name, p.Up, p.Latency
		}
	}
	return s, nil
}
