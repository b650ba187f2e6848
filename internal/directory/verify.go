package directory

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strconv"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// Why an offered directory is refused. What is in force stays in force.
var (
	// ErrUnsigned is too few good signatures, or none, or by strangers.
	ErrUnsigned = errors.New("not signed by enough of the maintainers' keys")
	// ErrOlder is a copy older than one that this machine has seen.
	ErrOlder = errors.New("older than the one that is in force")
	// ErrExpired is a copy whose signatures have run out by this machine's clock.
	ErrExpired = errors.New("its signatures have expired")
	// ErrTooLarge is more bytes than any real one has.
	ErrTooLarge = errors.New("too large")
	// ErrCurrent is no fault: it is the one that is in force.
	ErrCurrent = errors.New("it is the one that is in force already")
	// ErrDamaged is anything else: cut short, not what the signatures are for.
	ErrDamaged = errors.New("damaged")
)

const (
	// addressesRole is the delegated role.
	addressesRole   = "addresses"
	namesTarget     = "directory.json"
	addressesTarget = "addresses.json"

	// maxMetadata bounds one metadata file: ten signers make 4 KiB.
	maxMetadata = 64 << 10
	// maxRotations bounds how many new roots are followed at once (one a year
	// is many).
	maxRotations = 64
)

// Files are files of a TUF repository with consistent snapshots, by their path
// below its base: "timestamp.json", "3.targets.json", "targets/HASH.directory.json".
type Files map[string][]byte

// Source gives a file of a repository, of at most limit bytes. One that does not
// exist is fs.ErrNotExist; a longer one is ErrTooLarge.
type Source func(name string, limit int64) ([]byte, error)

// Get is the Source that has nothing but f.
func (f Files) Get(name string, limit int64) ([]byte, error) {
	data, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, ErrTooLarge, len(data))
	}
	return data, nil
}

// Copy is a verified directory with the files that prove it.
type Copy struct {
	Directory Directory
	// Files are every root since the anchor, and the newest of everything else.
	Files Files

	targets   *metadata.Metadata[metadata.TargetsType]
	timestamp int64
}

func rootName(version int64) string { return strconv.FormatInt(version, 10) + ".root.json" }

func versioned(version int64, role string) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// Verify follows src from the trusted root anchor to a directory, as TUF's
// client workflow (specification §5) says, and never to one older than have,
// which may be nil. An expired one is refused; with a zero now the clock is not
// asked, which is for copies that were verified before.
func Verify(anchor []byte, have *Copy, src Source, now time.Time) (*Copy, error) {
	old := Files{}
	if have != nil {
		old = maps.Clone(have.Files)
	}
	w := walk{old: old, src: src, files: Files{}}
	tm, err := trustedmetadata.New(anchor)
	if err != nil {
		return nil, fmt.Errorf("reading the root that this system trusts: %w", refusal(err))
	}
	tm.RefTime = now.UTC()
	c, err := w.run(tm, anchor)
	if err != nil {
		return nil, err
	}
	if have != nil {
		// TUF forgets versions when keys are replaced; we do not.
		d, h := c.Directory, have.Directory
		if d.Version < h.Version || d.Moves < h.Moves {
			return nil, fmt.Errorf("%w: versions %d and %d, in force are %d and %d", ErrOlder, d.Version, d.Moves, h.Version, h.Moves)
		}
	}
	return c, nil
}

// walk is one run through a repository.
type walk struct {
	old   Files
	src   Source
	files Files
}

// file is a file that the metadata names: the copy that is there, or src's.
func (w *walk) file(name string, limit int64) ([]byte, error) {
	if data, ok := w.old[name]; ok {
		w.files[name] = data
		return data, nil
	}
	data, err := w.src(name, limit)
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", name, err)
	}
	w.files[name] = data
	return data, nil
}

func (w *walk) run(tm *trustedmetadata.TrustedMetadata, anchor []byte) (*Copy, error) {
	w.files[rootName(tm.Root.Signed.Version)] = anchor
	// Older roots lead an older system, to which somebody went back, to here.
	for name, data := range w.old {
		var version int64
		if n, err := fmt.Sscanf(name, "%d.root.json", &version); n == 1 && err == nil && version < tm.Root.Signed.Version {
			w.files[rootName(version)] = data
		}
	}
	for range maxRotations {
		name := rootName(tm.Root.Signed.Version + 1)
		data, err := w.file(name, maxMetadata)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		if _, err := tm.UpdateRoot(data); err != nil {
			return nil, fmt.Errorf("checking %s: %w", name, refusal(err))
		}
	}
	if err := w.timestamp(tm); err != nil {
		return nil, err
	}
	if err := w.snapshot(tm); err != nil {
		return nil, err
	}
	targets, err := w.role(tm, metadata.TARGETS, metadata.ROOT)
	if err != nil {
		return nil, err
	}
	moves, err := w.role(tm, addressesRole, metadata.TARGETS)
	if err != nil {
		return nil, err
	}
	// The delegation is for one file. A role that names another tries what it
	// may not.
	for name := range moves.Signed.Targets {
		if name != addressesTarget {
			return nil, fmt.Errorf("checking %s.json: %w: it names %s, which that role may not change", addressesRole, ErrUnsigned, name)
		}
	}
	namesData, err := w.target(targets, namesTarget)
	if err != nil {
		return nil, err
	}
	addressesData, err := w.target(moves, addressesTarget)
	if err != nil {
		return nil, err
	}
	names, err := ParseNames(namesData)
	if err != nil {
		return nil, err
	}
	addresses, err := ParseAddresses(addressesData)
	if err != nil {
		return nil, err
	}
	d, err := Merge(names, addresses)
	if err != nil {
		return nil, err
	}
	d.Origin, d.Version, d.Moves = Signed, targets.Signed.Version, moves.Signed.Version
	d.Expires = tm.Timestamp.Signed.Expires
	d.Made = d.Expires.Add(-timestampLife)
	for _, e := range []time.Time{tm.Root.Signed.Expires, tm.Snapshot.Signed.Expires, targets.Signed.Expires, moves.Signed.Expires} {
		if e.Before(d.Expires) {
			d.Expires = e
		}
	}
	return &Copy{Directory: d, Files: w.files, targets: targets, timestamp: tm.Timestamp.Signed.Version}, nil
}

