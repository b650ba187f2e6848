package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/headscale"
	"github.com/veilor/veilor-os/internal/revoke"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tailnet"
	"github.com/veilor/veilor-os/internal/tier"
)

const (
	// defaultEdge is where a server's veilor-ygg takes orders.
	defaultEdge = "/run/veilor-ygg/control.sock"
	// rootQueue is where root's orders are kept.
	rootQueue = "/var/lib/veilor-forge/revoke"
	// askLimit is for what is only asked to find out who is meant: an answer
	// takes milliseconds, and whoever gives none is asked again when it is closed.
	askLimit = 3 * time.Second
	// maxAPIKey bounds what is read as an API key; one has 87 characters.
	maxAPIKey = 4 << 10
)

// revocation is one run of "policy revoke".
type revocation struct {
	checkout
	wanted           revoke.Wanted
	keys, edges      []string
	control, keyFile string
	machines, dir    string
	tailscaled       string
	here, host       bool
	resume, asJSON   bool
	wait             time.Duration
	apiKey           string
	stdout, stderr   io.Writer
	stdin            io.Reader
	site             *site.Site
	queue            *revoke.Queue
}

func policyRevoke() *cobra.Command {
	var r revocation
	c := &cobra.Command{
		Use:   "revoke [NAME]",
		Short: "Take a machine off every layer, and say what is confirmed",
		Long: `revoke takes a machine off Yggdrasil and the tailnet, for good, and ends its
live flows: every edge refuses its key and closes what is open; Headscale
deletes its node and the keys it could come back with; with --here, this
machine's own packet filter drops it, its tailscaled has heard, and its sockets
with it are ended. Then all of them are read again, and the table says who has confirmed what, and when.

The machine is named as Headscale or an edge knows it, or by --node or --key.
What joins a tailnet node with a Yggdrasil key is the name that the edge was
told, or a list of machines (--machines, as policy render reads it), in which it
is also marked as revoked. If no edge knows the name, give the key; if Headscale
does not, the node's id (its owner may have renamed it).

Whoever does not answer is asked again by "policy revoke --resume": the order is
a file under --queue before anything is done. Exit code 1 means that somebody has
not confirmed yet, 0 that nobody lets the machine in any more. Running it again
changes nothing.

An edge elsewhere is reached by forwarding its control socket:
  ssh -fNL /run/user/0/edge-2.sock:/run/veilor-ygg/control.sock edge-2

The API key is read from --api-key-file (- is standard input), or taken from
$` + apiKeyEnv + `.`,
		Example: `  veilor-forge policy revoke laptop-7f --here
  veilor-forge policy revoke laptop-7f --edge unix:///run/veilor-ygg/control.sock --edge unix:///run/user/0/edge-2.sock --control https://hs.example.org --api-key-file hs.key
  veilor-forge policy revoke --node 7 --key 3f9c…
  veilor-forge policy revoke --resume --wait 1h`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%d names; revoke one machine at a time", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.wanted.Name = args[0]
			}
			r.stdout, r.stderr, r.stdin = c.OutOrStdout(), c.ErrOrStderr(), c.InOrStdin()
			if err := r.prepare(); err != nil {
				return err
			}
			return r.run(c.Context())
		},
	}
	r.checkout.flags(c)
	f := c.Flags()
	f.StringSliceVar(&r.wanted.Nodes, "node", nil, "Headscale's `id` of its node (several: repeat)")
	f.StringSliceVar(&r.keys, "key", nil, "its Yggdrasil `key`, 64 hex digits (several: repeat)")
	f.BoolVar(&r.wanted.NoKey, "no-key", false, "it is not in Yggdrasil: a phone, for example")
	f.BoolVar(&r.wanted.NoNode, "no-node", false, "it is not in the tailnet")
	f.StringSliceVar(&r.edges, "edge", nil, "`URL` of an edge's control socket (several: repeat; default: unix://"+defaultEdge+" if it is there)")
	f.StringVar(&r.control, "control", "", "`URL` of Headscale (default: control.url of the site)")
	f.StringVar(&r.keyFile, "api-key-file", "", "`file` with Headscale's API key; - is standard input")
	f.StringVar(&r.machines, "machines", "", "`file` (JSON) with the machines; the revoked one is marked in it")
	f.BoolVar(&r.here, "here", false, "this machine serves the fleet: close its packet filter and sockets too")
	f.StringVar(&r.tailscaled, "tailscaled-socket", tailnet.Socket, "`path` of this machine's tailscaled, for --here")
	f.BoolVar(&r.host, "host", false, "it may be a host of the site")
	f.StringVar(&r.dir, "queue", "", "`directory` of the orders (default: "+rootQueue+" for root, else veilor/revoke under $XDG_STATE_HOME)")
	f.BoolVar(&r.resume, "resume", false, "go on with the orders that are pending, of every machine")
	f.DurationVar(&r.wait, "wait", 0, "keep trying for so long while somebody has not confirmed")
	f.BoolVar(&r.asJSON, "json", false, "answer in JSON")
	return c
}

