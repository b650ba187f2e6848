package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/site"
)

// Dir is where a laptop keeps what it has verified. It is in /var, so that going
// back to an older system does not go back to an older directory.
const Dir = "/var/lib/veilor/directory"

const (
	stateFile   = "directory.pem"
	reserveFile = "reserve.pem"
	// reserveGroup is of the only daemon that reads reserveFile.
	reserveGroup = "_veilor-ygg"
)

// ErrNoAnchor is a system whose image carries no signed directory: it has no key
// by which to know a better one.
var ErrNoAnchor = errors.New("this system's image carries no signed directory, so it cannot know who may sign one")

// Store is a laptop's memory of directories.
type Store struct {
	// Dir holds one file, replaced as a whole.
	Dir string
	// Site is the site file of the image, with the directory that the
	// maintainers had signed when the image was made, if they had.
	Site *site.Site
}

// Current is the directory in force: the newest signed one that this machine has
// seen or has in its image, and the site file itself if there is none. dir is
// Dir. A memory that is damaged stops nothing: see Directory.Damage.
func Current(dir string, s *site.Site) (Directory, error) {
	c, damage := Store{Dir: dir, Site: s}.newest()
	if c != nil {
		c.Directory.Damage = damage
		return c.Directory, nil
	}
	d, err := FromSite(s)
	d.Damage = damage
	return d, err
}

// baked is the root that the image trusts, and the image's copy.
func (st Store) baked() (anchor []byte, c *Copy, err error) {
	if st.Site.Directory == nil || st.Site.Directory.Signed.Data == nil {
		return nil, nil, ErrNoAnchor
	}
	p, err := Unpack(st.Site.Directory.Signed.Data)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the directory in the image: %w", err)
	}
	// The image is signed, so what it carries is believed; the first root is
	// where the chain begins.
	for v := int64(1); v <= maxRotations && anchor == nil; v++ {
		anchor = p.Files[rootName(v)]
	}
	if anchor == nil {
		return nil, nil, fmt.Errorf("reading the directory in the image: %w: no root", ErrDamaged)
	}
	c, err = Verify(anchor, nil, p.Files.Get, time.Time{})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the directory in the image: %w", err)
	}
	// From here on only the newest root is trusted: older keys may be lost.
	root, err := newestRoot(c.Files)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the directory in the image: %w", err)
	}
	return c.Files[rootName(root.Signed.Version)], c, nil
}

// newest is the newer of the image's copy and the one in memory; nil if neither
// is there. err says what could not be used.
func (st Store) newest() (*Copy, error) {
	anchor, baked, err := st.baked()
	if errors.Is(err, ErrNoAnchor) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	kept, err := st.kept(anchor)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return baked, nil
	case err != nil:
		return baked, fmt.Errorf("reading the directory that was kept, so the image's is used: %w", err)
	case kept.timestamp < baked.timestamp || kept.Directory.Version < baked.Directory.Version || kept.Directory.Moves < baked.Directory.Moves:
		return baked, nil
	}
	return kept, nil
}

func (st Store) kept(anchor []byte) (*Copy, error) {
	data, err := readFile(filepath.Join(st.Dir, stateFile), MaxPacket)
	if err != nil {
		return nil, err
	}
	p, err := Unpack(data)
	if err != nil {
		return nil, err
	}
	// The clock was asked when it was taken in.
	c, err := Verify(anchor, nil, p.Files.Get, time.Time{})
	if err != nil {
		return nil, err
	}
	for name, data := range p.Files {
		if _, role, _ := cutVersion(name); role == "root" && c.Files[name] == nil {
			c.Files[name] = data // for an older system, see walk.run
		}
	}
	return c, nil
}

// Take verifies what src offers against what is in force, and keeps it. It
// returns the directory that is in force then. If nothing is newer, the error is
// ErrCurrent; whatever the error, what was in force still is.
func (st Store) Take(src Source, now time.Time) (Directory, error) {
	anchor, _, err := st.baked()
	if err != nil {
		return Directory{}, err
	}
	have, _ := st.newest()
	c, err := Verify(anchor, have, src, now)
	if err != nil {
		if have != nil {
			return have.Directory, err
		}
		return Directory{}, err
	}
	data, err := Pack(c.Files)
	if err != nil {
		return have.Directory, err
	}
	return c.Directory, st.write(stateFile, data)
}

