package forward

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is the most that is under way in one direction between the two
	// sockets. The kernel lets a user have 64 MiB in pipes
	// (pipe-user-pages-soft, pipe(7)) and makes them small beyond that: this is
	// 256 directions at full speed.
	pipeSize = 256 << 10
	// sparePipes are kept open for the next move. A pipe is in use only while
	// bytes move, so that few serve many connections.
	sparePipes = 64
	// pieceSize is the most that is copied at a time where no pipe can be had.
	pieceSize = 32 << 10
)

// pipe is what splice(2) needs between two sockets.
type pipe struct{ r, w int }

// spare holds pipes that are empty.
var spare = make(chan pipe, sparePipes)

func takePipe() (pipe, error) {
	select {
	case p := <-spare:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, os.NewSyscallError("pipe2", err)
	}
	// A smaller pipe is slower and works.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return pipe{fds[0], fds[1]}, nil
}

// noPipe says that a pipe cannot be had because too many files are open (here or
// on the machine), and not because something is wrong.
func noPipe(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// pieces are buffers for who has no pipe.
var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// giveBack keeps an empty pipe for others.
func (p pipe) giveBack() {
	select {
	case spare <- p:
	default:
		p.close()
	}
}

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// move splices src to dst until src ends, and tells moved of every piece. It is
// io.Copy between TCPConns with two differences: who waits holds no pipe, and
// what moves is seen. Where the table of files is full the bytes are copied:
// that is slower, and no connection ends for it.
func move(dst, src *net.TCPConn, moved func(n int)) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	m := mover{}
	// The two closures are made once: they run for every piece.
	read, write := m.read, m.write
	for {
		err := in.Read(read)
		if err = errors.Join(err, m.failure()); err != nil || m.n == 0 {
			m.giveBack()
			return err
		}
		moved(m.n)
		for m.n > 0 {
			err := out.Write(write)
			if err = errors.Join(err, m.failure()); err != nil {
				m.drop()
				return err
			}
		}
		if m.piece != nil { // a pipe is kept for the next piece, which often waits
			m.giveBack()
		}
	}
}

// mover is one direction of a connection: it has a pipe or a piece of memory
// while bytes move.
type mover struct {
	p     pipe
	have  bool // p
	piece *[pieceSize]byte
	sent  int // of piece
	n     int // bytes in p, or in piece after sent
	call  string
	fail  error // of the system call
}

// read takes what there is from fd, or says that it must be waited for.
func (m *mover) read(fd uintptr) bool {
	if !m.have {
		m.p, m.fail = takePipe()
		m.have = m.fail == nil
		switch {
		case noPipe(m.fail):
			m.piece, m.sent = pieces.Get().(*[pieceSize]byte), 0
		case m.fail != nil:
			return true
		}
	}
	if m.have {
		m.call = "splice"
		m.n, m.fail = transfer(int(fd), m.p.w, pipeSize)
	} else {
		m.call = "read"
		m.n, m.fail = again(func() (int, error) { return unix.Read(int(fd), m.piece[:]) })
	}
	if m.fail == unix.EAGAIN {
		m.giveBack()
		m.fail = nil
		return false
	}
	return true
}

// write passes on what read took, or says that it must wait.
func (m *mover) write(fd uintptr) bool {
	var n int
	if m.have {
		m.call = "splice"
		n, m.fail = transfer(m.p.r, int(fd), m.n)
	} else {
		m.call = "write"
		n, m.fail = again(func() (int, error) { return unix.Write(int(fd), m.piece[m.sent:m.sent+m.n]) })
	}
	if m.fail == unix.EAGAIN {
		m.fail = nil
		return false
	}
	n = max(n, 0)
	m.n, m.sent = m.n-n, m.sent+n
	return true
}

// failure is what the last system call failed with.
func (m *mover) failure() error { return os.NewSyscallError(m.call, m.fail) }

// giveBack leaves pipe or memory, which is empty, to others.
func (m *mover) giveBack() {
	if m.have {
		m.p.giveBack()
		m.have = false
	}
	if m.piece != nil {
		pieces.Put(m.piece)
		m.piece = nil
	}
}

// drop closes the pipe: what is left in it is nobody's.
func (m *mover) drop() {
	if m.have {
		m.p.close()
		m.have = false
	}
	m.giveBack()
}

// transfer is splice(2) that never waits. It tells the runtime nothing of the call:
// a program that was idle wakes the runtime's watchdog before a call that may wait,
// and that is a second thread to be woken before every lone answer.
func transfer(from, to, most int) (int, error) {
	return again(func() (int, error) {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(most), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	})
}

// again calls f until no signal came in between.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
