// Package status is what veilor knows of this laptop: the report that
// `veilor status` prints, its JSON form, and the table of conditions from which
// every warning is made.
//
// It is pure. Whoever asks the daemons fills a [Report] and calls
// [Report.Judge].
package status

import (
	"time"

	"github.com/veilor/veilor-os/internal/forward"
	"github.com/veilor/veilor-os/internal/mesh"
	"github.com/veilor/veilor-os/internal/message"
	"github.com/veilor/veilor-os/internal/quiet"
)

// Report is the whole answer. Its JSON form is stable: fields are added, never
// changed.
type Report struct {
	System     System      `json:"system"`
	Mesh       Mesh        `json:"mesh"`
	Services   []Service   `json:"services"`
	Yggdrasil  Yggdrasil   `json:"yggdrasil"`
	Directory  Directory   `json:"directory"`
	Conditions []Condition `json:"conditions"`
	// Quiet says that the laptop says nothing of the mesh to the network, and
	// since when; null if it is not so.
	Quiet *quiet.State `json:"quiet,omitempty"`

	// Unknown holds why a part could not be learned.
	Unknown  Unknown `json:"-"`
	now      time.Time
	language message.Language
}

// Unknown says why parts of a report are empty; nil where they are not.
type Unknown struct {
	Image, Disk, Mesh, Tailnet, Yggdrasil, Directory error
	// NeedsRoot says that root would learn more about the image.
	NeedsRoot bool
	// NotImage says that the system was not booted from an image.
	NotImage bool
}

// System is the operating system that runs.
type System struct {
	// Name is what it calls itself: "veilor-os".
	Name      string `json:"name,omitempty"`
	Image     string `json:"image"`
	Digest    string `json:"digest"`
	Version   string `json:"version"`
	Signature string `json:"signature"`
	// Encrypted says whether the root lies on LUKS; null if unknown.
	Encrypted *bool `json:"encrypted"`
	// Staged is the version of the next boot, if that is another.
	Staged string `json:"staged,omitempty"`
}

// Mesh is this machine's place in the tailnet.
type Mesh struct {
	Joined   bool     `json:"joined"`
	Hostname string   `json:"hostname"`
	Address  string   `json:"address"`
	Tags     []string `json:"tags"`
	// Tier is what the site calls the tags.
	Tier string `json:"tier,omitempty"`
	// Opens is what the tier opens, as the site writes it; null if unknown.
	Opens []string `json:"opens,omitempty"`
}

// Yggdrasil is this machine's node.
type Yggdrasil struct {
	Key     string `json:"key"`
	Address string `json:"address"`
	// Peer is the site's name of the one peer; Up says whether it answers.
	Peer string `json:"peer"`
	Up   bool   `json:"up"`
	// Filters says that somebody changed the packet filters, which the node
	// guards; null if nobody did.
	Filters *Filters `json:"packet_filters,omitempty"`
}

// Filters is what others did to veilor's packet filters since the node started.
type Filters struct {
	// Restored is how often one was put back, Last when that was, and By the
	// program that had changed it, if it is known.
	Restored int       `json:"restored"`
	Last     time.Time `json:"last,omitzero"`
	By       string    `json:"by,omitempty"`
	// Missing says that one is not in force now.
	Missing bool `json:"missing,omitempty"`
}

// Service is how one name is reached.
type Service struct {
	Name string `json:"name"`
	// Layer is the one that a new connection takes, or "none".
	Layer string `json:"layer"`
	// Since is when it became so.
	Since *time.Time `json:"since,omitempty"`
	// LatencyMS is the last TCP handshake on that layer.
	LatencyMS *float64 `json:"latency_ms,omitempty"`
	Layers    []Layer  `json:"layers"`
	// Path is "direct" or "relay", on the tailnet.
	Path string `json:"path,omitempty"`
	// Connections are open at the moment.
	Connections int `json:"connections"`
	// Refused are the connections that were let nowhere, by reason: wrong-name,
	// no-name, not-tls, mute, full, quiet.
	Refused map[string]Refused `json:"refused,omitempty"`
	// Canary is the last trial of the fallback while nobody used it.
	Canary *Canary `json:"canary,omitempty"`
}

// Refused counts connections that were let nowhere for one reason.
type Refused struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
	// Name is what the last of them asked for, if that is why.
	Name string `json:"name,omitempty"`
}

// Canary is a trial of a layer that nobody uses.
type Canary struct {
	Layer string    `json:"layer"`
	At    time.Time `json:"at"`
	// Failures is how many trials in a row failed, Error why the last did.
	Failures int    `json:"failures"`
	Error    string `json:"error,omitempty"`
}

// Layer is the health of one layer for one service.
type Layer struct {
	Name string `json:"name"`
	// State is up, suspect, down or off.
	State     string     `json:"state"`
	Since     *time.Time `json:"since,omitempty"`
	LatencyMS *float64   `json:"latency_ms,omitempty"`
	Error     string     `json:"error,omitempty"`
	// Answered is when it last answered, Tried when it was last asked.
	Answered *time.Time `json:"answered,omitempty"`
	Tried    *time.Time `json:"tried,omitempty"`
}

// None is the layer of a service that no layer reaches.
const None = "none"

// Services turns what the forwarder knows into the report's form.
func Services(in []forward.Status) []Service {
	out := make([]Service, 0, len(in))
	for _, s := range in {
		v := Service{Name: s.Name, Layer: None, Connections: s.Conns, Since: when(s.Since), Layers: []Layer{}}
		for _, h := range s.Layers {
			l := Layer{Name: string(h.Layer), State: h.State.String(), Since: when(h.Since), Error: h.Err, Answered: when(h.Answer), Tried: when(h.Tried)}
			if h.State == mesh.Untried {
				l.State, l.Error = mesh.Suspect.String(), "not tried yet"
			}
			if h.State == mesh.Up && !h.Answer.IsZero() {
				ms := float64(h.RTT.Microseconds()) / 1000
				l.LatencyMS, l.Error = &ms, ""
			}
			if h.Layer == s.Active {
				v.Layer, v.LatencyMS = l.Name, l.LatencyMS
			}
			v.Layers = append(v.Layers, l)
		}
		for why, r := range s.Refusals {
			if v.Refused == nil {
				v.Refused = map[string]Refused{}
			}
			v.Refused[why] = Refused{r.Count, r.Last.Truncate(time.Millisecond), r.Name}
		}
		if c := s.Canary; !c.At.IsZero() {
			v.Canary = &Canary{string(c.Layer), c.At.Truncate(time.Millisecond), c.Failures, c.Err}
		}
		out = append(out, v)
	}
	return out
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Truncate(time.Millisecond)
	return &t
}

// layer is the record of the named layer, or nil.
func (s *Service) layer(name mesh.Layer) *Layer {
	for i := range s.Layers {
		if s.Layers[i].Name == string(name) {
			return &s.Layers[i]
		}
	}
	return nil
}
