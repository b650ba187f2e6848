package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/message"
)

// Trial is what came of trying one layer of one service.
type Trial struct {
	Layer string `json:"layer"`
	Works bool   `json:"works"`
	// ConnectMS and HandshakeMS are how long TCP and then TLS took.
	ConnectMS   *float64 `json:"connect_ms,omitempty"`
	HandshakeMS *float64 `json:"handshake_ms,omitempty"`
	Error       string   `json:"error,omitempty"`
}

// Trials are those of one service.
type Trials struct {
	Service string  `json:"service"`
	Trials  []Trial `json:"trials"`
}

// TrialsOf turns what the forwarder found into the form for people.
func TrialsOf(name string, checks []forward.Check) Trials {
	out := Trials{Service: name, Trials: []Trial{}}
	for _, c := range checks {
		t := Trial{Layer: string(c.Layer), Works: c.Err == nil, ConnectMS: millis(c.Connect), HandshakeMS: millis(c.Handshake)}
		if c.Err != nil {
			t.Error = c.Err.Error()
		}
		out.Trials = append(out.Trials, t)
	}
	return out
}

func millis(d time.Duration) *float64 {
	if d <= 0 {
		return nil
	}
	v := float64(d.Microseconds()) / 1000
	return &v
}

// Works says whether any layer does.
func (t Trials) Works() bool {
	return slices.ContainsFunc(t.Trials, func(l Trial) bool { return l.Works })
}

