package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/bootc"
	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
)

// Condition is one thing that a person should know.
type Condition struct {
	// Code is stable, for scripts and for looking it up.
	Code string `json:"code"`
	// Text says what is so.
	Text string `json:"text"`
	// Todo says what to do, or that nothing is to be done.
	Todo string `json:"todo"`
	// Service is the name that it is about, if it is about one.
	Service string `json:"service,omitempty"`
	// Level is broken, warning or note.
	Level Level `json:"level"`
	about section
}

// Level says how much a condition matters.
type Level string

// The levels. Desktop notifications have the urgencies critical, normal and low
// for them.
const (
	// Broken: something that is promised does not hold now.
	Broken Level = "broken"
	// Warning: it holds, and may soon not.
	Warning Level = "warning"
	// Note: nothing is lost.
	Note Level = "note"
)

// section is the part of the report under which a condition is printed.
type section int

const (
	aboutService section = iota
	aboutSystem
	aboutMesh
)

// kind is a row of the table: what there may be to say.
type kind struct {
	code  string
	about section
	level Level
	// means explains it where nothing is the matter just now: in the list of
	// conditions and in the docs.
	means string
	todo  string
	// text says it of the report, and of s where about is aboutService; "" if
	// it does not hold.
	text func(r *Report, s *Service) string
}