// prepare checks what was given and reads what it names.
func (r *revocation) prepare() error {
	named := r.wanted.Name != "" || len(r.wanted.Nodes) > 0 || len(r.keys) > 0
	switch {
	case r.resume && named:
		return usageError{errors.New("--resume goes on with every pending order; leave the machine out")}
	case !r.resume && !named:
		return usageError{errors.New("nobody named; write NAME, --node ID or --key HEX, or --resume for the pending orders")}
	case r.wait < 0:
		return usageError{fmt.Errorf("--wait %v: write a time, for example 10m", r.wait)}
	case r.wanted.NoKey && len(r.keys) > 0, r.wanted.NoNode && len(r.wanted.Nodes) > 0, r.wanted.NoKey && r.wanted.NoNode:
		return usageError{errors.New("--no-key, --no-node and what is named contradict each other")}
	}
	for _, k := range r.keys {
		key, err := edge.ParseKey(k)
		if err != nil {
			return usageError{fmt.Errorf("--key: %w", err)}
		}
		r.wanted.Keys = append(r.wanted.Keys, key)
	}
	for _, e := range r.edges {
		if _, err := edge.NewClient(e); err != nil {
			return usageError{fmt.Errorf("--edge: %w", err)}
		}
	}
	// On a server there may be no sources; everything can be said with flags.
	s, err := r.load()
	if err != nil && (r.checkout.site != "" || r.control == "" && !r.wanted.NoNode) {
		return err
	}
	if r.site = s; s != nil && r.control == "" {
		r.control = s.Control.URL
	}
	if !r.wanted.NoNode || r.control != "" {
		u, err := url.Parse(r.control)
		if err != nil || u.Host == "" || (u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname()))) {
			return usageError{fmt.Errorf("--control %q: the API key goes there, so it must be an https URL", r.control)}
		}
	}
	// With --no-node too: an order may be pending that waits for the tailnet.
	if err := r.readAPIKey(); err != nil {
		return err
	}
	if r.dir == "" {
		if r.dir, err = queueDir(); err != nil {
			return err
		}
	}
	doors := revoke.Doors{Headscale: r.headscale}
	r.queue = &revoke.Queue{Dir: r.dir, Open: doors.Open, Now: time.Now, After: time.After}
	return nil
}

func queueDir() (string, error) {
	if os.Geteuid() == 0 {
		return rootQueue, nil
	}
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", usageError{fmt.Errorf("%w; name a directory for the orders with --queue", err)}
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "veilor", "revoke"), nil
}

