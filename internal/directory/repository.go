package directory

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// maxRepositoryFiles bounds what is read of a repository's directory: a hundred
// years of monthly changes.
const maxRepositoryFiles = 8192

// metadataFile is a metadata file's name: role, and version but for the
// timestamp's.
var metadataFile = regexp.MustCompile(`^(timestamp|[1-9][0-9]{0,8}\.(root|snapshot|targets|addresses))\.json$`)

// targetFile is a target's name: its SHA-256 and what it is.
var targetFile = regexp.MustCompile(`^targets/[0-9a-f]{64}\.[a-z0-9.-]{1,64}$`)

// knownFile says whether name may be in a repository.
func knownFile(name string) bool {
	return metadataFile.MatchString(name) || targetFile.MatchString(name)
}

// ReadRepository reads the repository in dir, which need not exist yet. Files
// that are not a repository's are left alone.
func ReadRepository(dir string) (Files, error) {
	files := Files{}
	for _, sub := range []string{".", "targets"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the repository: %w", err)
		}
		for _, e := range entries {
			name := path.Join(sub, e.Name())
			if !knownFile(name) {
				continue
			}
			if len(files) == maxRepositoryFiles {
				return nil, fmt.Errorf("reading the repository in %s: %w: more than %d files", dir, ErrTooLarge, maxRepositoryFiles)
			}
			data, err := readFile(filepath.Join(dir, name), maxMetadata)
			if err != nil {
				return nil, fmt.Errorf("reading the repository: %w", err)
			}
			files[name] = data
		}
	}
	return files, nil
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return data, nil
}

// WriteRepository writes what differs to dir. The timestamp comes last, so that
// whoever fetches meanwhile sees the old or the new whole.
func WriteRepository(dir string, files Files) error {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	rank := func(name string) int {
		switch {
		case name == metadata.TIMESTAMP+".json":
			return 2
		case strings.HasPrefix(name, "targets/"):
			return 0
		}
		return 1
	}
	slices.SortFunc(names, func(a, b string) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		return strings.Compare(a, b)
	})
	if err := os.MkdirAll(filepath.Join(dir, "targets"), 0o755); err != nil {
		return fmt.Errorf("writing the repository: %w", err)
	}
	for _, name := range names {
		file := filepath.Join(dir, name)
		if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, files[name]) {
			continue
		}
		if err := renameio.WriteFile(file, files[name], 0o644, renameio.IgnoreUmask()); err != nil {
			return fmt.Errorf("writing the repository: %w", err)
		}
	}
	// A draft of a root that was dropped must not stay: laptops would try it.
	newest := int64(0)
	for files[rootName(newest+1)] != nil {
		newest++
	}
	if err := os.Remove(filepath.Join(dir, rootName(newest+1))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the repository: %w", err)
	}
	return nil
}

// signers are keys of which threshold must sign.
type signers struct {
	keys      map[string]*metadata.Key
	ids       []string
	threshold int
}

func newSigners(keys []crypto.PublicKey, threshold int) (signers, error) {
	s := signers{keys: map[string]*metadata.Key{}, threshold: threshold}
	for _, k := range keys {
		key, err := metadata.KeyFromPublicKey(k)
		if err != nil {
			return signers{}, fmt.Errorf("reading a maintainer's key: %w", err)
		}
		id, err := key.ID()
		if err != nil {
			return signers{}, fmt.Errorf("reading a maintainer's key: %w", err)
		}
		if s.keys[id] != nil {
			return signers{}, errors.New("reading the maintainers' keys: one of them is there twice, and would count twice")
		}
		s.keys[id], s.ids = key, append(s.ids, id)
	}
	slices.Sort(s.ids)
	return s, nil
}

// rootSigners are those whom a root trusts with a role.
func rootSigners(root *metadata.Metadata[metadata.RootType], role string) signers {
	r := root.Signed.Roles[role]
	if r == nil {
		return signers{}
	}
	return signers{root.Signed.Keys, r.KeyIDs, r.Threshold}
}

// delegatedSigners are those whom targets trusts with the addresses.
func delegatedSigners(targets *metadata.Metadata[metadata.TargetsType]) signers {
	if d := targets.Signed.Delegations; d != nil {
		for _, r := range d.Roles {
			if r.Name == addressesRole {
				return signers{d.Keys, r.KeyIDs, r.Threshold}
			}
		}
	}
	return signers{}
}

// good are the ids of s that have signed the message.
func (s signers) good(message []byte, sigs []metadata.Signature) []string {
	var ids []string
	for _, id := range s.ids {
		key := s.keys[id]
		if key == nil {
			continue
		}
		public, err := key.ToPublicKey()
		if err != nil {
			continue
		}
		v, err := signature.LoadVerifier(public, crypto.SHA256)
		if err != nil {
			continue
		}
		for _, sig := range sigs {
			if sig.KeyID == id && v.VerifySignature(bytes.NewReader(sig.Signature), bytes.NewReader(message)) == nil {
				ids = append(ids, id)
				break
			}
		}
	}
	return ids
}

// canonical is what is signed of a metadata file.
func canonical(signed any) ([]byte, error) { return cjson.EncodeCanonical(signed) }

