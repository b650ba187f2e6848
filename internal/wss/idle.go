package wss

import (
	"context"
	"time"
)

// Idle is how long nothing has been sent or received over the transport, to the
// millisecond; acknowledgements are nothing.
func (c *Conn) Idle() (time.Duration, error) {
	info, err := c.wire.tcpInfo()
	if err != nil {
		return 0, err
	}
	return time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond, nil
}

// Ping sends a WebSocket ping while the transport is bridged and waits for its
// pong, at most until ctx ends. As after every write, the watch then says
// whether the other side is still there.
func (c *Conn) Ping(ctx context.Context) error { return c.ws.Ping(ctx) }