// readAPIKey reads it if there is one. Without, the edges are closed all the
// same, and the order waits for a run that has one.
func (r *revocation) readAPIKey() error {
	r.apiKey = os.Getenv(apiKeyEnv)
	if r.keyFile == "" {
		return nil
	}
	in := r.stdin
	if r.keyFile != "-" {
		f, err := os.Open(r.keyFile)
		if err != nil {
			return fmt.Errorf("reading the API key: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxAPIKey))
	if err != nil {
		return fmt.Errorf("reading the API key: %w", err)
	}
	r.apiKey = strings.TrimSpace(string(text))
	return nil
}

// headscale connects to the one server that the API key is for.
func (r *revocation) headscale(at string) (*headscale.Client, error) {
	switch {
	case strings.TrimSuffix(at, "/") != strings.TrimSuffix(r.control, "/"):
		return nil, fmt.Errorf("%w: this order is for %s, and the API key for %s; say --control %s with its key", revoke.ErrClosed, at, r.control, at)
	case r.apiKey == "":
		return nil, fmt.Errorf("%w: no API key; make one with `headscale apikeys create` on the server, put it into $%s, and `veilor-forge policy revoke --resume`", revoke.ErrClosed, apiKeyEnv)
	}
	return headscale.NewClient(at, r.apiKey, &http.Client{Timeout: callLimit}), nil
}

func (r *revocation) run(ctx context.Context) error {
	var orders []revoke.Order
	var lost error
	if r.resume {
		var err error
		if orders, err = r.queue.Pending(); err != nil {
			lost = err
		}
		if len(orders) == 0 && lost == nil {
			fmt.Fprintln(r.stderr, "no order is pending")
		}
	} else {
		subject, err := r.find(ctx)
		if err != nil {
			return err
		}
		places, err := r.places()
		if err != nil {
			return err
		}
		o, err := r.queue.Put(subject, places...)
		switch {
		case err != nil && o.ID == "":
			return err
		case err != nil:
			// A full disk must not keep the door open.
			lost = fmt.Errorf("%w; it is revoked now, as far as it can be, but nobody remembers it: make room and run this again", err)
			fmt.Fprintln(r.stderr, lost)
		}
		orders = []revoke.Order{o}
	}
	tried, err := r.try(ctx, orders)
	if lost == nil {
		lost = err
	}
	if err := r.print(tried); err != nil {
		return err
	}
	if lost != nil {
		return lost
	}
	return unconfirmed(tried)
}

func (r *revocation) try(ctx context.Context, orders []revoke.Order) ([]revoke.Order, error) {
	if r.wait == 0 {
		return r.queue.Try(ctx, orders...)
	}
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	return r.queue.Finish(ctx, orders...)
}

// unconfirmed is the error that gives exit code 1.
func unconfirmed(orders []revoke.Order) error {
	open, names := 0, []string{}
	for _, o := range orders {
		if n := len(o.Open()); n > 0 {
			open += n
			names = append(names, o.Subject.Name)
		}
	}
	if open == 0 {
		return nil
	}
	verb := "have"
	if open == 1 {
		verb = "has"
	}
	return fmt.Errorf("%d of the places %s not confirmed yet for %s; the order is kept: try again with `veilor-forge policy revoke --resume`", open, verb, strings.Join(names, ", "))
}

// places are those that must confirm.
func (r *revocation) places() ([]revoke.Place, error) {
	var ps []revoke.Place
	if len(r.edges) == 0 && !r.wanted.NoKey {
		if _, err := os.Stat(defaultEdge); err != nil {
			return nil, usageError{fmt.Errorf("no edge: name each with --edge unix://%s, or say --no-key if the machine is not in Yggdrasil", defaultEdge)}
		}
		r.edges = []string{"unix://" + defaultEdge}
	}
	for _, e := range r.edges {
		ps = append(ps, revoke.Place{Kind: revoke.Edge, At: e})
	}
	if !r.wanted.NoNode {
		ps = append(ps, revoke.Place{Kind: revoke.Tailnet, At: r.control})
	}
	if r.here {
		ps = append(ps, revoke.Place{Kind: revoke.Here, At: r.tailscaled})
	}
	if r.machines != "" {
		at, err := filepath.Abs(r.machines)
		if err != nil {
			return nil, err
		}
		ps = append(ps, revoke.Place{Kind: revoke.List, At: at})
	}
	return ps, nil
}

// find asks everybody who is meant, all at once: one that hangs keeps nobody from
// being asked. Whoever does not answer is no reason to wait: the order goes to
// them by name.
func (r *revocation) find(ctx context.Context) (revoke.Subject, error) {
	places, err := r.places()
	if err != nil {
		return revoke.Subject{}, err
	}
	var k revoke.Known
	var peers []headscale.Node
	var mu sync.Mutex
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var asked sync.WaitGroup
	for _, p := range places {
		if p.Kind == revoke.List {
			data, err := os.ReadFile(p.At)
			if err == nil {
				k.Machines, err = tier.ReadMachines(bytes.NewReader(data))
			}
			if err != nil {
				return revoke.Subject{}, fmt.Errorf("%s: %w", r.machines, err)
			}
			continue
		}
		asked.Go(func() {
			edges, nodes, err := r.ask(ask, p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				k.Partly = true
				fmt.Fprintf(r.stderr, "%s cannot be asked who is meant: %v\n", p, err)
			}
			k.Edges = append(k.Edges, edges...)
			if p.Kind == revoke.Here {
				peers = nodes
			} else {
				k.Nodes = append(k.Nodes, nodes...)
			}
		})
	}
	asked.Wait()
	// Its tailscaled knows ids and addresses when Headscale does not answer.
	if len(k.Nodes) == 0 {
		k.Nodes = peers
	}
	past, err := r.queue.Past()
	if err != nil {
		fmt.Fprintln(r.stderr, err)
	}
	pending, _ := r.queue.Pending() // its error is for --resume
	k.Past = slices.Concat(past, pending)
	s, err := k.Find(r.wanted)
	if err != nil {
		return s, err
	}
	return s, r.mayBe(s)
}

// ask asks one place whom it knows.
func (r *revocation) ask(ctx context.Context, p revoke.Place) ([]edge.Node, []headscale.Node, error) {
	switch p.Kind {
	case revoke.Edge:
		c, err := edge.NewClient(p.At)
		if err != nil {
			return nil, nil, err
		}
		l, err := c.Nodes(ctx)
		return l.Nodes, nil, err
	case revoke.Tailnet:
		c, err := r.headscale(p.At)
		if err != nil {
			return nil, nil, err
		}
		nodes, err := c.Nodes(ctx)
		return nil, nodes, err
	}
	peers, err := revoke.Peers(ctx, p.At)
	return nil, peers, err
}

// mayBe refuses a host of the site that was not asked for as one, and says what
// no order reaches: laptops have the site's hosts from their image or directory.
func (r *revocation) mayBe(s revoke.Subject) error {
	if r.site == nil {
		return nil
	}
	for _, h := range r.site.Hosts {
		is := strings.EqualFold(h.Name, s.Name) || h.Yggdrasil != "" && slices.Contains(s.Keys, h.Yggdrasil) || h.Tailnet.IsValid() && slices.Contains(s.Addresses, h.Tailnet)
		switch {
		case !is:
		case !r.host:
			return usageError{fmt.Errorf("%s is %s, a host of this site (tier %s); if it is to go, say --host, and take it out of the site", s.Name, h.Name, h.Tier)}
		case h.Yggdrasil != "" && reachesAll(r.site, h.Tier):
			fmt.Fprintf(r.stderr, "laptops let %s (tier %s) in on ygg0 until they have an image or a directory without it: take it out of the site, and publish both\n", h.Name, h.Tier)
		}
	}
	return nil
}

// reachesAll says whether a tier may open laptops, too.
func reachesAll(s *site.Site, of string) bool {
	p, err := tier.New(s)
	return err == nil && slices.ContainsFunc(p.Rules(), func(r tier.Rule) bool { return r.Tier == of && r.Target.All })
}

// answer is what --json prints; members are only ever added.
type answer struct {
	Orders []orderAnswer `json:"orders"`
}

type orderAnswer struct {
	revoke.Subject
	At     time.Time     `json:"at"`
	Done   bool          `json:"done"`
	Places []placeAnswer `json:"places"`
}

type placeAnswer struct {
	revoke.Place
	Confirmed *time.Time `json:"confirmed"`
	What      string     `json:"what,omitempty"`
	Error     string     `json:"error,omitempty"`
}

func (r *revocation) print(orders []revoke.Order) error {
	a := answer{Orders: []orderAnswer{}}
	for _, o := range orders {
		oa := orderAnswer{Subject: o.Subject, At: o.At, Done: o.Done()}
		for _, p := range o.Places {
			pa := placeAnswer{Place: p}
			if c, ok := o.Confirmed[p.String()]; ok {
				pa.Confirmed, pa.What = &c.At, c.What
			} else if err := o.Failed[p.String()]; err != nil {
				pa.Error = err.Error()
			}
			oa.Places = append(oa.Places, pa)
		}
		a.Orders = append(a.Orders, oa)
	}
	if r.asJSON {
		return printJSON(r.stdout, a)
	}
	for _, o := range a.Orders {
		if err := o.write(r.stdout); err != nil {
			return err
		}
	}
	return nil
}

// write is for people.
func (o orderAnswer) write(w io.Writer) error {
	who := []string{}
	for _, n := range o.Nodes {
		who = append(who, "node "+n)
	}
	for _, k := range o.Keys {
		who = append(who, fmt.Sprintf("key %.8s…", k))
	}
	head := o.Name
	if len(who) > 0 {
		head += " (" + strings.Join(who, ", ") + ")"
	}
	fmt.Fprintln(w, head)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var last time.Time
	for _, p := range o.Places {
		state, what := "NOT CONFIRMED", p.Error
		if p.Confirmed != nil {
			state, what = "confirmed "+p.Confirmed.Local().Format("15:04:05"), p.What
			if p.Confirmed.After(last) {
				last = *p.Confirmed
			}
		} else if what == "" {
			what = "not tried yet"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", p.Place, state, strings.ReplaceAll(what, "\n", "; "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if o.Done {
		fmt.Fprintf(w, "Nobody lets %s in any more; all of it was read again, %.1f s after the order.\n", o.Name, last.Sub(o.At).Seconds())
	}
	return nil
}
