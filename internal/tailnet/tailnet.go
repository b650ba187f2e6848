// Package tailnet speaks with the tailscaled of this machine: joins, leaves,
// and says how it is.
//
// tailscaled's own health is slow and partly silent about a blocked network
// (137 s until it reports a lost relay, "Running" throughout), so nothing here
// says whether a service is reachable. Package mesh knows that.
package tailnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/joinkey"
)

const (
	// Socket is where tailscaled listens (its --socket default on Linux).
	Socket = "/run/tailscale/tailscaled.sock"
	// Unit is the service that runs it.
	Unit = "tailscaled.service"

	// pollEvery is how often status is read while joining; the bus tells most
	// changes, but not every change of the last login error.
	pollEvery = 250 * time.Millisecond
	// startLimit is how long a started tailscaled may take to open its socket.
	startLimit = 10 * time.Second
)

// Why a join fails, as Headscale says it (hscontrol/types/preauth_key.go).
var (
	ErrUsed    = errors.New("key was used before")
	ErrExpired = errors.New("key has expired")
	ErrUnknown = errors.New("key is not known")
	ErrClock   = errors.New("clock is wrong")
	// ErrStopped says that no tailscaled runs.
	ErrStopped = errors.New("tailscaled is not running")
	// ErrJoined says that there is nothing to join.
	ErrJoined = errors.New("already joined")
)

// Client speaks with one tailscaled.
type Client struct {
	lc local.Client
}

// New makes a client for the tailscaled that listens on the given socket.
func New(socket string) *Client {
	return &Client{lc: local.Client{
		OmitAuth: true, // which only macOS has
		// The library's own dialler waits two seconds for a missing socket.
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// State is how this machine stands in the tailnet.
type State struct {
	// Joined says that the machine has an identity there, connected or not.
	Joined bool
	// Backend is tailscaled's own word: "Running", "NeedsLogin" ….
	Backend  string
	Hostname string
	// Address is the machine's IPv4; invalid if it has none.
	Address netip.Addr
	Tags    []string
	// Problem is the last login error, or "".
	Problem string
	paths   map[netip.Addr]string
}

// Path says how packets to peer travel: "direct", "relay" or "" if unknown.
func (s State) Path(peer netip.Addr) string { return s.paths[peer] }

// State asks tailscaled. It returns ErrStopped if none runs.
func (c *Client) State(ctx context.Context) (State, error) {
	st, err := c.lc.Status(ctx)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return State{}, ErrStopped
		}
		return State{}, fmt.Errorf("asking tailscaled: %w", err)
	}
	return state(st), nil
}

func state(st *ipnstate.Status) State {
	s := State{
		Backend: st.BackendState,
		Joined:  st.HaveNodeKey && st.BackendState != ipn.NeedsLogin.String() && st.BackendState != ipn.NoState.String(),
		Problem: loginError(st.Health),
		paths:   map[netip.Addr]string{},
	}
	for _, a := range st.TailscaleIPs {
		if a.Is4() {
			s.Address = a
		}
	}
	if st.Self != nil {
		s.Hostname = st.Self.HostName
		if st.Self.Tags != nil {
			s.Tags = st.Self.Tags.AsSlice()
		}
	}
	for _, p := range st.Peer {
		if p == nil {
			continue
		}
		path := ""
		switch {
		case p.CurAddr != "":
			path = "direct"
		case p.Relay != "" && p.Active:
			path = "relay"
		}
		for _, a := range p.TailscaleIPs {
			s.paths[a] = path
		}
	}
	return s
}

// loginError picks the last login error out of tailscaled's health texts
// (health/warnings.go: "… The last login error was: %v").
func loginError(texts []string) string {
	for _, t := range texts {
		if _, why, ok := strings.Cut(t, "last login error was: "); ok {
			return strings.TrimSpace(why)
		}
	}
	return ""
}

// Join makes this machine a node of the control server at controlURL, with a
// pre-auth key. tailscaled must run. On failure the machine is as it was: not
// joined. The error is an advice.Error where a person can help.
func (c *Client) Join(ctx context.Context, controlURL string, key joinkey.Key, hostname string) (State, error) {
	st, err := c.ready(ctx)
	if err != nil {
		return State{}, err
	}
	if st.Joined {
		return st, Joined(st)
	}
	state, err := c.login(ctx, controlURL, key, hostname)
	if err != nil {
		err = hide(err, key)
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
		defer cancel()
		if out := c.lc.Logout(clean); out != nil {
			err = errors.Join(err, fmt.Errorf("undoing the half of it that was done: %w", out))
		}
		return State{}, err
	}
	return state, nil
}

// Joined is the error for a machine that has joined already.
func Joined(st State) error {
	return &advice.Error{
		Text:  fmt.Sprintf("this laptop has joined already, as %s (%s)", st.Hostname, st.Address),
		Todo:  "`veilor status` shows how it is. To join with another key: `run0 veilor leave`, then `run0 veilor join`.",
		Cause: ErrJoined,
	}
}

// ready waits for a tailscaled that was just started.
func (c *Client) ready(ctx context.Context) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		st, err := c.State(ctx)
		if err == nil && st.Backend != ipn.NoState.String() {
			return st, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil {
				err = errors.New("it does not get beyond its start")
			}
			return State{}, &advice.Error{
				Text:  fmt.Sprintf("tailscaled does not answer: %v", err),
				Todo:  "`systemctl status tailscaled` says why.",
				Cause: err,
			}
		}
	}
}

