package forward

import (
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// expect is how long a connection that waits for an answer may hear nothing
	// before its layer is asked whether it lives.
	expect = time.Second
	// maxExpect ends the doubling of that: a server may think for long, and
	// every question is a SYN.
	maxExpect = time.Minute
	// watchFor is how long a silent connection is watched. After that TCP's own
	// keepalive does it.
	watchFor = keepIdle
	// bulk is how much makes an answer a download, whose end cannot be told
	// from its stalling. A smaller one has come whole in one go.
	bulk = 64 << 10
)

// watch notices that a connection waits in vain. It costs a timer while bytes
// move or are waited for, and nothing on an idle connection.
//
//	        bytes move                 no answer is expected
//	idle -------------> watched -----------------------------> idle
//	                     |    ^
//	  silent for expect, |    | bytes move
//	  2 expect, 4 …      v    |
//	                 asks the layer ------ watchFor is over --> idle
type watch struct {
	now func() time.Time
	// silent is called with the time of the last sign of life, heard with the
	// same and the round trip time. Neither with mu held.
	silent func(since time.Time)
	heard  func(at time.Time, rtt time.Duration)
	// life reads the kernel's account of the connection.
	life func() (sign, bool)

	mu      sync.Mutex
	sent    time.Time // when the client's bytes last went out
	answer  time.Time // when the server's bytes last came in
	burst   int       // bytes of the server since the client's last
	bytes   uint64    // that had arrived, on either side, when last looked
	last    time.Time // the sign of life with which they did
	told    time.Time // sign of life last reported
	expect  time.Duration
	timer   *time.Timer
	armed   bool
	stopped bool
}

// sign is what the kernel knows of a connection.
type sign struct {
	// ago is how long nothing came, neither data nor acknowledgement.
	ago time.Duration
	// bytes are those that have arrived in both directions, as far as this end
	// knows. What comes and leaves them as they are is no life: a server whose
	// packets arrive and which hears nothing says its last words over and over.
	bytes uint64
	rtt   time.Duration
}

// lifeOf reads TCP_INFO (tcp(7)).
func lifeOf(c *net.TCPConn) func() (sign, bool) {
	return func() (s sign, ok bool) {
		raw, err := c.SyscallConn()
		if err != nil {
			return s, false
		}
		err = raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				ok = true
				s.ago = time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond
				s.bytes = info.Bytes_received + info.Bytes_acked
				s.rtt = time.Duration(info.Rtt) * time.Microsecond
			}
		})
		return s, ok && err == nil
	}
}

// toServer and toClient say that bytes moved.
func (w *watch) toServer(int) {
	w.mu.Lock()
	w.sent, w.burst = w.now(), 0
	w.arm()
	w.mu.Unlock()
}

func (w *watch) toClient(n int) {
	w.mu.Lock()
	w.answer = w.now()
	w.burst += n
	w.arm()
	w.mu.Unlock()
}

// arm starts the timer if it does not run, or runs for longer because an earlier
// silence lasted. w.mu is held.
func (w *watch) arm() {
	if w.armed && w.expect == expect || w.stopped {
		return
	}
	w.armed, w.expect = true, expect
	if w.timer == nil {
		w.timer = time.AfterFunc(expect, w.look)
	} else {
		w.timer.Reset(expect)
	}
}

// stop ends the watch.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// look asks the kernel what came, and decides when to look again.
func (w *watch) look() {
	s, ok := w.life()
	w.mu.Lock()
	now := w.now()
	again, alive, dead := w.judge(now, s, ok)
	at := w.last
	if again > 0 && !w.stopped {
		w.timer.Reset(again)
	} else {
		w.armed = false
	}
	w.mu.Unlock()
	switch {
	case dead:
		w.silent(at)
	case alive:
		w.heard(at, s.rtt)
	}
}

// judge says when to look again (0 for not before bytes move), whether there is
// a sign of life to report, and whether there should be one and is not. w.mu is
// held.
func (w *watch) judge(now time.Time, s sign, ok bool) (again time.Duration, alive, dead bool) {
	if w.stopped || !ok {
		return 0, false, false
	}
	if s.bytes != w.bytes || w.last.IsZero() {
		w.bytes, w.last = s.bytes, now.Add(-s.ago)
	}
	waits := w.sent.After(w.answer) || w.burst >= bulk
	// A sign of life may have come after the request did: acknowledgements of
	// an upload are the only ones there are.
	last := w.last
	if w.sent.After(last) {
		last = w.sent // the answer is expected since then
	}
	quiet := now.Sub(last)
	if now.Sub(w.last) < w.expect {
		alive = w.last.Sub(w.told) > expect/2
		if alive {
			w.told = w.last
		}
	}
	switch {
	case !waits && quiet >= expect:
		return 0, alive, false
	case quiet < w.expect:
		return max(w.expect-quiet, expect/4), alive, false
	case quiet > watchFor:
		return 0, alive, false
	}
	w.expect = quiet + min(quiet, maxExpect)
	return w.expect - quiet, false, true
}
