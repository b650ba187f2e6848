package forward

import (
	"errors"
	"net"
	"os"

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
// what moves is seen.
func move(dst, src *net.TCPConn, moved func(n int)) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	var (
		p    pipe
		have bool  // p
		n    int   // in p
		fail error // of the system call
	)
	// The two closures are made once: they run for every piece.
	read := func(fd uintptr) bool {
		if !have {
			if p, fail = takePipe(); fail != nil {
				return true
			}
			have = true
		}
		n, fail = transfer(int(fd), p.w, pipeSize)
		if fail == unix.EAGAIN {
			p.giveBack()
			have, fail = false, nil
			return false
		}
		return true
	}
	write := func(fd uintptr) bool {
		var m int
		m, fail = transfer(p.r, int(fd), n)
		if fail == unix.EAGAIN {
			fail = nil
			return false
		}
		n -= max(m, 0)
		return true
	}
	for {
		err := in.Read(read)
		if err = errors.Join(err, os.NewSyscallError("splice", fail)); err != nil || n == 0 {
			if have {
				p.giveBack()
			}
			return err
		}
		moved(n)
		for n > 0 {
			err := out.Write(write)
			if err = errors.Join(err, os.NewSyscallError("splice", fail)); err != nil {
				p.close() // what is left in it is nobody's
				return err
			}
		}
	}
}

func transfer(from, to, most int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}