// login hands the key over and waits for the outcome.
func (c *Client) login(ctx context.Context, controlURL string, key joinkey.Key, hostname string) (State, error) {
	watcher, err := c.lc.WatchIPNBus(ctx, ipn.NotifyInitialState|ipn.NotifyInitialHealthState)
	if err != nil {
		return State{}, fmt.Errorf("watching tailscaled: %w", err)
	}
	defer watcher.Close()

	prefs := ipn.NewPrefs()
	prefs.ControlURL = controlURL
	prefs.Hostname = hostname
	prefs.WantRunning = true
	prefs.CorpDNS = false  // names are ours: MagicDNS fights the system's resolver
	prefs.RouteAll = false // nobody's subnets but the tailnet's own addresses
	prefs.AutoUpdate.Check = false
	if err := c.lc.Start(ctx, ipn.Options{AuthKey: key.Secret(), UpdatePrefs: prefs}); err != nil {
		return State{}, fmt.Errorf("handing the key to tailscaled: %w", err)
	}
	if err := c.lc.StartLoginInteractive(ctx); err != nil {
		return State{}, fmt.Errorf("logging in: %w", err)
	}

	// The bus is read by a goroutine of its own, since Next blocks; it ends
	// when the watcher is closed.
	news := make(chan ipn.Notify)
	lost := make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			n, err := watcher.Next()
			if err != nil {
				lost <- err
				return
			}
			select {
			case news <- n:
			case <-done:
				return
			}
		}
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last string // login error that may pass
	for {
		select {
		case <-ctx.Done():
			return State{}, timedOut(ctx, last)
		case err := <-lost:
			if ctx.Err() != nil {
				return State{}, timedOut(ctx, last)
			}
			return State{}, fmt.Errorf("watching tailscaled: %w", err)
		case n := <-news:
			if n.ErrMessage != nil {
				return State{}, failure(*n.ErrMessage)
			}
			if n.Health != nil {
				if why := loginError(healthTexts(n.Health)); why != "" {
					if last = why; final(why) {
						return State{}, failure(why)
					}
				}
			}
			if n.State == nil || *n.State != ipn.Running {
				continue
			}
		case <-tick.C:
		}
		st, err := c.State(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return State{}, err
		case st.Backend == ipn.Running.String() && st.Address.IsValid():
			return st, nil
		case st.Backend == ipn.NeedsMachineAuth.String():
			return State{}, &advice.Error{Text: "the control server wants the operator to approve this laptop", Todo: "Ask the operator, then run `run0 veilor join` again with a new key."}
		case st.Problem != "":
			if last = st.Problem; final(last) {
				return State{}, failure(last)
			}
		}
	}
}