// timestamp takes the newest timestamp.json, which says whether anything is new.
func (w *walk) timestamp(tm *trustedmetadata.TrustedMetadata) error {
	const name = metadata.TIMESTAMP + ".json"
	if data, ok := w.old[name]; ok {
		// It has been verified before. It may have expired or be signed by keys
		// that are replaced since; then it only does not help.
		if err := complete(data); err == nil {
			tm.UpdateTimestamp(data)
		}
	}
	data, err := w.src(name, maxMetadata)
	if err != nil {
		return fmt.Errorf("getting %s: %w", name, err)
	}
	if err := complete(data); err != nil {
		return fmt.Errorf("checking %s: %w", name, err)
	}
	if _, err := tm.UpdateTimestamp(data); err != nil {
		return fmt.Errorf("checking %s: %w", name, refusal(err))
	}
	w.files[name] = data
	return nil
}

// complete refuses a timestamp without what go-tuf takes for granted.
func complete(data []byte) error {
	t, err := metadata.Timestamp().FromBytes(data)
	if err != nil {
		return refusal(err)
	}
	if t.Signed.Meta[metadata.SNAPSHOT+".json"] == nil {
		return fmt.Errorf("%w: it names no snapshot", ErrDamaged)
	}
	return nil
}

func (w *walk) snapshot(tm *trustedmetadata.TrustedMetadata) error {
	name := versioned(tm.Timestamp.Signed.Meta[metadata.SNAPSHOT+".json"].Version, metadata.SNAPSHOT)
	for old, data := range w.old {
		var version int64
		if n, err := fmt.Sscanf(old, "%d.snapshot.json", &version); n == 1 && err == nil && old != name {
			tm.UpdateSnapshot(data, true) // for its versions: none may go back
		}
	}
	data, err := w.file(name, maxMetadata)
	if err != nil {
		return err
	}
	if _, err := tm.UpdateSnapshot(data, false); err != nil {
		return fmt.Errorf("checking %s: %w", name, refusal(err))
	}
	return nil
}

func (w *walk) role(tm *trustedmetadata.TrustedMetadata, role, parent string) (*metadata.Metadata[metadata.TargetsType], error) {
	meta := tm.Snapshot.Signed.Meta[role+".json"]
	if meta == nil {
		return nil, fmt.Errorf("checking the snapshot: %w: it does not name %s.json", ErrDamaged, role)
	}
	name := versioned(meta.Version, role)
	if data, ok := w.old[name]; ok {
		if m, err := tm.UpdateDelegatedTargets(data, role, parent); err == nil {
			w.files[name] = data
			return m, nil
		}
		// The same may have got other signatures since, after keys changed.
		delete(w.old, name)
	}
	data, err := w.file(name, maxMetadata)
	if err != nil {
		return nil, err
	}
	m, err := tm.UpdateDelegatedTargets(data, role, parent)
	if err != nil {
		return nil, fmt.Errorf("checking %s: %w", name, refusal(err))
	}
	return m, nil
}

// target is a file that m is responsible for.
func (w *walk) target(m *metadata.Metadata[metadata.TargetsType], name string) ([]byte, error) {
	t := m.Signed.Targets[name]
	if t == nil || len(t.Hashes["sha256"]) == 0 {
		return nil, fmt.Errorf("getting %s: %w: no metadata names it", name, ErrDamaged)
	}
	if t.Length > maxFile {
		return nil, fmt.Errorf("getting %s: %w: %d bytes", name, ErrTooLarge, t.Length)
	}
	path := targetPath(name, t)
	data, err := w.file(path, t.Length)
	if err != nil {
		return nil, err
	}
	if err := t.VerifyLengthHashes(data); err != nil {
		return nil, fmt.Errorf("checking %s: %w", name, refusal(err))
	}
	return data, nil
}

func targetPath(name string, t *metadata.TargetFiles) string {
	return "targets/" + hex.EncodeToString(t.Hashes["sha256"]) + "." + name
}

// refusal says in our words why go-tuf refuses.
func refusal(err error) error {
	for _, c := range []struct{ theirs, ours error }{
		{&metadata.ErrUnsignedMetadata{}, ErrUnsigned},
		{&metadata.ErrExpiredMetadata{}, ErrExpired},
		{&metadata.ErrEqualVersionNumber{}, ErrCurrent},
		{&metadata.ErrBadVersionNumber{}, ErrOlder},
	} {
		if errors.Is(err, c.theirs) {
			return fmt.Errorf("%w (%s)", c.ours, err.Error())
		}
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
