package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"
)

const (
	// typingPause is waited before typing at a prompt: a program that has just
	// printed its prompt may still drop what is in the input queue.
	typingPause = 300 * time.Millisecond

	// consoleTail is how much of what was last seen goes into an error.
	consoleTail = 800

	// consoleKeep bounds the memory for output that nobody waits for.
	consoleKeep = 4 << 20
)

// Console is a person at a serial terminal: it reads what appears, waits for
// what it knows, and types.
type Console struct {
	w io.Writer

	mu      sync.Mutex
	buf     []byte // what came and was not yet matched
	err     error  // why nothing more will come
	changed chan struct{}
}

// NewConsole reads from rw until it ends. Everything goes to log as it came.
func NewConsole(rw io.ReadWriter, log io.Writer) *Console {
	c := &Console{w: rw, changed: make(chan struct{})}
	go c.read(rw, log)
	return c
}

func (c *Console) read(r io.Reader, log io.Writer) {
	chunk := make([]byte, 4096)
	for {
		n, err := r.Read(chunk)
		if log != nil {
			_, _ = log.Write(chunk[:n])
		}
		c.mu.Lock()
		c.buf = append(c.buf, chunk[:n]...)
		if over := len(c.buf) - consoleKeep; over > 0 {
			c.buf = c.buf[over:]
		}
		c.err = err
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// ExpectError says what did not appear, and what did.
type ExpectError struct {
	Pattern string
	Tail    string // the last of what was seen
	Err     error
}

func (e *ExpectError) Error() string {
	return fmt.Sprintf("waiting for %q on the console: %v; last seen: %q", e.Pattern, e.Err, e.Tail)
}

func (e *ExpectError) Unwrap() error { return e.Err }

// ErrTimeout says that a machine was alive but silent about what was expected.
var ErrTimeout = errors.New("it did not come in time")

// Expect waits until pattern matches what has come since the last match, and
// returns the match and its groups. What is up to the end of the match is done
// with.
func (c *Console) Expect(ctx context.Context, timeout time.Duration, pattern *regexp.Regexp) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w (%v)", ErrTimeout, timeout))
	defer cancel()
	for {
		c.mu.Lock()
		loc := pattern.FindSubmatchIndex(c.buf)
		if loc != nil {
			groups := make([]string, len(loc)/2)
			for i := range groups {
				if loc[2*i] >= 0 {
					groups[i] = string(c.buf[loc[2*i]:loc[2*i+1]])
				}
			}
			c.buf = append([]byte(nil), c.buf[loc[1]:]...)
			c.mu.Unlock()
			return groups, nil
		}
		changed, err := c.changed, c.err
		tail := string(c.buf[max(0, len(c.buf)-consoleTail):])
		c.mu.Unlock()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the machine is gone")
			}
			return nil, &ExpectError{pattern.String(), tail, err}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &ExpectError{pattern.String(), tail, context.Cause(ctx)}
		}
	}
}

// Type sends text after a moment's pause, as a person does at a prompt.
func (c *Console) Type(ctx context.Context, text string) error {
	select {
	case <-time.After(typingPause):
	case <-ctx.Done():
		return fmt.Errorf("typing: %w", context.Cause(ctx))
	}
	return c.Send(text)
}

// Send sends text at once.
func (c *Console) Send(text string) error {
	// What is typed may be a secret: it is not in the error.
	if _, err := io.WriteString(c.w, text); err != nil {
		return fmt.Errorf("typing: %w", err)
	}
	return nil
}
