package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/control"
	"github.com/veilor/veilor-os/internal/joinkey"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/unit"
)

const (
	// joinLimit is the default of --timeout: joining takes 3 s where nothing is
	// in the way, and a slow relay some tens.
	joinLimit = time.Minute
	// maxKeyInput bounds what is read as a key; one has 88 characters.
	maxKeyInput = 4 << 10
	// reachLimit is how long a service may take to answer after joining, and
	// reachEvery how often it is asked.
	reachLimit = 15 * time.Second
	reachEvery = 500 * time.Millisecond
	// httpsPort is where a certificate is expected.
	httpsPort = 443
)

func (a *app) joinCommand() *cobra.Command {
	var (
		keyFile, hostname string
		limit             time.Duration
	)
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Join the tailnet with a key",
		Long: `Join makes this laptop a member of the tailnet with a key, which the operator or
the sign-up page gives out. The key is asked for, or read from a pipe or a file;
it is never part of the command line, where others could see it.

If joining fails, the laptop is as it was.`,
		Example: `  run0 veilor join
  run0 veilor join --key-file /run/media/me/STICK/key`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 { // it may be the key: do not repeat it
				return cli.Usagef("no argument is wanted here; a key is asked for, so that it stays out of the list of processes")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit <= 0 {
				return cli.Usagef("--timeout: %v is no time to join in", limit)
			}
			if err := a.needRoot("join"); err != nil {
				return err
			}
			s, err := site.Load(a.site)
			if err != nil {
				return err
			}
			if hostname == "" {
				hostname = defaultHostname()
			}
			j := joiner{app: a, site: s, hostname: hostname, steps: a.newSteps(cmd.ErrOrStderr())}
			read := func() (string, error) {
				return a.readKey(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr(), keyFile)
			}
			if err := j.run(cmd.Context(), limit, read); err != nil {
				j.steps.fail()
				if errors.Is(err, context.Canceled) {
					return &advice.Error{Text: language().Say("interrupted; this laptop has not joined"), Todo: language().Say("`run0 veilor join` starts again."), Cause: err}
				}
				return err
			}
			return j.welcome(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&keyFile, "key-file", "", "read the key from this file")
	cmd.Flags().StringVar(&hostname, "hostname", "", "name of this laptop in the tailnet (default: its own)")
	cmd.Flags().DurationVar(&limit, "timeout", joinLimit, "give up, and undo, after this time")
	return cmd
}

// readKey takes the key from a file, a pipe, or the person.
func (a *app) readKey(ctx context.Context, stdin io.Reader, stderr io.Writer, file string) (string, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("reading the key: %w", err)
		}
		defer f.Close()
		stdin = f
	} else if f, ok := stdin.(*os.File); ok && a.terminal(f.Fd()) {
		return prompt(ctx, int(f.Fd()), stderr)
	}
	text, err := io.ReadAll(io.LimitReader(bufio.NewReader(stdin), maxKeyInput))
	if err != nil {
		return "", fmt.Errorf("reading the key: %w", err)
	}
	return string(text), nil
}

// prompt asks at a terminal, without echo. The read cannot be interrupted, so it
// has a goroutine of its own, which an interrupted program takes along.
func prompt(ctx context.Context, fd int, stderr io.Writer) (string, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("reading the key: %w", err)
	}
	fmt.Fprint(stderr, language().Say("Paste your key (it does not show): "))
	defer fmt.Fprintln(stderr)
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		answers <- answer{text, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			return "", fmt.Errorf("reading the key: %w", a.err)
		}
		return string(a.text), nil
	case <-ctx.Done():
		term.Restore(fd, before) // the echo
		return "", ctx.Err()
	}
}

// joiner is one attempt to join.
type joiner struct {
	*app
	site     *site.Site
	hostname string
	steps    *steps
	// answers says over which layers each service answers.
	answers []string
	silent  []string
}

func (j *joiner) run(ctx context.Context, limit time.Duration, read func() (string, error)) error {
	if j.quietState() != nil {
		return &advice.Error{Text: language().Say("this laptop is to be quiet, so it joins nothing   [quiet]"), Todo: language().Say("End that first: run0 veilor mesh quiet off")}
	}
	client := tailnet.New(j.tailscaledSocket)
	if st, err := client.State(ctx); err == nil && st.Joined {
		return tailnet.Joined(st)
	}
	text, err := read()
	if err != nil {
		return err
	}
	j.steps.begin("key")
	key, err := joinkey.Parse(text)
	if err != nil {
		return err
	}
	j.steps.end("%s, well-formed", key)

	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	j.steps.begin("control") // which also knows what time it is
	r, err := control.Checker{}.Check(ctx, j.site.Control.URL)
	if err != nil {
		if errors.Is(err, control.ErrClock) {
			j.steps.name = "clock"
		}
		return err
	}
	j.steps.name = "clock"
	switch {
	case !r.HasSkew:
		j.steps.end("not checked: the control server does not tell the time")
	case r.Skew.Abs() <= 2*time.Second: // the server's time has a resolution of 1 s
		j.steps.end("right")
	default:
		j.steps.end("off by %.0f s (`timedatectl set-ntp true` sets it)", r.Skew.Seconds())
	}
	j.steps.begin("control")
	j.steps.took("%s, reachable", r.Took, j.site.ControlHost())

	j.steps.begin("tailnet")
	st, err := j.join(ctx, client, key)
	if err != nil {
		return err
	}
	j.steps.end("joined as %s (%s)", st.Hostname, st.Address)
	for _, v := range j.site.Services {
		j.steps.begin(v.Name)
		j.reach(ctx, v)
	}
	return nil
}