func (st Store) write(name string, data []byte) error {
	if err := os.MkdirAll(st.Dir, 0o755); err != nil {
		return fmt.Errorf("keeping the directory: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(st.Dir, name), data, 0o644, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("keeping the directory: %w", err)
	}
	return nil
}

// Import takes what a person brings: a newer directory, or reserve edges for the
// laptop with this Yggdrasil key. It returns which of them it was; what is secret
// in it is not kept here.
func (st Store) Import(p *Packet, laptop string, now time.Time) (Directory, *Reserve, error) {
	if p.Reserve == nil {
		d, err := st.Take(p.Files.Get, now)
		return d, nil, err
	}
	have, err := st.newest()
	if have == nil {
		return Directory{}, nil, errors.Join(ErrNoAnchor, err)
	}
	root, err := newestRoot(have.Files)
	if err != nil {
		return Directory{}, nil, fmt.Errorf("reading the newest root: %w", err)
	}
	number := int64(0)
	if old, err := st.reserve(have, laptop); err == nil {
		number = old.Number
	}
	r, err := p.Reserve.open(root, laptop, number, now)
	current := errors.Is(err, ErrCurrent)
	if err != nil && !current {
		return have.Directory, nil, err
	}
	secret, wrong := p.Reserve.secret(r)
	if wrong != nil {
		return have.Directory, nil, wrong
	}
	r.Secret = secret
	if current { // but perhaps the secret was not put into its place then
		return have.Directory, &r, err
	}
	keep := *p.Reserve
	keep.Secret = nil
	data, err := keep.Pack()
	if err != nil {
		return have.Directory, nil, err
	}
	// Others on this machine need not know of edges that are in no list.
	if err := os.MkdirAll(st.Dir, 0o755); err != nil {
		return have.Directory, nil, fmt.Errorf("keeping the reserve edges: %w", err)
	}
	file := filepath.Join(st.Dir, reserveFile)
	if err := renameio.WriteFile(file, data, 0o640, renameio.IgnoreUmask()); err != nil {
		return have.Directory, nil, fmt.Errorf("keeping the reserve edges: %w", err)
	}
	if g, err := user.LookupGroup(reserveGroup); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err == nil {
			err = os.Chown(file, -1, gid)
		}
		if err != nil {
			return have.Directory, nil, fmt.Errorf("keeping the reserve edges: %w", err)
		}
	}
	return have.Directory, &r, nil
}

// Reserve are the reserve edges that were imported for the laptop with this key;
// none if there are none.
func (st Store) Reserve(laptop string) ([]Peer, error) {
	have, err := st.newest()
	if have == nil {
		return nil, err
	}
	r, err := st.reserve(have, laptop)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var peers []Peer
	for _, e := range r.Edges {
		// An edge that has become a public one is known by its public entry.
		if !slices.ContainsFunc(have.Directory.Names.nodes(), func(n Node) bool { return n.Key == e.Key }) {
			peers = append(peers, e.Peer())
		}
	}
	return peers, nil
}

func (st Store) reserve(have *Copy, laptop string) (Reserve, error) {
	data, err := readFile(filepath.Join(st.Dir, reserveFile), MaxPacket)
	if err != nil {
		return Reserve{}, fmt.Errorf("reading the reserve edges: %w", err)
	}
	p, err := Unpack(data)
	if err != nil {
		return Reserve{}, err
	}
	if p.Reserve == nil {
		return Reserve{}, fmt.Errorf("reading the reserve edges: %w: it is something else", ErrDamaged)
	}
	root, err := newestRoot(have.Files)
	if err != nil {
		return Reserve{}, fmt.Errorf("reading the newest root: %w", err)
	}
	return p.Reserve.open(root, laptop, 0, time.Time{})
}
