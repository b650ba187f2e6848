// Package cli is what veilor's commands have in common: their exit codes, and
// how a mistake in the command line is told from a failure.
package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
)

// Exit codes of every veilor program.
const (
	Done   = 0
	Failed = 1
	// Misused: the command line is wrong, and nothing was done.
	Misused = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks err as a mistake in the command line.
func Usage(err error) error { return usageError{err} }

// Usagef makes a mistake in the command line of a text.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Prepare gives root, and the commands below it, the manners of a veilor
// program: [Exit] prints errors, and a wrong flag is a mistake of usage.
func Prepare(root *cobra.Command) *cobra.Command {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Usage(err) })
	return Group(root)
}

// Group is cmd as a command that only has others below it.
func Group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Usagef("unknown command %q", args[0])
		}
		cmd.SetOut(cmd.ErrOrStderr())
		cmd.Help()
		return Usagef("no command given")
	}
	return cmd
}

// NoArgs refuses arguments.
func NoArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef("%q: no argument is wanted here", args[0])
	}
	return nil
}

// AtMostOne refuses a second argument; what says what the first is.
func AtMostOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return Usagef("%q: %s is all that is wanted here", args[1], what)
		}
		return nil
	}
}

// Exit says on stderr why cmd ended with err, and what to do, and returns the
// exit code of the program.
func Exit(stderr io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return Done
	}
	fmt.Fprintf(stderr, "%s: %v\n", cmd.Root().Name(), err)
	if todo := advice.Todo(err); todo != "" {
		fmt.Fprintf(stderr, "  %s\n", strings.ReplaceAll(todo, "\n", "\n  "))
	}
	if errors.As(err, new(usageError)) {
		fmt.Fprintf(stderr, "  See: %s --help\n", cmd.CommandPath())
		return Misused
	}
	return Failed
}