// Text writes the answer and the table.
func (t Trials) Text(w io.Writer) error {
	var yes, no []string
	for _, l := range t.Trials {
		if l.Works {
			yes = append(yes, l.Layer)
		} else {
			no = append(no, l.Layer)
		}
	}
	var b strings.Builder
	switch {
	case len(t.Trials) == 0:
		fmt.Fprintf(&b, "%s has no route on any layer\n", t.Service)
	case len(yes) == 0:
		fmt.Fprintf(&b, "%s does not work: %s tried\n", t.Service, strings.Join(no, " and ")+" were")
	case len(no) == 0:
		fmt.Fprintf(&b, "%s works over %s\n", t.Service, strings.Join(yes, " and over "))
	default:
		fmt.Fprintf(&b, "%s works over %s, not over %s\n", t.Service, strings.Join(yes, " and over "), strings.Join(no, " or "))
	}
	if len(t.Trials) > 0 {
		fmt.Fprintf(&b, "  %-11s %-6s %9s %9s\n", "layer", "works", "connect", "TLS")
	}
	for _, l := range t.Trials {
		works := "yes"
		if !l.Works {
			works = "no"
		}
		row := fmt.Sprintf("  %-11s %-6s %9s %9s", l.Layer, works, dash(ms(message.English, l.ConnectMS)), dash(ms(message.English, l.HandshakeMS)))
		if l.Error != "" {
			row += "   " + l.Error
		}
		b.WriteString(row + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Explanation is why a service is reached as it is.
type Explanation struct {
	Service Service `json:"service"`
	// Address is the service's own on this machine, Ports where it listens, and
	// TLSPorts those of them on which a client must name the service.
	Address  string   `json:"address"`
	Ports    []uint16 `json:"ports"`
	TLSPorts []uint16 `json:"tls_ports"`
	// Steps are what a connection would do now.
	Steps []ExplainedStep `json:"steps"`
	// Access is what the policy says of this laptop; null if not asked.
	Access *Access `json:"access,omitempty"`
	// Recent is what happened to the service lately, oldest first.
	Recent []forward.News `json:"recent"`
	// Now is when it was made.
	Now time.Time `json:"now"`
}

// ExplainedStep is one layer in the plan.
type ExplainedStep struct {
	Layer     string `json:"layer"`
	State     string `json:"state"`
	Interface string `json:"interface"`
	Address   string `json:"address"`
	// AfterMS is the head start of the step before it.
	AfterMS int64 `json:"after_ms"`
	// Why says what follows from the state.
	Why string `json:"why"`
}

// Access is what the tier policy decides for this laptop.
type Access struct {
	Tier  string `json:"tier"`
	Allow bool   `json:"allow"`
	Rule  string `json:"rule"`
	Why   string `json:"why"`
}

// recentEvents is how many events explain shows.
const recentEvents = 5

// Explain turns what the forwarder knows of a service, and what happened to it,
// into the form for people.
func Explain(e forward.Explanation, events []forward.News, now time.Time) Explanation {
	out := Explanation{
		Service: Services([]forward.Status{e.Status})[0],
		Address: e.Service.Listen.String(), Ports: e.Service.Ports, TLSPorts: e.Service.TLS,
		Steps: []ExplainedStep{}, Recent: []forward.News{}, Now: now.Truncate(time.Millisecond),
	}
	for _, p := range e.Plan {
		step := ExplainedStep{Layer: string(p.Layer), AfterMS: p.After.Milliseconds()}
		for _, h := range e.Status.Layers {
			if h.Layer == p.Layer {
				step.State, step.Why = h.State.String(), reason(h, now)
			}
		}
		for _, r := range e.Service.Routes {
			if r.Layer == p.Layer {
				step.Interface, step.Address = r.Interface, r.Addr.String()
			}
		}
		out.Steps = append(out.Steps, step)
	}
	for _, n := range events {
		if n.Service == e.Status.Name || n.Service == "" {
			out.Recent = append(out.Recent, n)
		}
	}
	out.Recent = out.Recent[max(0, len(out.Recent)-recentEvents):]
	return out
}

// reason says what a layer's state comes from and what it leads to.
func reason(h mesh.Health, now time.Time) string {
	why := h.Err
	if why == "" {
		why = "no answer"
	}
	switch h.State {
	case mesh.Up:
		if h.Doubt {
			return "it owes an answer just now and is being asked"
		}
		if h.Answer.IsZero() {
			return "it answers"
		}
		return "it answered " + age(message.English, now.Sub(h.Answer)) + " ago"
	case mesh.Suspect:
		return "not first, because it stopped answering (" + why + "); asked every second while the service is used"
	case mesh.Down:
		return "last, and its connections were ended, because it has not answered for 3 s (" + why + "); two answers bring it back"
	case mesh.Off:
		return "nothing to lose by trying: " + why
	}
	return "nobody has tried it yet"
}

// Text writes the answer, the plan, and the rest.
func (e Explanation) Text(w io.Writer) error {
	var b strings.Builder
	s := &e.Service
	switch {
	case s.Layer == None && len(e.Steps) == 0:
		fmt.Fprintf(&b, "%s has no route on any layer\n", s.Name)
	case s.Layer == None:
		fmt.Fprintf(&b, "%s is not known to be reachable\n", s.Name)
	default:
		fmt.Fprintf(&b, "%s is reached over %s%s", s.Name, s.Layer, in(ms(message.English, s.LatencyMS)))
		if s.Since != nil {
			b.WriteString(", since " + clock(*s.Since, e.Now))
		}
		b.WriteString("\n")
	}
	if len(e.Steps) > 0 {
		b.WriteString("  A new connection tries:\n")
	}
	for i, p := range e.Steps {
		when := "at once"
		if p.AfterMS > 0 {
			when = fmt.Sprintf("%d ms later", p.AfterMS)
		} else if i > 0 {
			when = "with it"
		}
		fmt.Fprintf(&b, "  %d  %-11s %-12s %-8s %s\n", i+1, p.Layer, when, p.State, p.Why)
		fmt.Fprintf(&b, "     %-11s by %s to %s\n", "", p.Interface, p.Address)
	}
	ports := make([]string, len(e.Ports))
	for i, p := range e.Ports {
		ports[i] = fmt.Sprint(p)
		if slices.Contains(e.TLSPorts, p) {
			ports[i] += " (TLS, for the name alone)"
		}
	}
	fmt.Fprintf(&b, "  here        %s, port %s; %s\n", e.Address, strings.Join(ports, ", "), plural(s.Connections, "open connection"))
	if e.Access != nil {
		verdict := "allowed"
		if !e.Access.Allow {
			verdict = "not allowed"
		}
		fmt.Fprintf(&b, "  access      %s to this laptop: %s (%s)\n", verdict, e.Access.Why, e.Access.Rule)
	}
	if c := s.Canary; c != nil {
		outcome := "answered"
		if c.Error != "" {
			outcome = c.Error
		}
		fmt.Fprintf(&b, "  canary      %s %s ago: %s\n", c.Layer, age(message.English, e.Now.Sub(c.At)), outcome)
	}
	for i, n := range e.Recent {
		label := ""
		if i == 0 {
			label = "lately"
		}
		fmt.Fprintf(&b, "  %-11s %s  %s\n", label, clock(n.At, e.Now), Said(n))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Said is an event in words, without its time and service.
func Said(n forward.News) string {
	because := ""
	if n.Why != "" {
		because = " (" + n.Why + ")"
	}
	ended := ""
	if n.Reset > 0 {
		ended = "; " + plural(n.Reset, "connection") + " ended"
	}
	switch n.What {
	case forward.LayerChanged:
		return fmt.Sprintf("%s went from %s to %s%s%s", n.Layer, n.From, n.To, because, ended)
	case forward.Switched:
		switch {
		case n.To == "":
			return "reachable over nothing any more, was over " + n.From
		case n.From == "":
			return "reachable over " + n.To
		}
		return "now over " + n.To + ", was over " + n.From
	case forward.CanaryTold:
		if n.Why == "" {
			return fmt.Sprintf("the fallback %s was tried and answered", n.Layer)
		}
		return fmt.Sprintf("the fallback %s was tried and failed%s", n.Layer, because)
	case forward.QuietChanged:
		return "quiet " + n.To + ended
	case forward.RefusedOne:
		return "a connection was let nowhere" + because
	case forward.LinkChanged:
		return "the network changed"
	}
	return strings.TrimSpace(n.What + because)
}

// Log is the timeline.
type Log struct {
	Events []forward.News `json:"events"`
}

// Text writes one line an event, the newest last, where a terminal shows it.
func (l Log) Text(w io.Writer, now time.Time) error {
	var b strings.Builder
	if len(l.Events) == 0 {
		b.WriteString("Nothing has happened yet: no layer was lost, and nothing was switched.\n")
	}
	width := 0
	for _, n := range l.Events {
		width = max(width, len(n.Service))
	}
	for _, n := range l.Events {
		fmt.Fprintf(&b, "%s  %-*s  %s\n", n.At.Local().Format("2006-01-02 15:04:05"), width, n.Service, Said(n))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