func healthTexts(h *health.State) []string {
	var texts []string
	for _, w := range h.Warnings {
		texts = append(texts, w.Text)
	}
	return texts
}

// causes maps what control server and tailscaled say to what it means. final
// ones do not pass by waiting.
var causes = []struct {
	says  string
	is    error
	final bool
	text  string
	todo  string
}{
	{"authkey already used", ErrUsed, true, "this key was used before", "A key opens one laptop, once. Get a new one where you got this one; the old one stays spent."},
	{"authkey expired", ErrExpired, true, "this key has expired", "A key lasts a day. Get a new one where you got this one."},
	{"invalid pre auth key", ErrUnknown, true, "the control server does not know this key", "It may have been withdrawn, or damaged in copying. Copy it again, or get a new one."},
	{"authkey not found", ErrUnknown, true, "the control server does not know this key", "It may have been withdrawn, or damaged in copying. Copy it again, or get a new one."},
	{"certificate has expired or is not yet valid", ErrClock, true, "the control server's certificate is not valid at the time that this clock shows", "Set the clock with: timedatectl set-ntp true     then: run0 veilor join"},
	{"signed by unknown authority", nil, true, "whoever answers for the control server is not the control server", "A portal page or someone on this network stands in between. Try another network."},
	{"failed to resolve", nil, false, "the control server's name is not found", "The network's DNS may be hiding it. Try another network, such as a phone's."},
	{"no such host", nil, false, "the control server's name is not found", "The network's DNS may be hiding it. Try another network, such as a phone's."},
	{"connection refused", nil, false, "the control server refuses connections", "This network may be blocking it, or it is being restarted. Try again, or try another network."},
	{"connection reset", nil, false, "connections to the control server are cut", "This network may be blocking it. Joining needs it once: try another network, such as a phone's."},
	{"timeout", nil, false, "the control server does not answer", "This network may be blocking it. Joining needs it once: try another network, such as a phone's."},
	{"deadline exceeded", nil, false, "the control server does not answer", "This network may be blocking it. Joining needs it once: try another network, such as a phone's."},
}

// final says whether waiting on is pointless.
func final(says string) bool {
	for _, c := range causes {
		if strings.Contains(says, c.says) {
			return c.final
		}
	}
	return false
}

// failure is the error for what tailscaled says.
func failure(says string) error {
	for _, c := range causes {
		if strings.Contains(says, c.says) {
			return &advice.Error{Text: c.text, Todo: c.todo, Cause: c.is}
		}
	}
	return &advice.Error{Text: "joining failed: " + says, Todo: "Tell the operator this line."}
}

func timedOut(ctx context.Context, last string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if last != "" {
		return failure(last)
	}
	return &advice.Error{
		Text:  "the control server did not let us in within the time allowed",
		Todo:  "This network may be slow or blocking it. Try again with a longer --timeout, or try another network.",
		Cause: ctx.Err(),
	}
}

// hide keeps the key out of an error that may repeat it.
func hide(err error, key joinkey.Key) error {
	if !strings.Contains(err.Error(), key.Secret()) {
		return err
	}
	return &advice.Error{Text: strings.ReplaceAll(err.Error(), key.Secret(), key.String()), Todo: advice.Todo(err)}
}

// Leave gives this machine's identity up and returns how it stood before.
// tailscaled must run.
func (c *Client) Leave(ctx context.Context) (State, error) {
	st, err := c.ready(ctx)
	if err != nil {
		return State{}, err
	}
	if err := c.lc.Logout(ctx); err != nil {
		return st, fmt.Errorf("logging out: %w", err)
	}
	return st, nil
}
