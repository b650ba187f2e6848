package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/veilor/veilor-os/internal/desktop"
	"github.com/veilor/veilor-os/internal/desktop/desktoptest"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/status"
)

// watchedDaemon is veilor-mesh's socket with a /watch that tells what the test says.
type watchedDaemon struct {
	t    *testing.T
	path string

	mu       sync.Mutex
	services []status.Service
	hub      *meshsock.Hub
	stop     func()
}

func (d *watchedDaemon) start() {
	d.t.Helper()
	l, err := meshsock.Listen(d.t.Context(), d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hub := meshsock.NewHub(ctx)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /watch", hub.Handler(func() any {
		d.mu.Lock()
		defer d.mu.Unlock()
		return watched{d.services}
	}))
	ended := make(chan error, 1)
	go func() { ended <- meshsock.Server{Handler: mux, Allow: func(uint32) bool { return true }}.Serve(ctx, l) }()
	d.hub = hub
	var once sync.Once
	d.stop = func() { once.Do(func() { cancel(); <-ended }) }
	d.t.Cleanup(d.stop)
}

func (d *watchedDaemon) say(services ...status.Service) {
	d.mu.Lock()
	d.services = services
	d.mu.Unlock()
	d.hub.Wake()
}

// page is x.veilor with the tailnet up, and so many connections for another name.
func page(strangers int) status.Service {
	s := status.Service{Name: "x.veilor", Layer: "tailnet", Layers: []status.Layer{{Name: "tailnet", State: "up"}, {Name: "yggdrasil", State: "up"}}}
	if strangers > 0 {
		s.Refused = map[string]status.Refused{"wrong-name": {Count: strangers, Last: time.Now(), Name: "<a href=x>"}}
	}
	return s
}

// TestNotify runs the whole of it: a change of the daemon becomes a notification
// on a session bus, in the person's language, and ends with its cause.
func TestNotify(t *testing.T) {
	address := desktoptest.Bus(t)
	server := desktoptest.Serve(t, address, "body-markup")
	l := newLaptop(t)
	l.backend = "Running"
	d := &watchedDaemon{t: t, path: l.path("watched")}
	l.meshSocket = d.path
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", address)
	t.Setenv("LC_ALL", "ru_RU.UTF-8")
	d.services = []status.Service{page(0)}
	d.start()

	desk, err := desktop.Open(t.Context(), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer desk.Hangup()
	var logs bytes.Buffer
	n := newNotifier(l.app, desk, slog.New(slog.NewTextHandler(&logs, nil)))
	// Time goes faster here, for what has to settle.
	const faster = 20
	began := time.Now()
	n.now = func() time.Time { return began.Add(faster * time.Since(began)) }
	n.after = func(d time.Duration) <-chan time.Time { return time.After(d / faster) }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()

	d.say(page(1))
	c := server.Next()
	if c.Method != "Notify" || c.Urgency != 1 || c.Replaces != 0 ||
		!strings.HasPrefix(c.Summary, `x.veilor: соединение, которое запросило не x.veilor, закрыто в `) || !strings.Contains(c.Summary, `"<a href=x>"`) ||
		!strings.Contains(c.Body, "закройте незнакомые страницы") || !strings.HasSuffix(c.Body, "\n[wrong-name]") {
		t.Errorf("%+v", c)
	}
	// A person puts it away; more of the same is no news.
	server.PutAway(c.ID)
	d.say(page(2))
	d.say(page(0))

	// The daemon is stopped for longer than a restart takes.
	d.stop()
	c = server.Next()
	if c.Urgency != 2 || !strings.HasPrefix(c.Summary, "пересыльщик не отвечает") || !strings.HasSuffix(c.Body, "[mesh-stopped]") {
		t.Errorf("%+v", c)
	}
	stopped := c.ID
	d.start()
	if c = server.Next(); c.Method != "CloseNotification" || c.ID != stopped {
		t.Errorf("after the daemon came back: %+v", c)
	}
	server.None()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if logs.Len() > 0 {
		t.Errorf("it says:\n%s", logs.String())
	}
}

// TestNotifyWithoutDesktop: it says who has to run it.
func TestNotifyWithoutDesktop(t *testing.T) {
	l := newLaptop(t)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	t.Setenv("XDG_RUNTIME_DIR", l.dir)
	var errs bytes.Buffer
	if code := l.run([]string{"notify"}, nil, os.Stdout, &errs); code != 1 || !strings.Contains(errs.String(), "there is no desktop to show anything on") || !strings.Contains(errs.String(), "not by run0") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}
