package forward

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

const (
	// helloLimit is how long a client of a TLS port may take to say whom it
	// wants. A browser says it with its first packet; one that opens a
	// connection ahead of need says it then, too.
	helloLimit = 10 * time.Second
	// maxHello bounds what is read until then. A hello with a post-quantum key
	// share has some 1.8 kB; a handshake message may have 16 MB on the wire
	// (RFC 8446 §4), of which crypto/tls takes 64 kB.
	maxHello = 64 << 10
	// usualHello holds most of them in one piece.
	usualHello = 2 << 10
)

// Why a client is refused. The words are in logs, in status and in JSON.
const (
	// WrongName: the client wants a name that is not this service. A page that
	// was rebound to the loopback address does that.
	WrongName = "wrong-name"
	// NoName: the client speaks TLS and names nobody.
	NoName = "no-name"
	// NotTLS: the client speaks something else to a TLS port.
	NotTLS = "not-tls"
	// Mute: the client said nothing for helloLimit.
	Mute = "mute"
	// Full: MaxConns or MaxWaiting is reached.
	Full = "full"
	// Quiet: the operator of the laptop wants silence.
	Quiet = "quiet"
)

// refused is an error of admit.
type refused struct {
	why string
	// name is what the client asked for, if that is why.
	name string
}

func (r *refused) Error() string {
	if r.name != "" {
		return r.why + ": " + r.name
	}
	return r.why
}

// unrecognizedName is the TLS alert for a name that nobody here has (RFC 8446
// §6.2), fatal, in a record of its own. Browsers show it and do not retry.
var unrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}

// admit reads a client's ClientHello and returns what it read, if the client
// wants name. Otherwise the error is a *refused, or the client is gone.
func admit(client io.Reader, name string) ([]byte, error) {
	asked, read, err := readHello(client)
	switch {
	case err != nil:
		return nil, err
	case asked == "":
		return nil, &refused{why: NoName}
	case asked != strings.ToLower(name):
		return nil, &refused{WrongName, asked}
	}
	return read, nil
}

// errRead ends the handshake once the hello is read.
var errRead = errors.New("the hello is read")

// readHello reads a ClientHello with the parser of crypto/tls, and returns the
// name in it, in lower case, and every byte that was read.
func readHello(r io.Reader) (name string, read []byte, err error) {
	rec := &recorder{r: io.LimitReader(r, maxHello)}
	rec.read.Grow(usualHello)
	err = tls.Server(rec, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name = strings.ToLower(h.ServerName)
			return nil, errRead
		},
	}).Handshake()
	switch {
	case errors.Is(err, errRead):
		return name, rec.read.Bytes(), nil
	case rec.err == nil, rec.err == io.EOF && !rec.handshake():
		return "", nil, &refused{why: NotTLS} // it was not the reading that failed
	case errors.Is(rec.err, os.ErrDeadlineExceeded):
		return "", nil, &refused{why: Mute}
	}
	return "", nil, rec.err
}

// recorder is a net.Conn that keeps what is read and swallows what is written.
type recorder struct {
	net.Conn // nil: only what follows is called in a handshake that never answers
	r        io.Reader
	read     bytes.Buffer
	err      error
}

func (c *recorder) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.read.Write(p[:n])
	c.err = err
	return n, err
}

// handshake says whether what was read may be the beginning of a hello, or is
// nothing: its client hung up.
func (c *recorder) handshake() bool {
	b := c.read.Bytes()
	return len(b) == 0 || b[0] == recordHandshake
}

// recordHandshake is the first byte of a TLS record that has a hello (RFC 8446
// §5.1).
const recordHandshake = 22

func (c *recorder) Write(p []byte) (int, error)        { return len(p), nil }
func (c *recorder) Close() error                       { return nil }
func (c *recorder) SetDeadline(time.Time) error        { return nil }
func (c *recorder) SetReadDeadline(time.Time) error    { return nil }
func (c *recorder) SetWriteDeadline(t time.Time) error { return nil }