// table has every condition there is, the worst of each part first. Where more
// than one would say the same of a service, the first speaks.
var table = slices.Concat([]kind{
	{"mesh-stopped", aboutMesh, Broken,
		"veilor-mesh does not answer, so no service opens.",
		"`systemctl status veilor-mesh` says why; `run0 systemctl restart veilor-mesh` starts it.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Mesh == nil {
				return ""
			}
			return r.say("the forwarder does not answer, so no service opens: %v", r.Unknown.Mesh)
		}},
	{"quiet", aboutMesh, Note,
		"The laptop says nothing of the mesh to the network because somebody wanted it so.",
		"End it with: run0 veilor mesh quiet off",
		func(r *Report, _ *Service) string {
			if r.Quiet == nil {
				return ""
			}
			return r.say("quiet%s", r.quietTimes())
		}},
	{"filters-missing", aboutMesh, Broken,
		"One of veilor's packet filters is not in force: another program removes it again and again, or it cannot be loaded.",
		"`journalctl -u veilor-ygg` says which and why. A program that removes veilor's tables must be told to leave them alone.",
		func(r *Report, _ *Service) string {
			f := r.Yggdrasil.Filters
			if f == nil || !f.Missing {
				return ""
			}
			return r.say("a packet filter is not in force%s", r.culprit(f))
		}},
	{"filters-restored", aboutMesh, Note,
		"Another program changed or removed veilor's packet filters within the last hour, and they were put back at once.",
		"Nothing to do, unless it goes on. `journalctl -u veilor-ygg` says when it was.",
		func(r *Report, _ *Service) string {
			f := r.Yggdrasil.Filters
			if f == nil || f.Missing || f.Restored == 0 || r.now.Sub(f.Last) > recent {
				return ""
			}
			return r.say("the packet filters were changed and put back, the last time at %s%s", clock(f.Last, r.now), r.culprit(f))
		}},
	{"tailnet-unknown", aboutMesh, Warning,
		"tailscaled gives no sensible answer.",
		"`systemctl status tailscaled` may say more.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Tailnet == nil {
				return ""
			}
			return r.say("whether this laptop has joined could not be learned: %v", r.Unknown.Tailnet)
		}},
	{"not-joined", aboutMesh, Warning,
		"This laptop is in no tailnet.",
		"Join with: run0 veilor join",
		func(r *Report, _ *Service) string {
			if r.Mesh.Joined || r.Unknown.Tailnet != nil || r.Quiet != nil {
				return ""
			}
			return r.say("not joined")
		}},
	{"unreachable", aboutService, Broken,
		"No layer answers for the service.",
		"veilor keeps trying while something asks for it. If other pages open, the service itself may be down.",
		func(r *Report, s *Service) string {
			if s.Layer != None || !anyOn(s) || r.Unknown.Mesh != nil || r.Quiet != nil {
				return ""
			}
			return r.say("no layer answers")
		}},
	{"no-layer", aboutService, Broken,
		"Neither tailscaled nor veilor-ygg runs.",
		"Join with `run0 veilor join`; `systemctl status veilor-ygg` says why there is no fallback.",
		func(r *Report, s *Service) string {
			if s.Layer != None || anyOn(s) || r.Unknown.Mesh != nil || r.Quiet != nil {
				return ""
			}
			return r.say("neither the tailnet nor yggdrasil runs on this laptop")
		}},
	{"tailnet-blocked", aboutService, Note,
		"The service is reached over the fallback because the tailnet does not answer.",
		"Nothing to do: veilor goes back by itself.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Tailnet)
			if s.Layer == None || l == nil || !r.Mesh.Joined || !lost(l) {
				return ""
			}
			return r.say("tailnet: no answer%s", r.since(l))
		}},
	{"tailnet-off", aboutService, Warning,
		"The interface of the tailnet is gone, and the service is reached over the fallback.",
		"`systemctl status tailscaled` says why; `run0 systemctl restart tailscaled` starts it.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Tailnet)
			if s.Layer == None || l == nil || !r.Mesh.Joined || l.State != mesh.Off.String() {
				return ""
			}
			return r.say("tailnet: its interface is gone%s", r.since(l))
		}},
	{"fallback-silent", aboutService, Warning,
		"The service is reached, but the fallback would not take over.",
		"Nothing to do now, but if the tailnet is blocked here, nothing replaces it. `systemctl status veilor-ygg` may say why.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Yggdrasil)
			if s.Layer == None || l == nil || s.Layer == l.Name || l.State == mesh.Up.String() {
				return ""
			}
			if l.State == mesh.Off.String() {
				return r.say("no fallback: yggdrasil does not run")
			}
			return r.say("no fallback: yggdrasil does not answer%s", r.since(l))
		}},
	{"fallback-rotten", aboutService, Warning,
		"The fallback was tried while nobody used it, and failed twice in a row.",
		"Nothing to do now, but if the tailnet is blocked here, nothing replaces it. `veilor mesh test` tries again; tell the operator if it stays so.",
		func(r *Report, s *Service) string {
			c := s.Canary
			if c == nil || c.Failures < forward.Rotten || s.Layer == c.Layer {
				return ""
			}
			return r.say("the fallback %s failed its last %d trials, the last at %s: %s", c.Layer, c.Failures, clock(c.At, r.now), c.Error)
		}},
	{"wrong-name", aboutService, Warning,
		"A program connected to the service and asked for another name, or did not say by TLS whom it wants. It was let nowhere.",
		"If you typed the address yourself, open the service by its name and https. If not, a page in the browser may be trying to reach it: close pages that you do not know.",
		func(r *Report, s *Service) string { return r.intruders(s) }},
	{"crowded", aboutService, Warning,
		"More connections were opened to the service than veilor carries at a time.",
		"`ss -tnp` says which program opens so many.",
		func(r *Report, s *Service) string {
			f, ok := s.Refused[forward.Full]
			if !ok || r.now.Sub(f.Last) > recent {
				return ""
			}
			return r.language.Count(f.Count, "%d connections were refused because too many are open, the last at %s", clock(f.Last, r.now))
		}},
	{"not-encrypted", aboutSystem, Warning,
		"The root file system lies on no LUKS device.",
		"Whoever has the laptop has the files. Only a new installation encrypts it: the installer asks for a passphrase.",
		func(r *Report, _ *Service) string {
			if r.System.Encrypted == nil || *r.System.Encrypted {
				return ""
			}
			return r.say("the disk is not encrypted")
		}},
	{"encryption-unknown", aboutSystem, Note,
		"The devices below the root file system could not be read.",
		"`lsblk -o NAME,TYPE,MOUNTPOINTS` shows whether a crypt device is below /.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Disk == nil {
				return ""
			}
			return r.say("whether the disk is encrypted could not be learned: %v", r.Unknown.Disk)
		}},
	{"signature-not-enforced", aboutSystem, Warning,
		"bootc takes updates of this image without checking who signed them.",
		"Set it with: run0 bootc switch --enforce-container-sigpolicy IMAGE     (IMAGE as above)",
		func(r *Report, _ *Service) string {
			if r.System.Signature == "" || r.System.Signature == string(bootc.ContainerPolicy) {
				return ""
			}
			return r.say("updates are taken without checking signatures (%s)", r.System.Signature)
		}},
	{"not-an-image", aboutSystem, Note,
		"The system was not installed from the image.",
		"Nothing here checks or rolls back updates. Install veilor-os from its ISO for that.",
		func(r *Report, _ *Service) string {
			if !r.Unknown.NotImage {
				return ""
			}
			return r.say("this system was not booted from an image")
		}},
	{"image-unknown", aboutSystem, Note,
		"bootc answers to root only.",
		"Ask as root: run0 veilor status",
		func(r *Report, _ *Service) string {
			if !r.Unknown.NeedsRoot {
				return ""
			}
			return r.say("which image booted, and whether signatures are enforced, is known to root only")
		}},
	{"image-unreadable", aboutSystem, Warning,
		"bootc gives no sensible answer.",
		"`bootc status` may say more.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Image == nil || r.Unknown.NotImage || r.Unknown.NeedsRoot {
				return ""
			}
			return r.say("which image booted could not be learned: %v", r.Unknown.Image)
		}},
}, directoryTable)

