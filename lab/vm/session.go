package vm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// How long a machine may take, under emulation on two busy cores: several
// times what was measured (prompt 35-45 s, login 40 s more, shutdown 15 s).
const (
	promptTimeout   = 4 * time.Minute
	loginTimeout    = 5 * time.Minute
	shellTimeout    = 2 * time.Minute
	commandTimeout  = 3 * time.Minute
	poweroffTimeout = 3 * time.Minute
)

var (
	passphrasePrompt = regexp.MustCompile(`(?i)enter passphrase for disk[^\r\n]*: *`)
	// The name of the host stands before it, a banner above it.
	loginPrompt    = regexp.MustCompile(`[^\r\n]* login: `)
	passwordPrompt = regexp.MustCompile(`Password: `)
	bootAnswer     = regexp.MustCompile(`(?i)(enter passphrase for disk[^\r\n]*: *)|([^\r\n]* login: )|(System halted|emergency mode|Cannot open access to console)`)
	loginAnswer    = regexp.MustCompile(`(Login incorrect)|([#$] (?:\x1b\[[0-9;?]*[a-zA-Z])*$)`)
)

var (
	// ErrPassphrase says that the disk did not open.
	ErrPassphrase = errors.New("the passphrase was refused")
	// ErrLogin says that name or password were wrong.
	ErrLogin = errors.New("the login was refused")
	// ErrHalted says that the machine gave up booting.
	ErrHalted = errors.New("the machine halted while booting")
)

// Unlock waits for the prompt of the encrypted root and types the passphrase.
func (m *Machine) Unlock(ctx context.Context, passphrase string) error {
	if _, err := m.Console.Expect(ctx, promptTimeout, passphrasePrompt); err != nil {
		return err
	}
	return m.Console.Type(ctx, passphrase+"\n")
}

// AwaitLogin waits, after Unlock, for the login prompt. It returns
// ErrPassphrase if the machine asks for the passphrase again; then the prompt
// is there already: answer it with Retry.
func (m *Machine) AwaitLogin(ctx context.Context) error {
	got, err := m.Console.Expect(ctx, loginTimeout, bootAnswer)
	switch {
	case err != nil:
		return err
	case got[1] != "":
		return ErrPassphrase
	case got[3] != "":
		return ErrHalted
	}
	return nil
}

// Retry answers the prompt that AwaitLogin has just seen.
func (m *Machine) Retry(ctx context.Context, passphrase string) error {
	return m.Console.Type(ctx, passphrase+"\n")
}

// Login logs in at the prompt that AwaitLogin has seen, and makes the shell
// one that Run can talk to.
func (m *Machine) Login(ctx context.Context, user, password string) error {
	c := m.Console
	if err := c.Type(ctx, user+"\n"); err != nil {
		return err
	}
	if _, err := c.Expect(ctx, shellTimeout, passwordPrompt); err != nil {
		return err
	}
	if err := c.Type(ctx, password+"\n"); err != nil {
		return err
	}
	got, err := c.Expect(ctx, shellTimeout, loginAnswer)
	if err != nil {
		return err
	}
	if got[1] != "" {
		return ErrLogin
	}
	// From here on nobody but us writes here: no echo, no kernel messages, no
	// status of units (SIGRTMIN+21, systemd(1)).
	quiet := `stty -echo -onlcr; export PS1= PS2= TERM=dumb PAGER=cat SYSTEMD_PAGER= SYSTEMD_COLORS=0; dmesg -n 1; kill -s RTMIN+21 1`
	if err := c.Type(ctx, quiet+"\n"); err != nil {
		return err
	}
	// Status lines that were on their way come before this answer.
	_, err = m.Run(ctx, "true")
	return err
}

// Boot brings a machine from power-on to a shell.
func (m *Machine) Boot(ctx context.Context, passphrase, user, password string) error {
	if err := m.Unlock(ctx, passphrase); err != nil {
		return err
	}
	if err := m.AwaitLogin(ctx); err != nil {
		return err
	}
	return m.Login(ctx, user, password)
}

