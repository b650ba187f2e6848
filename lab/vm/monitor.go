package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Monitor is a QMP client (QEMU's docs/interop/qmp-spec.rst): one command at a
// time, events are passed over.
type Monitor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// ErrMonitor is an error that QEMU answered with.
type ErrMonitor struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *ErrMonitor) Error() string { return e.Desc }

type reply struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *ErrMonitor     `json:"error"`
	Event    string          `json:"event"`
}

func newMonitor(ctx context.Context, conn net.Conn) (*Monitor, error) {
	m := &Monitor{conn: conn, in: bufio.NewReader(conn)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r, err := m.next()
	if err != nil {
		return nil, fmt.Errorf("greeting the monitor: %w", err)
	}
	if r.Greeting == nil {
		return nil, errors.New("greeting the monitor: it is no QMP")
	}
	if _, err := m.Execute("qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return m, nil
}

// Execute runs a command and returns its answer as JSON.
func (m *Monitor) Execute(command string, arguments any) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, fmt.Errorf("asking the monitor: %w", err)
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("asking the monitor for %s: %w", command, err)
	}
	for {
		r, err := m.next()
		switch {
		case err != nil:
			return nil, fmt.Errorf("asking the monitor for %s: %w", command, err)
		case r.Error != nil:
			return nil, fmt.Errorf("asking the monitor for %s: %w", command, r.Error)
		case r.Return != nil:
			return r.Return, nil
		}
	}
}

func (m *Monitor) next() (reply, error) {
	line, err := m.in.ReadBytes('\n')
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("QEMU is gone")
		}
		return reply{}, err
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return reply{}, fmt.Errorf("understanding it: %w", err)
	}
	return r, nil
}
