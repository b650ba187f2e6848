package wss

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How death is noticed.
//
// A side that dialled owns the TCP connection and asks the kernel: data that
// nobody acknowledges makes the connection suspect, then dead. Acknowledgements
// are the right sign because they come from the far front end even when a
// long upload queues before everything else.
//
// A side that was dialled stands behind a TLS terminator, whose TCP connection
// it cannot see. It counts bytes instead: after a write, something must come
// back; if nothing does it pings (a WebSocket ping, which every client answers)
// and then gives up.
//
// Neither costs anything while nothing is written: an idle peering is not
// watched, and a path that died meanwhile is found with the first write.
const (
	// suspectAfter is how long data may wait for its acknowledgement before
	// that is unusual. Linux retransmits after 200 ms at the earliest
	// (TCP_RTO_MIN), and one retransmission is demanded besides, so that a long
	// round trip alone is never suspect.
	suspectAfter = 300 * time.Millisecond
	// minDead is when unacknowledged data means death. Linux has then
	// retransmitted at 0.2 and 0.6 s. A lossy path that is called dead wrongly
	// costs a redial of the same peer; waiting longer costs every failover.
	minDead = time.Second
	// deadRoundTrips lets minDead grow with the path: a satellite's 600 ms
	// round trip gets 2.4 s.
	deadRoundTrips = 4
	// pingAfter and echoDead are the same for the side that counts bytes. The
	// library answers traffic with a keepalive after 1 s at the latest
	// (ironwood, network/config.go peerKeepAliveDelay), so that even while a
	// ping is stuck in a full queue echoDead must be more than that. It is the
	// greater part of a failover: until the edge has given the laptop's old
	// peering up, it sends its answers there.
	pingAfter = 300 * time.Millisecond
	echoDead  = 1200 * time.Millisecond
	// look is the pause between two looks while data waits.
	look = 50 * time.Millisecond
)

func deadAfter(rtt time.Duration) time.Duration { return max(minDead, deadRoundTrips*rtt) }

// meter counts what arrives on a connection and rings when something is written.
type meter struct {
	net.Conn
	in   atomic.Uint64
	bell chan struct{}
}

func newMeter(c net.Conn) *meter { return &meter{Conn: c, bell: make(chan struct{}, 1)} }

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.in.Add(uint64(n))
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	// Before the write, which may block on a dead path.
	select {
	case m.bell <- struct{}{}:
	default:
	}
	return m.Conn.Write(p)
}

func (m *meter) control(f func(fd int) error) error {
	sc, ok := m.Conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is no socket", m.Conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func (m *meter) tcpInfo() (info *unix.TCPInfo, err error) {
	err = m.control(func(fd int) error {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return info, err
}

// verdict is what a watch thinks of its connection.
type verdict int

const (
	idle    verdict = iota // nothing is waiting
	waiting                // something is, not yet for long
	overdue                // for longer than is usual
	ping                   // ask the other side for a sign of life
	dead
)

// ackWatch judges by acknowledgements.
type ackWatch struct {
	dead  time.Duration
	since time.Time // what waits has waited since then; zero: nothing waits
}

// judge takes the state of the kernel at now: segments in flight, timeouts in a
// row, and the time since the last acknowledgement of anything.
func (w *ackWatch) judge(now time.Time, unacked, timeouts int, lastAck time.Duration) verdict {
	if unacked == 0 {
		w.since = time.Time{}
		return idle
	}
	if w.since.IsZero() {
		w.since = now
	}
	if ack := now.Add(-lastAck); ack.After(w.since) {
		w.since = ack
	}
	switch age := now.Sub(w.since); {
	case age >= w.dead:
		return dead
	case age >= suspectAfter && timeouts > 0:
		return overdue
	}
	return waiting
}

// echoWatch judges by bytes.
type echoWatch struct {
	in, out uint64
	since   time.Time
	pinged  bool
}

// judge takes the bytes received so far and those of the peering sent so far:
// pings and pongs do not count as sent, or each would ask for the next.
func (w *echoWatch) judge(now time.Time, in, out uint64) verdict {
	if in != w.in {
		w.since, w.pinged = time.Time{}, false
	}
	if out != w.out && w.since.IsZero() {
		w.since = now
	}
	w.in, w.out = in, out
	if w.since.IsZero() {
		return idle
	}
	switch age := now.Sub(w.since); {
	case age >= echoDead:
		return dead
	case age >= pingAfter && !w.pinged:
		w.pinged = true
		return ping
	}
	return waiting
}

// watch returns ErrSilent when the connection is dead, or nil when ctx ends.
func (c *Conn) watch(ctx context.Context, suspect func(bool)) error {
	aw := ackWatch{dead: c.dead}
	ew := echoWatch{in: c.wire.in.Load()}
	judge := func(now time.Time) (verdict, error) {
		if !c.acks {
			return ew.judge(now, c.wire.in.Load(), c.sent.Load()), nil
		}
		info, err := c.wire.tcpInfo()
		if err != nil {
			return dead, fmt.Errorf("asking the kernel about the connection: %w", err)
		}
		return aw.judge(now, int(info.Unacked), int(info.Retransmits), time.Duration(info.Last_ack_recv)*time.Millisecond), nil
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	suspected := false
	for {
		tick.Stop()
		select { // asleep until something is written
		case <-ctx.Done():
			return nil
		case <-c.wire.bell:
		}
		tick.Reset(look)
		for awake := true; awake; {
			v, err := judge(time.Now())
			if err != nil && ctx.Err() == nil {
				return err
			}
			if s := v == overdue; s != suspected {
				suspected = s
				suspect(s)
			}
			switch v {
			case idle:
				awake = false
				continue
			case dead:
				return ErrSilent
			case ping:
				go c.ws.Ping(ctx) // its pong counts as bytes; the result does not matter
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}