// Result of a command.
type Result struct {
	// Output is standard output and error together, without a final newline.
	Output string
	// Code is the exit code.
	Code int
}

// CommandError is a command's non-zero exit, for callers of Must.
type CommandError struct {
	Command string
	Result
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%q in the machine: exit code %d: %s", brief(e.Command), e.Code, e.Output)
}

// brief is a command line for an error.
func brief(command string) string {
	if len(command) <= briefLength {
		return command
	}
	return command[:briefLength] + "..."
}

// briefLength of a command line still tells which one it was.
const briefLength = 120

// typeWidth is how long a typed line may be: a terminal in line mode drops what
// is over 4095 bytes (termios(3)).
const typeWidth = 2000

// Run runs a command line in the shell that Login left, and waits for its end.
// It may span lines and change the shell (cd, variables). A non-zero exit code
// is no error. One command runs at a time.
func (m *Machine) Run(ctx context.Context, command string) (Result, error) {
	m.shell.Lock()
	defer m.shell.Unlock()
	m.runs++
	mark := fmt.Sprintf("lab-%d-%d", m.started.UnixNano(), m.runs)
	// The command travels as base64, so that no quoting in it matters and the
	// marks are never in what is typed, should the terminal echo after all.
	code := base64.StdEncoding.EncodeToString([]byte(command))
	var b strings.Builder
	b.WriteString("_c=\n")
	for len(code) > 0 {
		n := min(typeWidth, len(code))
		fmt.Fprintf(&b, "_c=${_c}%s\n", code[:n])
		code = code[n:]
	}
	head, tail, _ := strings.Cut(mark, "-")
	fmt.Fprintf(&b, `printf '\n%%s-%%s<\n' %s %s; eval "$(printf %%s $_c | base64 -d)" </dev/null 2>&1; printf '\n>%%s-%%s %%d\n' %s %s $?`+"\n", head, tail, head, tail)
	if err := m.Console.Send(b.String()); err != nil {
		return Result{}, err
	}
	timeout := commandTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(0, time.Until(deadline)) // the caller knows better
	}
	quoted := regexp.QuoteMeta(mark)
	got, err := m.Console.Expect(ctx, timeout, regexp.MustCompile(`(?s)`+quoted+`<\r?\n(.*?)\r?\n>`+quoted+` (\d+)\r?\n`))
	if err != nil {
		return Result{}, fmt.Errorf("running %q in the machine: %w", brief(command), err)
	}
	exit, err := strconv.Atoi(got[2])
	if err != nil {
		return Result{}, fmt.Errorf("running %q in the machine: %w", brief(command), err)
	}
	out := strings.ReplaceAll(got[1], "\r\n", "\n")
	return Result{Output: strings.TrimSuffix(out, "\n"), Code: exit}, nil
}

// Must is Run for commands that have to succeed: it returns the output, and an
// error for any exit code but 0.
func (m *Machine) Must(ctx context.Context, command string) (string, error) {
	r, err := m.Run(ctx, command)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", &CommandError{command, r}
	}
	return r.Output, nil
}

// Reboot asks the shell for a reboot. The next prompt is the passphrase's.
func (m *Machine) Reboot(ctx context.Context) error {
	return m.Console.Send("systemctl reboot\n")
}

// Poweroff asks the shell for a clean shutdown and waits for the machine to
// end. It is killed if it does not, and that is an error.
func (m *Machine) Poweroff(ctx context.Context) error {
	if err := m.Console.Send("systemctl poweroff\n"); err != nil {
		return err
	}
	timer := time.NewTimer(poweroffTimeout)
	defer timer.Stop()
	select {
	case <-m.done:
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("powering the machine off: %w (%v)", ErrTimeout, poweroffTimeout), m.Kill())
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("powering the machine off: %w", context.Cause(ctx)), m.Kill())
	}
}
