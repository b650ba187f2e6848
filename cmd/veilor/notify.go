package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/desktop"
	"github.com/veilor/veilor-os/internal/footprint"
	"github.com/veilor/veilor-os/internal/meshsock"
	"github.com/veilor/veilor-os/internal/notice"
	"github.com/veilor/veilor-os/internal/status"
)

const (
	// lookEvery is the least time between two looks at this laptop, however much
	// happens: joining a network makes tens of changes in a second.
	lookEvery = 2 * time.Second
	// firstRetry and lastRetry bound the wait before a daemon that is there and
	// tells nothing is asked again; each wait is twice the one before.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// clearLimit is how long taking everything away may take at the end.
	clearLimit = 2 * time.Second
)

func (a *app) notifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "notify",
		Short: "Show on the desktop what somebody should know, until stopped",
		Long: `Notify shows what is broken, or may soon be, as a notification on the desktop of
whoever runs it, and takes it away when it is over. It shows little: nothing that
comes and goes, nothing twice within half an hour, and at most three within ten
minutes. ` + "`veilor status`" + ` says the rest.

It waits for veilor-mesh to tell of a change and asks nothing meanwhile.
veilor-notify.service runs it for everybody who logs in to the desktop; who does
not want it says: systemctl --user mask --now veilor-notify.service`,
		Example: "  veilor notify\n  systemctl --user status veilor-notify.service",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{ReplaceAttr: noTime}))
			// What is shown is taken away after ctx has ended.
			desk, err := desktop.Open(context.WithoutCancel(cmd.Context()), os.Getenv)
			if errors.Is(err, desktop.ErrNoBus) {
				return &advice.Error{
					Text:  "there is no desktop to show anything on: " + err.Error(),
					Todo:  "Run it as the person who is logged in to the desktop, in that session, and not by run0.",
					Cause: err,
				}
			}
			if err != nil {
				return err
			}
			defer desk.Hangup()
			return newNotifier(a, desk, log).run(cmd.Context())
		},
	}
}

// notifier shows the conditions of this laptop.
type notifier struct {
	*app
	desk   *desktop.Desktop
	log    *slog.Logger
	keeper notice.Keeper
	now    func() time.Time
	after  func(time.Duration) <-chan time.Time

	// news says that what the daemon last told, or why it does not, is another.
	news chan struct{}
	mu   sync.Mutex
	told []status.Service
	down error
}

func newNotifier(a *app, desk *desktop.Desktop, log *slog.Logger) *notifier {
	return &notifier{app: a, desk: desk, log: log, now: time.Now, after: time.After, news: make(chan struct{}, 1)}
}

func (n *notifier) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { n.listen(ctx) })
	wg.Go(func() { footprint.Keep(ctx, n.log) })
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearLimit)
		defer cancel()
		if err := n.desk.Clear(limit); err != nil {
			n.log.Debug("at the end", "err", err) // a desktop that ends first is no mistake
		}
	}()

	var looked time.Time
	var alarm <-chan time.Time // never, until there is something to wait for
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-alarm:
			due = true
		case <-n.news:
			due = true
		case e, ok := <-n.desk.Events():
			if !ok {
				return errors.New("showing notifications: the desktop's session ended")
			}
			if e.Closed != "" {
				n.keeper.Hush(noticeKey(e.Closed))
			}
			due = e.Appeared // who could show nothing before can now
		}
		if !due {
			continue
		}
		if wait := looked.Add(lookEvery).Sub(n.now()); wait > 0 {
			alarm = n.after(wait)
			continue
		}
		looked = n.now()
		again, err := n.look(ctx)
		if err != nil {
			return err
		}
		if alarm = nil; !again.IsZero() {
			alarm = n.after(again.Sub(n.now()))
		}
	}
}

// look judges how things are and shows what is new in it.
func (n *notifier) look(ctx context.Context) (again time.Time, err error) {
	r, err := n.report(ctx, func(context.Context) ([]status.Service, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.told, n.down
	})
	if err != nil {
		return time.Time{}, err
	}
	r.In(language())
	acts, again := n.keeper.Step(n.now(), r.Conditions)
	for _, act := range acts {
		key := act.Key.Code + " " + act.Key.Service
		if act.Show == nil {
			if err := n.desk.Close(ctx, key); err != nil && ctx.Err() == nil {
				n.log.Warn("a notification that is over may still be shown", "err", err)
			}
			continue
		}
		summary, body := act.Show.Notification()
		if err := n.desk.Show(ctx, key, desktop.Note{Urgency: urgency(act.Show.Level), Summary: summary, Body: body}); err != nil && ctx.Err() == nil {
			n.log.Warn("this could not be shown, and will be tried again", "code", act.Key.Code, "service", act.Key.Service, "err", err)
			n.keeper.Failed(act.Key)
		}
	}
	return again, nil
}

// noticeKey is the key under which something is shown on the desktop.
func noticeKey(key string) notice.Key {
	code, service, _ := strings.Cut(key, " ")
	return notice.Key{Code: code, Service: service}
}

func urgency(l status.Level) desktop.Urgency {
	switch l {
	case status.Broken:
		return desktop.Critical
	case status.Note:
		return desktop.Low
	}
	return desktop.Normal
}

// listen keeps told what the daemon says, until ctx ends. A daemon that is gone
// is waited for; one that refuses is asked again, less and less often.
func (n *notifier) listen(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		heard := false
		err := n.mesh().Watch(ctx, "/watch", func(line []byte) error {
			var w watched
			if err := json.Unmarshal(line, &w); err != nil {
				return fmt.Errorf("reading its answer: %w", err)
			}
			heard = true
			n.tell(w.Services, nil)
			return nil
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, meshsock.ErrRefused), errors.Is(err, meshsock.ErrNotFound):
			n.log.Warn("the daemon tells nothing; it is asked again", "err", err)
		default:
			n.tell(nil, err)
		}
		// Where it is gone the kernel tells when somebody listens again.
		if err := n.mesh().Await(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("the daemon is asked now and then whether it is back", "err", err)
		}
		if heard {
			retry = firstRetry
			continue
		}
		select {
		case <-n.after(retry):
		case <-ctx.Done():
		}
		retry = min(2*retry, lastRetry)
	}
}

func (n *notifier) tell(services []status.Service, down error) {
	n.mu.Lock()
	n.told, n.down = services, down
	n.mu.Unlock()
	select {
	case n.news <- struct{}{}:
	default: // whoever looks sees this
	}
}
