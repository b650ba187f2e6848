package desktop

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/desktop/desktoptest"
)

func open(t *testing.T, address string) *Desktop {
	t.Helper()
	d, err := Open(t.Context(), func(key string) string { return map[string]string{"DBUS_SESSION_BUS_ADDRESS": address}[key] })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Hangup)
	return d
}

func event(t *testing.T, d *Desktop) Event {
	t.Helper()
	select {
	case e, ok := <-d.Events():
		if !ok {
			t.Fatal("the connection ended")
		}
		return e
	case <-time.After(time.Minute):
		t.Fatal("the desktop tells nothing")
		return Event{}
	}
}

func show(t *testing.T, d *Desktop, key string, n Note) {
	t.Helper()
	if err := d.Show(t.Context(), key, n); err != nil {
		t.Fatal(err)
	}
}

func TestShow(t *testing.T) {
	address := desktoptest.Bus(t)
	server := desktoptest.Serve(t, address, "body-markup")
	d := open(t, address)

	show(t, d, "a", Note{Critical, "x.veilor: no layer\nanswers", "last wanted \"<b>evil</b>\" & more\n[unreachable]"})
	want := desktoptest.Call{Method: "Notify", ID: 1, App: "veilor", Icon: "veilor", Summary: "x.veilor: no layer answers",
		Body: "last wanted &#34;&lt;b&gt;evil&lt;/b&gt;&#34; &amp; more\n[unreachable]", Urgency: 2, Signature: "y", Expire: -1, Category: "network"}
	if diff := cmp.Diff(want, server.Next()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	show(t, d, "b", Note{Normal, "other", ""})
	if c := server.Next(); c.ID != 2 || c.Replaces != 0 || c.Urgency != 1 {
		t.Errorf("a second one: %+v", c)
	}
	show(t, d, "a", Note{Critical, "newer", ""})
	if c := server.Next(); c.Replaces != 1 {
		t.Errorf("it does not replace the first: %+v", c)
	}

	// The person puts one away: that is told, and it is not ours any more.
	server.PutAway(2)
	if e := event(t, d); e != (Event{Closed: "b"}) {
		t.Errorf("%+v", e)
	}
	if err := d.Close(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	server.None()

	// We take one away: that is no news.
	if err := d.Close(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if c := server.Next(); c.Method != "CloseNotification" || c.ID != 1 {
		t.Errorf("%+v", c)
	}

	// The server begins anew, and counts anew.
	server.Stop()
	if err := d.Show(t.Context(), "a", Note{}); err == nil {
		t.Error("shown by nobody")
	}
	server = desktoptest.Serve(t, address)
	if e := event(t, d); e != (Event{Appeared: true}) {
		t.Errorf("%+v", e)
	}
	show(t, d, "a", Note{Low, "again", "a < b"})
	if c := server.Next(); c.Replaces != 0 || c.Body != "a < b" || c.Urgency != 0 {
		t.Errorf("to a new server without markup: %+v", c)
	}

	// The person logs out.
	d.Hangup()
	if e, ok := <-d.Events(); ok {
		t.Errorf("an event after the end: %+v", e)
	}
}

func TestNoBus(t *testing.T) {
	dir := t.TempDir()
	for _, env := range []map[string]string{{}, {"XDG_RUNTIME_DIR": dir}} {
		if _, err := Open(t.Context(), func(key string) string { return env[key] }); !errors.Is(err, ErrNoBus) {
			t.Errorf("%v: %v", env, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bus"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err := busAddress(func(key string) string { return map[string]string{"XDG_RUNTIME_DIR": dir}[key] }); err != nil || !strings.HasSuffix(a, "/bus") {
		t.Errorf("%q, %v", a, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, func(string) string { return "unix:path=/nowhere/bus" }); err == nil {
		t.Error("connected to nothing")
	}
}

func FuzzClip(f *testing.F) {
	f.Add("x.veilor")
	f.Add(strings.Repeat("ж", 400) + "\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{clip(s), line(s)} {
			if !utf8.ValidString(got) || strings.Contains(got, "\x00") || len(got) > maxText+len("…") {
				t.Errorf("%q", got)
			}
		}
		if strings.ContainsAny(line(s), "\n\r") {
			t.Errorf("%q", line(s))
		}
	})
}
