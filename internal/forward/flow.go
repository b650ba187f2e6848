package forward

import (
	"errors"
	"net"
)

// flow is a pair of connections that carry each other's bytes.
type flow struct {
	client, server *net.TCPConn
	// hello is what the client said before there was a server.
	hello []byte
	watch *watch
}

// splice copies both ways until both sides have ended or one has failed. The
// end of one direction is passed on and leaves the other open. A pipe of fixed
// size is the only buffer: a slow reader slows the writer.
func (f *flow) splice() error {
	errs := make(chan error, 2)
	one := func(dst, src *net.TCPConn, moved func(int), first []byte) {
		var err error
		if len(first) > 0 {
			moved(len(first))
			_, err = dst.Write(first)
		}
		if err == nil {
			err = move(dst, src, moved)
		}
		if err == nil {
			err = dst.CloseWrite()
		}
		if err != nil {
			f.reset()
		}
		errs <- err
	}
	hello := f.hello
	f.hello = nil // not kept for as long as the connection lasts
	go one(f.server, f.client, f.watch.toServer, hello)
	one(f.client, f.server, f.watch.toClient, nil)
	err := errors.Join(<-errs, <-errs)
	f.watch.stop()
	f.client.Close()
	f.server.Close()
	return err
}

// reset ends both connections with RST. It may be called at any time.
func (f *flow) reset() {
	abort(f.client)
	abort(f.server)
}

// abort ends a connection with RST, so that the other side knows at once.
func abort(c *net.TCPConn) {
	c.SetLinger(0) // fails only on a closed connection
	c.Close()
}
