// Package desktoptest is a desktop for tests: a session bus of their own, and a
// notification server on it that remembers what it was told.
package desktoptest

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	name = "org.freedesktop.Notifications"
	path = "/org/freedesktop/Notifications"
	// patience is for a loaded machine; what is waited for comes by an event.
	patience = time.Minute
)

// config is a session bus with nobody on it yet, which starts nothing, and lets
// everybody send and receive: without the second not even its own answers come.
const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>LISTEN</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
`

// Config is what makes a dbus-daemon a session bus at an address: "unix:path=FILE", or
// "unix:dir=DIR" for a name of its own choice.
func Config(address string) []byte {
	return []byte(strings.ReplaceAll(config, "LISTEN", address))
}

// Bus starts a session bus that ends with the test and returns its address. It
// skips the test where there is no dbus-daemon.
func Bus(t testing.TB) (address string) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("SKIPPED: no dbus-daemon here, so nothing was tried on a session bus; install the package dbus-daemon")
	}
	dir, err := os.MkdirTemp("", "bus") // t.TempDir's path may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "session.conf")
	if err := os.WriteFile(file, Config("unix:dir="+dir), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, daemon, "--config-file="+file, "--nofork", "--print-address=1")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() }) // it was killed
	address, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cancel()
		cmd.Wait() // it has nothing more to say
		t.Fatalf("dbus-daemon does not say where it is: %v\n%s", err, &complaints)
	}
	return strings.TrimSpace(address)
}

// Call is one thing that the server was asked to do.
type Call struct {
	// Method is Notify or CloseNotification.
	Method string
	// ID is the notification's; Replaces the one that it replaces, or 0.
	ID, Replaces        uint32
	App, Icon           string
	Summary, Body       string
	Urgency             byte
	Actions             int
	Expire              int32
	Category, Signature string
}

// Server is a notification server.
type Server struct {
	t     testing.TB
	conn  *dbus.Conn
	calls chan Call

	mu   sync.Mutex
	last uint32
}

// Serve starts a server with the given capabilities on the bus.
func Serve(t testing.TB, address string, capabilities ...string) *Server {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, conn: conn, calls: make(chan Call, 100)}
	t.Cleanup(s.Stop)
	if err := conn.ExportMethodTable(map[string]any{
		"GetCapabilities": func() ([]string, *dbus.Error) { return append([]string{"body"}, capabilities...), nil },
		"Notify": func(app string, replaces uint32, icon, summary, body string, actions []string, hints map[string]dbus.Variant, expire int32) (uint32, *dbus.Error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			id := replaces
			if id == 0 {
				s.last++
				id = s.last
			}
			c := Call{Method: "Notify", ID: id, Replaces: replaces, App: app, Icon: icon, Summary: summary, Body: body, Actions: len(actions), Expire: expire}
			c.Urgency, _ = hints["urgency"].Value().(byte)
			c.Category, _ = hints["category"].Value().(string)
			c.Signature = hints["urgency"].Signature().String()
			s.calls <- c
			return id, nil
		},
		"CloseNotification": func(id uint32) *dbus.Error {
			s.calls <- Call{Method: "CloseNotification", ID: id}
			s.closed(id, 3)
			return nil
		},
	}, path, name); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("becoming %s: %v, %v", name, reply, err)
	}
	return s
}

// Stop takes the server off the bus.
func (s *Server) Stop() { s.conn.Close() }

// Next is the next call; the test ends if none comes.
func (s *Server) Next() Call {
	s.t.Helper()
	select {
	case c := <-s.calls:
		return c
	case <-time.After(patience):
		s.t.Fatal("the notification server was told nothing")
		return Call{}
	}
}

// None fails the test if there was a call that nobody looked at.
func (s *Server) None() {
	s.t.Helper()
	select {
	case c := <-s.calls:
		s.t.Errorf("the notification server was told %+v", c)
	default:
	}
}

// PutAway says that the person put a notification away.
func (s *Server) PutAway(id uint32) { s.closed(id, 2) }

func (s *Server) closed(id, reason uint32) {
	if err := s.conn.Emit(path, name+".NotificationClosed", id, reason); err != nil {
		s.t.Error(err)
	}
}
