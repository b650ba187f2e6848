package status

import (
	"fmt"
	"time"

	"github.com/veilor/veilor-os/internal/bootc"
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
	about   section
}

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
	todo  string
	// text says it of the report, and of s where about is aboutService; "" if
	// it does not hold.
	text func(r *Report, s *Service) string
}

// table has every condition there is, the worst of each part first. Where more
// than one would say the same of a service, the first speaks.
var table = []kind{
	{"mesh-stopped", aboutMesh,
		"`systemctl status veilor-mesh` says why; `run0 systemctl restart veilor-mesh` starts it.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Mesh == nil {
				return ""
			}
			return fmt.Sprintf("the forwarder does not answer, so no service opens: %v", r.Unknown.Mesh)
		}},
	{"tailnet-unknown", aboutMesh,
		"`systemctl status tailscaled` may say more.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Tailnet == nil {
				return ""
			}
			return fmt.Sprintf("whether this laptop has joined could not be learned: %v", r.Unknown.Tailnet)
		}},
	{"not-joined", aboutMesh,
		"Join with: run0 veilor join",
		func(r *Report, _ *Service) string {
			if r.Mesh.Joined || r.Unknown.Tailnet != nil {
				return ""
			}
			return "not joined"
		}},
	{"unreachable", aboutService,
		"veilor keeps trying while something asks for it. If other pages open, the service itself may be down.",
		func(r *Report, s *Service) string {
			if s.Layer != None || !anyOn(s) || r.Unknown.Mesh != nil {
				return ""
			}
			return "no layer answers"
		}},
	{"no-layer", aboutService,
		"Join with `run0 veilor join`; `systemctl status veilor-ygg` says why there is no fallback.",
		func(r *Report, s *Service) string {
			if s.Layer != None || anyOn(s) || r.Unknown.Mesh != nil {
				return ""
			}
			return "neither the tailnet nor yggdrasil runs on this laptop"
		}},
	{"tailnet-blocked", aboutService,
		"Nothing to do: veilor goes back by itself.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Tailnet)
			if s.Layer == None || l == nil || !r.Mesh.Joined || !lost(l) {
				return ""
			}
			return "tailnet: no answer" + r.since(l)
		}},
	{"tailnet-off", aboutService,
		"`systemctl status tailscaled` says why; `run0 systemctl restart tailscaled` starts it.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Tailnet)
			if s.Layer == None || l == nil || !r.Mesh.Joined || l.State != mesh.Off.String() {
				return ""
			}
			return "tailnet: its interface is gone" + r.since(l)
		}},
	{"fallback-silent", aboutService,
		"Nothing to do now, but if the tailnet is blocked here, nothing replaces it. `systemctl status veilor-ygg` may say why.",
		func(r *Report, s *Service) string {
			l := s.layer(mesh.Yggdrasil)
			if s.Layer == None || l == nil || s.Layer == l.Name || l.State == mesh.Up.String() {
				return ""
			}
			if l.State == mesh.Off.String() {
				return "no fallback: yggdrasil does not run"
			}
			return "no fallback: yggdrasil does not answer" + r.since(l)
		}},
	{"not-encrypted", aboutSystem,
		"Whoever has the laptop has the files. Only a new installation encrypts it: the installer asks for a passphrase.",
		func(r *Report, _ *Service) string {
			if r.System.Encrypted == nil || *r.System.Encrypted {
				return ""
			}
			return "the disk is not encrypted"
		}},
	{"encryption-unknown", aboutSystem,
		"`lsblk -o NAME,TYPE,MOUNTPOINTS` shows whether a crypt device is below /.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Disk == nil {
				return ""
			}
			return fmt.Sprintf("whether the disk is encrypted could not be learned: %v", r.Unknown.Disk)
		}},
	{"signature-not-enforced", aboutSystem,
		"Set it with: run0 bootc switch --enforce-container-sigpolicy IMAGE     (IMAGE as above)",
		func(r *Report, _ *Service) string {
			if r.System.Signature == "" || r.System.Signature == string(bootc.ContainerPolicy) {
				return ""
			}
			return fmt.Sprintf("updates are taken without checking signatures (%s)", r.System.Signature)
		}},
	{"not-an-image", aboutSystem,
		"Nothing here checks or rolls back updates. Install veilor-os from its ISO for that.",
		func(r *Report, _ *Service) string {
			if !r.Unknown.NotImage {
				return ""
			}
			return "this system was not booted from an image"
		}},
	{"image-unknown", aboutSystem,
		"Ask as root: run0 veilor status",
		func(r *Report, _ *Service) string {
			if !r.Unknown.NeedsRoot {
				return ""
			}
			return "which image booted, and whether signatures are enforced, is known to root only"
		}},
	{"image-unreadable", aboutSystem,
		"`bootc status` may say more.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Image == nil || r.Unknown.NotImage || r.Unknown.NeedsRoot {
				return ""
			}
			return fmt.Sprintf("which image booted could not be learned: %v", r.Unknown.Image)
		}},
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
	return " since " + clock(*l.Since, r.now)
}

// Judge fills Conditions from the rest of the report. now is when it was made.
func (r *Report) Judge(now time.Time) {
	r.now = now
	r.Conditions = []Condition{}
	for _, k := range table {
		add := func(s *Service, name string) {
			if text := k.text(r, s); text != "" {
				r.Conditions = append(r.Conditions, Condition{Code: k.code, Text: text, Todo: k.todo, Service: name, about: k.about})
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
