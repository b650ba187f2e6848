package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/bootc"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/message"
)

// indent is the width of the label column.
const indent = 13

// In makes the report speak l. Its JSON form then does too, but for the codes: a
// program that prints that for scripts leaves it English.
func (r *Report) In(l message.Language) {
	r.language = l
	if !r.now.IsZero() {
		r.Judge(r.now)
	}
}

func (r *Report) say(english string, args ...any) string { return r.language.Say(english, args...) }

// Text writes the report for people: the answer first, then why, then what to
// do. Judge must have been called.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	// block writes the lines under a label, and then the conditions about it.
	block := func(label string, where section, service string, lines ...string) {
		for _, c := range r.Conditions {
			if c.about == where && c.Service == service {
				lines = append(lines, c.Text+"   ["+c.Code+"]", c.Todo)
			}
		}
		for _, l := range lines {
			if l != "" {
				fmt.Fprintf(&b, "%-*s%s\n", indent, label, l)
				label = ""
			}
		}
	}
	for i := range r.Services {
		s := &r.Services[i]
		reach := r.reach(s)
		if s.Layer == None && r.Quiet != nil {
			reach = r.say("not reachable: quiet was asked for")
		}
		block(s.Name, aboutService, s.Name, reach, r.fallback(s))
	}
	block(r.say("system"), aboutSystem, "", r.system(), r.image(), r.staged())
	block(r.say("mesh"), aboutMesh, "", r.member(), r.opens())
	_, err := io.WriteString(w, b.String())
	return err
}

// reach is the line on a service.
func (r *Report) reach(s *Service) string {
	switch s.Layer {
	case None:
		return r.say("not reachable")
	case string(mesh.Tailnet):
		return r.say("reachable over %s", s.Layer) + in(s.Path, ms(r.language, s.LatencyMS))
	case string(mesh.Yggdrasil):
		line := r.say("reachable over %s", s.Layer) + in(r.via(), ms(r.language, s.LatencyMS))
		if s.Since != nil {
			line += r.say(", since %s", clock(*s.Since, r.now))
		}
		return line
	}
	return r.say("reachable over %s", s.Layer) + in(ms(r.language, s.LatencyMS))
}

// fallback is the line on the layer that would replace the one in use.
func (r *Report) fallback(s *Service) string {
	l := s.layer(mesh.Yggdrasil)
	if l == nil || s.Layer == None || s.Layer == l.Name || l.State != mesh.Up.String() {
		return ""
	}
	line := r.say("fallback ready: yggdrasil") + in(r.via(), ms(r.language, l.LatencyMS))
	if l.Answered != nil {
		if ago := r.now.Sub(*l.Answered); ago >= time.Minute {
			line += r.say(", tried %s ago", age(r.language, ago))
		}
	}
	return line
}

func (r *Report) via() string {
	if r.Yggdrasil.Peer == "" || !r.Yggdrasil.Up {
		return ""
	}
	return r.say("via %s", r.Yggdrasil.Peer)
}

// system is the line on the operating system.
func (r *Report) system() string {
	name := r.System.Name
	if name == "" {
		name = r.say("this system")
	}
	if r.System.Version != "" {
		name += " " + r.System.Version
	}
	signature := ""
	if r.System.Signature == string(bootc.ContainerPolicy) {
		signature = r.say("signature enforced")
	} else if r.System.Signature != "" {
		signature = r.say("signature not enforced")
	}
	disk := ""
	if r.System.Encrypted != nil {
		if disk = r.say("disk encrypted"); !*r.System.Encrypted {
			disk = r.say("disk not encrypted")
		}
	}
	return join(", ", name, signature, disk)
}

func (r *Report) image() string {
	if r.System.Image == "" {
		return ""
	}
	return r.say("image %s", r.System.Image+"@"+short(r.System.Digest))
}

func (r *Report) staged() string {
	if r.System.Staged == "" {
		return ""
	}
	return r.say("update %s is staged; it takes effect at the next restart", r.System.Staged)
}

// member is the line on the tailnet; its absence is a condition.
func (r *Report) member() string {
	if !r.Mesh.Joined {
		return ""
	}
	who := r.Mesh.Tier
	if who == "" {
		who = strings.Join(r.Mesh.Tags, " ")
	}
	return join(", ", who, r.say("joined as %s (%s)", r.Mesh.Hostname, r.Mesh.Address))
}

// opens is the line on what the tier lets this laptop open.
func (r *Report) opens() string {
	switch {
	case !r.Mesh.Joined:
		return ""
	case r.Mesh.Tier == "" && len(r.Mesh.Tags) == 0:
		return r.say("in no tier, so it opens nothing; ask the operator for a key of a tier, and join with it")
	case r.Mesh.Tier == "":
		return r.say("these tags are not one tier of the site; ask the operator for a key of one, and join with it")
	case slices.Contains(r.Mesh.Opens, "*:*"):
		return r.say("opens everything, on every machine")
	case len(r.Mesh.Opens) == 0:
		return ""
	}
	return r.say("opens %s and nothing else", strings.Join(r.Mesh.Opens, ", "))
}

// short is enough of a digest to compare by eye.
func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19] + "…"
	}
	return digest
}

// clock is t as people say it.
func clock(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}

// age is d as people say it.
func age(l message.Language, d time.Duration) string {
	switch {
	case d < time.Minute:
		return l.Say("%.0f s", max(d.Seconds(), 0))
	case d < 2*time.Hour:
		return l.Say("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return l.Say("%.0f h", d.Hours())
	}
	return l.Say("%.0f days", d.Hours()/24)
}

// ms is a latency, or "".
func ms(l message.Language, v *float64) string {
	switch {
	case v == nil:
		return ""
	case *v < 10:
		return l.Say("%.1f ms", *v)
	}
	return l.Say("%.0f ms", *v)
}

// join joins what is not empty.
func join(sep string, parts ...string) string {
	var have []string
	for _, p := range parts {
		if p != "" {
			have = append(have, p)
		}
	}
	return strings.Join(have, sep)
}

// in is " (a, b)" of what is not empty, or "".
func in(parts ...string) string {
	if s := join(", ", parts...); s != "" {
		return " (" + s + ")"
	}
	return ""
}
