package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/listen"
	"golang.org/x/sys/unix"
)

// TestFullTable: without a file to be had, an open connection goes on, a new one
// waits, the log says so once, and with the first closed file it is carried.
func TestFullTable(t *testing.T) {
	port := freePort(t)
	serve(t, netip.AddrPortFrom(tailnetAddr, port), echo)
	r1, _ := routes()
	var said atomic.Int64
	log := slog.New(counter{slog.DiscardHandler, "cannot be accepted", &said})
	f := New([]Service{{Name: "x.veilor", Listen: serviceAddr, Ports: []uint16{port}, Routes: []Route{r1}}}, log, nil)
	run(t, f)
	open := dial(t, netip.AddrPortFrom(serviceAddr, port).String())
	echoes := func(c io.ReadWriter) error {
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			return errors.Join(err, errors.New("got "+string(got)))
		}
		return nil
	}
	if err := echoes(open); err != nil {
		t.Fatal(err)
	}

	// The client's own file, before there are none.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	late := os.NewFile(uintptr(fd), "client")
	defer late.Close()
	free := fillTable(t)
	defer free()
	for len(spare) > 0 {
		(<-spare).close()
	}
	fillAgain := fillTable(t)
	defer fillAgain()
	if err := echoes(open); err != nil {
		t.Errorf("an open connection: %v", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: serviceAddr.As4()}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return said.Load() > 0 }, "a word about it")
	// Some more tries.
	timer := time.NewTimer(5 * listen.AcceptAgain)
	<-timer.C
	if n := said.Load(); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	if err := echoes(open); err != nil {
		t.Errorf("an open connection, later: %v", err)
	}
	fillAgain()
	free()
	if err := echoes(late); err != nil {
		t.Errorf("the client that waited: %v", err)
	}
}

// fillTable opens files until no more are allowed.
func fillTable(t *testing.T) (free func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = min(limit.Cur, 512) // so that it does not take long
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.EMFILE {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
		fds = nil
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
}

// counter counts records with a text.
type counter struct {
	slog.Handler
	text string
	n    *atomic.Int64
}

func (c counter) Enabled(context.Context, slog.Level) bool { return true }
func (c counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c counter) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, c.text) {
		c.n.Add(1)
	}
	return nil
}
