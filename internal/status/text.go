package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/bootc"
	"github.com/veilor/veilor-os/internal/mesh"
)

// indent is the width of the label column.
const indent = 13

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
			reach += ": quiet was asked for"
		}
		block(s.Name, aboutService, s.Name, reach, r.fallback(s))
	}
	block("system", aboutSystem, "", r.system(), r.image(), r.staged())
	block("mesh", aboutMesh, "", r.member(), r.opens())
	_, err := io.WriteString(w, b.String())
	return err
}

// reach is the line on a service.
func (r *Report) reach(s *Service) string {
	switch s.Layer {
	case None:
		return "not reachable"
	case string(mesh.Tailnet):
		return "reachable over tailnet" + in(s.Path, ms(s.LatencyMS))
	case string(mesh.Yggdrasil):
		line := "reachable over yggdrasil" + in(r.via(), ms(s.LatencyMS))
		if s.Since != nil {
			line += ", since " + clock(*s.Since, r.now)
		}
		return line
	}
	return "reachable over " + s.Layer + in(ms(s.LatencyMS))
}

// fallback is the line on the layer that would replace the one in use.
func (r *Report) fallback(s *Service) string {
	l := s.layer(mesh.Yggdrasil)
	if l == nil || s.Layer == None || s.Layer == l.Name || l.State != mesh.Up.String() {
		return ""
	}
	line := "fallback ready: yggdrasil" + in(r.via(), ms(l.LatencyMS))
	if l.Answered != nil {
		if ago := r.now.Sub(*l.Answered); ago >= time.Minute {
			line += ", tried " + age(ago) + " ago"
		}
	}
	return line
}

func (r *Report) via() string {
	if r.Yggdrasil.Peer == "" || !r.Yggdrasil.Up {
		return ""
	}
	return "via " + r.Yggdrasil.Peer
}

// system is the line on the operating system.
func (r *Report) system() string {
	name := r.System.Name
	if name == "" {
		name = "this system"
	}
	if r.System.Version != "" {
		name += " " + r.System.Version
	}
	signature := ""
	if r.System.Signature == string(bootc.ContainerPolicy) {
		signature = "signature enforced"
	} else if r.System.Signature != "" {
		signature = "signature not enforced"
	}
	disk := ""
	if r.System.Encrypted != nil {
		if disk = "disk encrypted"; !*r.System.Encrypted {
			disk = "disk not encrypted"
		}
	}
	return join(", ", name, signature, disk)
}

func (r *Report) image() string {
	if r.System.Image == "" {
		return ""
	}
	return "image " + r.System.Image + "@" + short(r.System.Digest)
}

func (r *Report) staged() string {
	if r.System.Staged == "" {
		return ""
	}
	return "update " + r.System.Staged + " is staged; it takes effect at the next restart"
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
	return join(", ", who, fmt.Sprintf("joined as %s (%s)", r.Mesh.Hostname, r.Mesh.Address))
}

// opens is the line on what the tier lets this laptop open.
func (r *Report) opens() string {
	switch {
	case !r.Mesh.Joined:
		return ""
	case r.Mesh.Tier == "" && len(r.Mesh.Tags) == 0:
		return "in no tier, so it opens nothing; ask the operator for a key of a tier, and join with it"
	case r.Mesh.Tier == "":
		return "these tags are not one tier of the site; ask the operator for a key of one, and join with it"
	case slices.Contains(r.Mesh.Opens, "*:*"):
		return "opens everything, on every machine"
	case len(r.Mesh.Opens) == 0:
		return ""
	}
	return "opens " + strings.Join(r.Mesh.Opens, ", ") + " and nothing else"
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
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", max(d.Seconds(), 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

// ms is a latency, or "".
func ms(v *float64) string {
	switch {
	case v == nil:
		return ""
	case *v < 10:
		return fmt.Sprintf("%.1f ms", *v)
	}
	return fmt.Sprintf("%.0f ms", *v)
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