// culprit says who changed the packet filters.
func (r *Report) culprit(f *Filters) string {
	if f.By == "" {
		return ""
	}
	return r.say(", by %s", f.By)
}

// recent is how long a refused connection, or a filter that was restored, is
// worth a word.
const recent = time.Hour

// intruders says who was refused lately for not naming the service.
func (r *Report) intruders(s *Service) string {
	count, name := 0, ""
	var last time.Time
	for _, why := range []string{forward.WrongName, forward.NoName, forward.NotTLS} {
		f, ok := s.Refused[why]
		if !ok || r.now.Sub(f.Last) > recent {
			continue
		}
		count += f.Count
		if f.Last.After(last) {
			last = f.Last
		}
		if f.Name != "" {
			name = r.say("; the last wanted %q", f.Name)
		}
	}
	switch count {
	case 0:
		return ""
	case 1:
		return r.say("a connection that did not ask for %s was closed at %s%s", s.Name, clock(last, r.now), name)
	}
	return r.language.Count(count, "%d connections that did not ask for %s were closed, the last at %s%s", s.Name, clock(last, r.now), name)
}

// quietTimes says since when it is quiet, and until when.
func (r *Report) quietTimes() string {
	text := ""
	if !r.Quiet.Since.IsZero() {
		text = r.say(" since %s", clock(r.Quiet.Since, r.now))
	}
	if r.Quiet.Until != nil {
		return text + r.say(", until %s", clock(*r.Quiet.Until, r.now))
	}
	return text + r.say(", also after a restart")
}

// anyOn says whether any layer has its interface.
func anyOn(s *Service) bool {
	for _, l := range s.Layers {
		if l.State != mesh.Off.String() {
			return true
		}
	}
	return false
}

func lost(l *Layer) bool {
	return l.State == mesh.Suspect.String() || l.State == mesh.Down.String()
}

func (r *Report) since(l *Layer) string {
	if l.Since == nil {
		return ""
	}
	return r.say(" since %s", clock(*l.Since, r.now))
}

// Judge fills Conditions from the rest of the report. now is when it was made.
func (r *Report) Judge(now time.Time) {
	r.now = now
	r.Conditions = []Condition{}
	for _, k := range table {
		add := func(s *Service, name string) {
			if text := k.text(r, s); text != "" {
				r.Conditions = append(r.Conditions, Condition{Code: k.code, Text: text, Todo: r.say(k.todo), Service: name, Level: k.level, about: k.about})
			}
		}
		if k.about != aboutService {
			add(nil, "")
			continue
		}
		for i := range r.Services {
			add(&r.Services[i], r.Services[i].Name)
		}
	}
}

// Kind is a condition that there may be, for the list of them and for the docs.
type Kind struct {
	Code  string `json:"code"`
	Level Level  `json:"level"`
	Means string `json:"means"`
	Todo  string `json:"todo"`
}

// Kinds lists every condition that there may be.
func Kinds() []Kind {
	var kinds []Kind
	for _, k := range table {
		kinds = append(kinds, Kind{k.code, k.level, k.means, k.todo})
	}
	return kinds
}

// Remedy is what to do about the condition with the given code.
func Remedy(code string) string {
	for _, k := range table {
		if k.code == code {
			return k.todo
		}
	}
	return ""
}

// Notification is a condition as the desktop shows it: one line, and what to do.
func (c Condition) Notification() (summary, body string) {
	summary = c.Text
	if c.Service != "" {
		summary = c.Service + ": " + summary
	}
	return summary, c.Todo + "\n[" + c.Code + "]"
}

// KindsText writes the list for a terminal.
func KindsText(w io.Writer) error {
	var b strings.Builder
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "%s   (%s)\n  %s\n  %s\n", k.Code, k.Level, k.Means, k.Todo)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// KindsMarkdown writes the list as a table for the docs.
func KindsMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| code | level | what it means | what to do |\n| --- | --- | --- | --- |\n")
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Code, k.Level, k.Means, strings.ReplaceAll(k.Todo, "|", "\\|"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