// repository is a repository's newest chain, read but not trusted.
type repository struct {
	files     Files
	root      *metadata.Metadata[metadata.RootType] // the newest
	previous  *metadata.Metadata[metadata.RootType] // the one before it; nil for the first
	targets   *metadata.Metadata[metadata.TargetsType]
	addresses *metadata.Metadata[metadata.TargetsType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	timestamp *metadata.Metadata[metadata.TimestampType]
}

// open follows the names from the timestamp. What is absent is nil.
func open(files Files) (*repository, error) {
	r := &repository{files: files}
	var err error
	for v := int64(1); files[rootName(v)] != nil; v++ {
		r.previous = r.root
		if r.root, err = metadata.Root().FromBytes(files[rootName(v)]); err != nil {
			return nil, fmt.Errorf("reading %s: %w", rootName(v), err)
		}
		if r.root.Signed.Version != v {
			return nil, fmt.Errorf("reading %s: it says that it is version %d", rootName(v), r.root.Signed.Version)
		}
	}
	data := files[metadata.TIMESTAMP+".json"]
	if data == nil {
		return r, nil
	}
	if err := complete(data); err != nil {
		return nil, fmt.Errorf("reading timestamp.json: %w", err)
	}
	if r.timestamp, err = metadata.Timestamp().FromBytes(data); err != nil {
		return nil, fmt.Errorf("reading timestamp.json: %w", err)
	}
	name := versioned(r.timestamp.Signed.Meta[metadata.SNAPSHOT+".json"].Version, metadata.SNAPSHOT)
	if r.snapshot, err = metadata.Snapshot().FromBytes(files[name]); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if r.targets, err = r.role(metadata.TARGETS); err != nil {
		return nil, err
	}
	if r.addresses, err = r.role(addressesRole); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *repository) role(role string) (*metadata.Metadata[metadata.TargetsType], error) {
	meta := r.snapshot.Signed.Meta[role+".json"]
	if meta == nil {
		return nil, fmt.Errorf("reading the snapshot: it does not name %s.json", role)
	}
	name := versioned(meta.Version, role)
	m, err := metadata.Targets().FromBytes(r.files[name])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return m, nil
}

// Signature says who has signed a file of the newest chain.
type Signature struct {
	// File is its name: "3.targets.json".
	File string `json:"file"`
	// Role is what it is about.
	Role string `json:"role"`
	// Keys are the keys (the first 8 hex digits of their TUF id) that signed.
	Keys []string `json:"keys"`
	// Wanted is how many must.
	Wanted int `json:"wanted"`
	// Old is set for the second line of a new root, which the keys of the one
	// before it must sign as well.
	Old bool `json:"old,omitempty"`
}

// Enough says whether no signature is missing.
func (s Signature) Enough() bool { return s.Wanted > 0 && len(s.Keys) >= s.Wanted }

// shortID is enough of a key's id to tell a handful of keys apart.
func shortID(id string) string { return id[:min(8, len(id))] }

// Signatures lists who has signed the newest chain of the repository.
func (f Files) Signatures() ([]Signature, error) {
	r, err := open(f)
	if err != nil {
		return nil, err
	}
	if r.root == nil || r.timestamp == nil {
		return nil, errors.New("reading the repository: it is empty; begin with: veilor-forge directory sign")
	}
	var all []Signature
	for _, p := range r.parts() {
		message, err := canonical(p.signed)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", p.file, err)
		}
		s := Signature{File: p.file, Role: p.role, Wanted: p.by.threshold, Old: p.old, Keys: []string{}}
		for _, id := range p.by.good(message, *p.signatures) {
			s.Keys = append(s.Keys, shortID(id))
		}
		all = append(all, s)
	}
	return all, nil
}

// part is one file of the chain and who must sign it.
type part struct {
	file, role string
	signed     any
	signatures *[]metadata.Signature
	by         signers
	old        bool
	write      func() ([]byte, error)
	sign       func(signature.Signer) (*metadata.Signature, error)
}

// parts are the files of the chain; those that the others speak of come first.
func (r *repository) parts() []part {
	root := part{
		file: rootName(r.root.Signed.Version), role: metadata.ROOT, signed: r.root.Signed, signatures: &r.root.Signatures,
		by: rootSigners(r.root, metadata.ROOT), write: func() ([]byte, error) { return r.root.ToBytes(false) }, sign: r.root.Sign,
	}
	all := []part{root}
	if r.previous != nil {
		root.by, root.old = rootSigners(r.previous, metadata.ROOT), true
		all = append(all, root)
	}
	targets := func(role string, m *metadata.Metadata[metadata.TargetsType], by signers) part {
		return part{
			file: versioned(m.Signed.Version, role), role: role, signed: m.Signed, signatures: &m.Signatures,
			by: by, write: func() ([]byte, error) { return m.ToBytes(false) }, sign: m.Sign,
		}
	}
	return append(all,
		targets(metadata.TARGETS, r.targets, rootSigners(r.root, metadata.TARGETS)),
		targets(addressesRole, r.addresses, delegatedSigners(r.targets)),
		part{
			file: versioned(r.snapshot.Signed.Version, metadata.SNAPSHOT), role: metadata.SNAPSHOT, signed: r.snapshot.Signed, signatures: &r.snapshot.Signatures,
			by: rootSigners(r.root, metadata.SNAPSHOT), write: func() ([]byte, error) { return r.snapshot.ToBytes(false) }, sign: r.snapshot.Sign,
		},
		part{
			file: metadata.TIMESTAMP + ".json", role: metadata.TIMESTAMP, signed: r.timestamp.Signed, signatures: &r.timestamp.Signatures,
			by: rootSigners(r.root, metadata.TIMESTAMP), write: func() ([]byte, error) { return r.timestamp.ToBytes(false) }, sign: r.timestamp.Sign,
		})
}

// enough says whether p has all its signatures.
func (p part) enough() bool {
	message, err := canonical(p.signed)
	return err == nil && p.by.threshold > 0 && len(p.by.good(message, *p.signatures)) >= p.by.threshold
}
