// Package daemon runs one long-lived outside program of the lab: in a
// namespace, with its output in a log file, awaited until it answers, and ended
// for certain.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/veilor/veilor-os/lab/namespace"
)

const (
	// pollEvery is how often Ready asks. None of the daemons announces itself.
	pollEvery = 20 * time.Millisecond
	// stopGrace is how long a daemon may take to end after SIGTERM. tailscaled
	// takes longest, up to 1 s, to remove its routes.
	stopGrace = 3 * time.Second
	// tailSize is how much of a log an error quotes.
	tailSize = 600
)

// Daemon is a running program.
type Daemon struct {
	Name string
	// Log is the file with its output, stdout and stderr mixed.
	Log string

	cmd     *exec.Cmd
	done    chan struct{}
	err     error // of Wait, after done
	stopped atomic.Bool
}

// Start starts cmd in ns and appends its output to the file log.
func Start(ns *namespace.Namespace, name, log string, cmd *exec.Cmd) (*Daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Start(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	d := &Daemon{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		// Whatever it left behind in its group, at once: later the number could
		// be somebody else's.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		close(d.done)
	}()
	return d, nil
}

// Ready waits until probe returns nil. It gives up when ctx ends or when the
// daemon does.
func (d *Daemon) Ready(ctx context.Context, probe func(context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		if last = probe(ctx); last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-d.done:
			return d.Exited()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w%s", d.Name, context.Cause(ctx), last, d.tail())
		}
	}
}

// Done is closed when the program has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Exited says that and how the program ended by itself; nil while it runs and
// after Stop.
func (d *Daemon) Exited() error {
	select {
	case <-d.done:
	default:
		return nil
	}
	if d.stopped.Load() {
		return nil
	}
	cause := d.err
	if cause == nil {
		cause = errors.New("exit status 0")
	}
	return fmt.Errorf("running %s: it ended: %w%s", d.Name, cause, d.tail())
}

// PID is the process id of the program.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop ends the program and everything in its process group, and waits.
func (d *Daemon) Stop() {
	d.stopped.Store(true)
	select {
	case <-d.done:
		return
	default:
	}
	syscall.Kill(-d.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(stopGrace):
		syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
		<-d.done
	}
}

// tail is the end of the log, for an error.
func (d *Daemon) tail() string {
	f, err := os.Open(d.Log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailSize {
		f.Seek(-tailSize, 2)
	}
	buf := make([]byte, tailSize)
	n, _ := f.Read(buf)
	lines := bytes.Split(bytes.TrimSpace(buf[:n]), []byte("\n"))
	if len(lines) > 4 {
		lines = lines[len(lines)-4:]
	}
	text := strings.TrimSpace(string(bytes.Join(lines, []byte("\n    "))))
	if text == "" {
		return "; log: " + d.Log
	}
	return "; " + d.Log + " ends:\n    " + text
}
