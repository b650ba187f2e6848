package overlay

import (
	"encoding/json"

	"github.com/veilor/veilor-os/internal/site"
)

// transports are those that secureblue's policy rejects by name beside its
// default, so that a wider default alone would not open them
// (modules/secureblue-signing/policy.json).
var transports = []string{"atomic", "containers-storage", "dir", "docker-archive", "docker-daemon", "oci", "oci-archive", "tarball"}

// requirement is one entry of a policy scope (containers-policy.json(5)).
type requirement struct {
	Type           string    `json:"type"`
	KeyPath        string    `json:"keyPath,omitempty"`
	KeyPaths       []string  `json:"keyPaths,omitempty"`
	SignedIdentity *identity `json:"signedIdentity,omitempty"`
}

type identity struct {
	Type string `json:"type"`
}

// Policy is the image's /etc/containers/policy.json: everything is refused but
// the image itself, and that only with a good signature of every group of the
// site. Requirements of one scope are AND-ed, keys of one requirement OR-ed, so
// that a bare bootc, rpm-ostree or skopeo demands the same as we do.
func Policy(s *site.Site) []byte {
	reject := []requirement{{Type: "reject"}}
	var scope []requirement
	for _, g := range s.Image.Signatures {
		// matchRepository: a signature is for a repository, so that one digest
		// can have several tags.
		r := requirement{Type: "sigstoreSigned", SignedIdentity: &identity{"matchRepository"}}
		for i := range g.Keys {
			r.KeyPaths = append(r.KeyPaths, "/"+KeyPath(g.Name, i+1))
		}
		if len(r.KeyPaths) == 1 {
			// keyPaths is younger (skopeo 1.17) than keyPath.
			r.KeyPath, r.KeyPaths = r.KeyPaths[0], nil
		}
		scope = append(scope, r)
	}
	byTransport := map[string]map[string][]requirement{
		"docker": {s.Image.Ref: scope},
	}
	for _, t := range transports {
		byTransport[t] = map[string][]requirement{"": reject}
	}
	b, err := json.MarshalIndent(struct {
		Default    []requirement                       `json:"default"`
		Transports map[string]map[string][]requirement `json:"transports"`
	}{reject, byTransport}, "", "    ")
	if err != nil {
		panic(err) // only strings in it
	}
	return append(b, '\n')
}
