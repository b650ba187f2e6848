package yggdrasil

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// maxNodes bounds those admitted. The packet filter takes some 10^5 addresses
	// in one transaction. A revocation is never refused for want of room.
	maxNodes = 50_000
	// maxRoster bounds the file: a node has at most 250 bytes, who is revoked 70.
	maxRoster = 32 << 20
)

// roster is whom a node lets in. What the configuration admits is fixed; the
// rest comes and goes while it runs, and is kept in a file. Revoked is for ever
// and comes before everything else.
type roster struct {
	path string // empty: nothing comes or goes

	mu      sync.RWMutex
	fixed   map[site.Key]bool
	added   map[site.Key]edge.Node
	revoked map[site.Key]bool
}

// rosterFile is the file.
type rosterFile struct {
	Nodes   []edge.Node `json:"nodes"`
	Revoked []site.Key  `json:"revoked"`
}

func textKey(k ed25519.PublicKey) site.Key { return site.Key(hex.EncodeToString(k)) }

// openRoster reads the file at path, which there need not be.
func openRoster(path string, fixed []ed25519.PublicKey) (*roster, error) {
	r := &roster{path: path, fixed: map[site.Key]bool{}, added: map[site.Key]edge.Node{}, revoked: map[site.Key]bool{}}
	for _, k := range fixed {
		r.fixed[textKey(k)] = true
	}
	if path == "" {
		return r, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading who is admitted: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRoster+1))
	if err != nil {
		return nil, fmt.Errorf("reading who is admitted: %w", err)
	}
	// Not started without it: it says who was revoked.
	if err := r.parse(data); err != nil {
		return nil, fmt.Errorf("reading who is admitted: %s: %w; restore it from a backup, or admit and revoke anew: an empty file forgets who was revoked", path, err)
	}
	return r, nil
}

func (r *roster) parse(data []byte) error {
	if len(data) > maxRoster {
		return fmt.Errorf("more than %d bytes", maxRoster)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var f rosterFile
	if err := d.Decode(&f); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the list")
	}
	for _, n := range f.Nodes {
		key, err := edge.ParseKey(string(n.Key))
		if err != nil {
			return err
		}
		if err := (edge.Order{Name: n.Name, Tier: n.Tier}).Check(); err != nil {
			return err
		}
		n.Key = key
		r.added[key] = n
	}
	for _, k := range f.Revoked {
		key, err := edge.ParseKey(string(k))
		if err != nil {
			return err
		}
		r.revoked[key] = true
		delete(r.added, key)
	}
	return nil
}

// admits says whether a key may come in.
func (r *roster) admits(key ed25519.PublicKey) bool {
	k := textKey(key)
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, added := r.added[k]
	return (added || r.fixed[k]) && !r.revoked[k]
}

// isRevoked says whether a key was revoked.
func (r *roster) isRevoked(key site.Key) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.revoked[key]
}

// list is everybody, each sorted by key.
func (r *roster) list() (nodes []edge.Node, revoked []site.Key) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := maps.Clone(r.added)
	for k := range r.fixed {
		if _, ok := all[k]; !ok {
			all[k] = edge.Node{Key: k}
		}
	}
	for k, n := range all {
		if !r.revoked[k] {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(a, b edge.Node) int { return cmp.Compare(a.Key, b.Key) })
	return nodes, slices.Sorted(maps.Keys(r.revoked))
}

// errRevoked refuses one who was revoked.
var errRevoked = errors.New("this key was revoked, which is for ever: let the machine make a new one (`veilor leave`, then `veilor join`)")

// add admits a node, on disk and then here. undo takes that back; it is nil if
// nothing changed.
func (r *roster) add(n edge.Node) (undo func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.added
	if old, ok := before[n.Key]; ok && old == n {
		return nil, nil
	}
	if len(before) >= maxNodes {
		return nil, fmt.Errorf("%d nodes are admitted, which is as many as there may be; revoke some", len(before))
	}
	added := maps.Clone(before)
	added[n.Key] = n
	if err := r.write(added, r.revoked); err != nil {
		return nil, err
	}
	r.added = added
	return func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.added = before
		return r.write(r.added, r.revoked)
	}, nil
}

// revoke revokes a key: here at once, even if the disk then fails.
func (r *roster) revoke(key site.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[key] = true
	delete(r.added, key)
	// Also when it was revoked already: perhaps the disk failed then.
	return r.write(r.added, r.revoked)
}

func (r *roster) write(added map[site.Key]edge.Node, revoked map[site.Key]bool) error {
	f := rosterFile{Nodes: []edge.Node{}, Revoked: []site.Key{}}
	for _, k := range slices.Sorted(maps.Keys(added)) {
		f.Nodes = append(f.Nodes, added[k])
	}
	f.Revoked = append(f.Revoked, slices.Sorted(maps.Keys(revoked))...)
	data, err := json.MarshalIndent(f, "", " ")
	if err == nil {
		err = renameio.WriteFile(r.path, append(data, '\n'), 0o600)
	}
	if err == nil {
		err = syncDir(filepath.Dir(r.path))
	}
	if err != nil {
		return fmt.Errorf("writing down who is admitted: %w", err)
	}
	return nil
}