// join starts tailscaled and hands it the key. If that fails, tailscaled is
// stopped and disabled again.
func (j *joiner) join(ctx context.Context, client *tailnet.Client, key joinkey.Key) (tailnet.State, error) {
	err := unit.Start(ctx, tailnet.Unit)
	var st tailnet.State
	if err == nil {
		st, err = client.Join(ctx, j.site.Control.URL, key, j.hostname)
	}
	if err == nil || errors.Is(err, tailnet.ErrJoined) {
		return st, err
	}
	if undo := unit.Stop(context.WithoutCancel(ctx), tailnet.Unit); undo != nil {
		err = errors.Join(err, undo)
	}
	return st, err
}

// reach waits until a service answers over the tailnet. That it does not is no
// failure of joining.
func (j *joiner) reach(ctx context.Context, v site.Service) {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	tick := time.NewTicker(reachEvery)
	defer tick.Stop()
	var (
		over []string // as last heard
		why  = language().Say("no layer answers")
	)
	for {
		services, err := j.services(ctx)
		if err == nil {
			over = nil
		} else if ctx.Err() == nil {
			why = language().Say("the forwarder does not answer: %v", err)
		}
		for _, s := range services {
			for _, l := range s.Layers {
				if s.Name == v.Name && l.State == mesh.Up.String() {
					over = append(over, l.Name)
				}
			}
		}
		if slices.Contains(over, string(mesh.Tailnet)) || ctx.Err() != nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if len(over) == 0 {
		j.steps.end("does not answer yet: %s", why)
		j.silent = append(j.silent, v.Name)
		return
	}
	if err := handshake(context.WithoutCancel(ctx), v); err != nil {
		j.steps.end("answers, but %v", err)
		j.silent = append(j.silent, v.Name)
		return
	}
	j.steps.end("answers over %s", strings.Join(over, language().Say(" and over ")))
	j.answers = append(j.answers, v.Name)
}

// handshakeLimit is for a TLS handshake over the slower layer.
const handshakeLimit = 5 * time.Second

// handshake checks, as a browser would, that a service's certificate is trusted.
func handshake(ctx context.Context, v site.Service) error {
	for _, port := range v.Ports {
		if port != httpsPort {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
		defer cancel()
		d := tls.Dialer{Config: &tls.Config{ServerName: v.Name}}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(v.Loopback, port).String())
		if err != nil {
			var op *net.OpError
			if errors.As(err, &op) {
				err = op.Err
			}
			return errors.New(language().Say("its certificate is not accepted here: %v", err))
		}
		c.Close()
	}
	return nil
}

// welcome says how it ended.
func (j *joiner) welcome(w io.Writer) error {
	line := language().Say("You are in.")
	if len(j.answers) > 0 {
		line += language().Say(" Open https://%s/ in the browser; `veilor status` says how things are, any time.", j.answers[0])
	}
	if len(j.silent) > 0 {
		line += language().Say("\n%s cannot be used yet. Wait a minute and ask `veilor status`; if it stays so, tell the operator.", strings.Join(j.silent, ", "))
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

var notLabel = regexp.MustCompile(`[^a-z0-9-]+`)

// defaultHostname is the machine's own name, or one by chance where that says
// nothing.
func defaultHostname() string {
	name, _ := os.Hostname() // without one there is chance
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Trim(notLabel.ReplaceAllString(name, "-"), "-")
	switch name {
	case "", "localhost", "fedora", "veilor":
		return "laptop-" + strings.ToLower(rand.Text()[:4])
	}
	return name[:min(len(name), 63)]
}

// steps prints what is being done, and how long it took. On a terminal the line
// is there while it lasts.
type steps struct {
	w        io.Writer
	live     bool
	name     string
	began    time.Time
	finished bool
}

func (a *app) newSteps(w io.Writer) *steps {
	f, ok := w.(*os.File)
	// A dumb terminal cannot take a line back.
	live := ok && a.terminal(f.Fd()) && os.Getenv("TERM") != "dumb"
	return &steps{w: w, live: live, finished: true}
}

func (s *steps) begin(name string) {
	s.name, s.began, s.finished = name, time.Now(), false
	if s.live {
		fmt.Fprintf(s.w, "  %-11s …", name)
	}
}

// end finishes the line with what came out, a text of the catalogue.
func (s *steps) end(format string, args ...any) { s.took(format, time.Since(s.began), args...) }

func (s *steps) took(format string, d time.Duration, args ...any) {
	if s.live {
		fmt.Fprint(s.w, "\r\x1b[K") // the line is written anew
	}
	fmt.Fprintf(s.w, "  %-11s %-48s %4.1f s\n", s.name, language().Say(format, args...), d.Seconds())
	s.finished = true
}

// fail ends a line that has no good end.
func (s *steps) fail() {
	if s.finished {
		return
	}
	s.end("failed")
}
