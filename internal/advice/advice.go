// Package advice gives errors a second line: what the person can do about them.
package advice

import "errors"

// Error is an error that a person can do something about.
type Error struct {
	// Text says what is wrong, in one line without a final stop.
	Text string
	// Todo says what to do, ready to be pasted where it is a command. It may
	// have several lines.
	Todo string
	// Cause is the error behind it, or nil. It is not printed.
	Cause error
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.Cause }

// Todo is the advice that err carries, or "".
func Todo(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Todo
	}
	return ""
}
