// Package desktop shows notifications on the desktop of the person who is logged
// in: the Desktop Notifications Specification 1.3 (org.freedesktop.Notifications)
// over the session bus.
package desktop

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// name is the notification server's on the bus; its interface has the same.
	name = "org.freedesktop.Notifications"
	path = "/org/freedesktop/Notifications"
	// callLimit bounds a call. The first may start the server, for which D-Bus
	// allows 25 s.
	callLimit = 30 * time.Second
	// maxText bounds a line that may hold what a stranger wrote.
	maxText = 500
	// app and icon are how the desktop names us; the icon is the image's own.
	app, icon = "veilor", "veilor"
)

// Urgency is how much the desktop insists (the hint "urgency").
type Urgency byte

// The urgencies. A critical one stays until it is put away.
const (
	Low Urgency = iota
	Normal
	Critical
)

// Note is a notification.
type Note struct {
	Urgency Urgency
	// Summary is one line of plain text, Body some, of plain text too: what looks
	// like markup in it is shown as it stands.
	Summary, Body string
}

// Event is what happened on the desktop.
type Event struct {
	// Closed is the key of a notification that a person put away, or whose time
	// was over.
	Closed string
	// Appeared says that a notification server began to answer. What another one
	// showed is gone.
	Appeared bool
}

// Desktop is a connection to the session bus. It is safe for concurrent use.
type Desktop struct {
	conn   *dbus.Conn
	events chan Event

	// showing is held while a notification is shown: a server may say that it is
	// closed before we have its id.
	showing sync.Mutex

	mu  sync.Mutex
	ids map[string]uint32
	// escape says that the server reads markup in bodies; nil is not asked yet.
	escape *bool
}

// ErrNoBus says that nobody is logged in to a desktop here.
var ErrNoBus = errors.New("there is no session bus")

// Open connects to the session bus of whoever runs this.
func Open(ctx context.Context, getenv func(string) string) (*Desktop, error) {
	address, err := busAddress(getenv)
	if err != nil {
		return nil, fmt.Errorf("connecting to the desktop: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connecting to the desktop: %w", err)
	}
	d := &Desktop{conn: conn, events: make(chan Event, 16), ids: map[string]uint32{}}
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(name), dbus.WithMatchInterface(name), dbus.WithMatchMember("NotificationClosed")},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			conn.Close()
			return nil, fmt.Errorf("connecting to the desktop: %w", err)
		}
	}
	go d.listen(ctx, signals)
	return d, nil
}

// busAddress is where the session bus is: as the environment says, or where
// systemd --user has it. The library would start a bus of its own if there were
// none, and talk to nobody on it.
func busAddress(getenv func(string) string) (string, error) {
	if a := getenv("DBUS_SESSION_BUS_ADDRESS"); a != "" {
		return a, nil
	}
	dir := getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return "", ErrNoBus
	}
	socket := filepath.Join(dir, "bus")
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return "", ErrNoBus
	} else if err != nil {
		return "", err
	}
	return "unix:path=" + dbus.EscapeBusAddressValue(socket), nil
}

// listen turns signals into events until the connection ends.
func (d *Desktop) listen(ctx context.Context, signals <-chan *dbus.Signal) {
	defer close(d.events)
	for {
		var s *dbus.Signal
		select {
		case s = <-signals:
		case <-d.conn.Context().Done():
			return
		}
		if s == nil {
			return
		}
		var e Event
		switch s.Name {
		case name + ".NotificationClosed":
			d.showing.Lock()
			e.Closed = d.closed(s.Body)
			d.showing.Unlock()
		case "org.freedesktop.DBus.NameOwnerChanged":
			e.Appeared = d.owner(s.Body)
		}
		if e == (Event{}) {
			continue
		}
		select {
		case d.events <- e:
		case <-ctx.Done():
			return
		}
	}
}

// closed forgets the notification that a signal is about and returns its key.
func (d *Desktop) closed(body []any) (key string) {
	if len(body) < 2 {
		return ""
	}
	id, ok := body[0].(uint32)
	if !ok {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, i := range d.ids {
		if i == id {
			delete(d.ids, k)
			return k
		}
	}
	return "" // another program's, or one that we took away
}

// owner forgets what a server that is gone had shown.
func (d *Desktop) owner(body []any) (appeared bool) {
	if len(body) < 3 {
		return false
	}
	now, ok := body[2].(string)
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.ids)
	d.escape = nil
	return ok && now != ""
}

// Events tells what happens on the desktop. It is closed when the connection ends,
// as it does when the person logs out.
func (d *Desktop) Events() <-chan Event { return d.events }

// Show shows n, in place of what is shown under key.
func (d *Desktop) Show(ctx context.Context, key string, n Note) error {
	d.showing.Lock()
	defer d.showing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	escape, err := d.markup(ctx)
	if err != nil {
		return fmt.Errorf("showing a notification: %w", err)
	}
	body := clip(n.Body)
	if escape {
		body = html.EscapeString(body)
	}
	d.mu.Lock()
	replaces := d.ids[key]
	d.mu.Unlock()
	hints := map[string]dbus.Variant{
		"urgency":  dbus.MakeVariant(byte(n.Urgency)),
		"category": dbus.MakeVariant("network"),
	}
	const serverDecides = int32(-1)
	var id uint32
	if err := d.call(ctx, "Notify", app, replaces, icon, line(n.Summary), body, []string{}, hints, serverDecides).Store(&id); err != nil {
		return fmt.Errorf("showing a notification: %w", err)
	}
	d.mu.Lock()
	d.ids[key] = id
	d.mu.Unlock()
	return nil
}

// Close takes away what is shown under key, if anything is.
func (d *Desktop) Close(ctx context.Context, key string) error {
	d.mu.Lock()
	id, ok := d.ids[key]
	delete(d.ids, key)
	d.mu.Unlock()
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := d.call(ctx, "CloseNotification", id).Err; err != nil {
		return fmt.Errorf("taking a notification away: %w", err)
	}
	return nil
}

// Clear takes away everything that is shown.
func (d *Desktop) Clear(ctx context.Context) error {
	d.mu.Lock()
	keys := slices.Sorted(maps.Keys(d.ids))
	d.mu.Unlock()
	var errs []error
	for _, key := range keys {
		errs = append(errs, d.Close(ctx, key))
	}
	return errors.Join(errs...)
}

// Hangup ends the connection.
func (d *Desktop) Hangup() { d.conn.Close() }

// markup says whether the server reads markup in bodies; it is asked once.
func (d *Desktop) markup(ctx context.Context) (bool, error) {
	d.mu.Lock()
	known := d.escape
	d.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	var can []string
	if err := d.call(ctx, "GetCapabilities").Store(&can); err != nil {
		return false, err
	}
	yes := slices.Contains(can, "body-markup")
	d.mu.Lock()
	d.escape = &yes
	d.mu.Unlock()
	return yes, nil
}

func (d *Desktop) call(ctx context.Context, method string, args ...any) *dbus.Call {
	return d.conn.Object(name, path).CallWithContext(ctx, name+"."+method, 0, args...)
}

// line is s without line breaks.
func line(s string) string { return clip(strings.Join(strings.Fields(s), " ")) }

// clip bounds s and keeps it what D-Bus takes: UTF-8 without NUL.
func clip(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
