// Package quiet is the laptop's wish to say nothing of the mesh to the network.
//
// It is a file, so that it holds over a restart: the units of tailscaled and
// veilor-ygg do not start while it exists (ConditionPathExists), and veilor-mesh
// neither dials nor probes.
package quiet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// Path is where the units look for it.
const Path = "/var/lib/veilor/quiet"

// maxFile bounds what is read; the file has some 150 bytes.
const maxFile = 4 << 10

// State is the wish.
type State struct {
	Since time.Time `json:"since"`
	// Until is when it ends by itself; nil if never.
	Until *time.Time `json:"until,omitempty"`
	// Units ran before and are started again at its end.
	Units []string `json:"units,omitempty"`
}

// Over says whether it was to end before now.
func (s *State) Over(now time.Time) bool { return s.Until != nil && !now.Before(*s.Until) }

// Read returns the wish, or nil if there is none. The file's existence alone is
// the wish: one that cannot be read is an error beside a State that never ends.
func Read(path string) (*State, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return &State{}, fmt.Errorf("reading whether to be quiet: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return &State{}, fmt.Errorf("reading whether to be quiet: %w", err)
	}
	s, err := parse(data)
	if err != nil {
		return &State{}, fmt.Errorf("reading whether to be quiet: %s: %w", path, err)
	}
	return s, nil
}

func parse(data []byte) (*State, error) {
	var s State
	if len(data) == 0 { // as `touch` makes it
		return &s, nil
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Write makes the wish.
func Write(path string, s State) error {
	data, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = renameio.WriteFile(path, append(data, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing that it be quiet: %w", err)
	}
	return nil
}

// Remove ends it. Where there is none that is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ending the quiet: %w", err)
	}
	return nil
}
