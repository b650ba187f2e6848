package directory

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/site"
)

// How long signatures are good. Nothing stops working when they end: a laptop
// only takes no change that has expired. So they may be long, and the shortest is
// for how old a copy an ISP can pass off as the newest.
const (
	rootLife      = 2 * 365 * day
	targetsLife   = 365 * day
	addressesLife = 180 * day
	snapshotLife  = 180 * day
	// timestampLife: people sign by hand, once a month.
	timestampLife = 35 * day

	day = 24 * time.Hour
	// renewBefore is the part of a life that is left when a signature is
	// renewed: a third.
	renewBefore = 3
)

// Trust says whose signatures count.
type Trust struct {
	Keys               []crypto.PublicKey
	Threshold          int
	AddressKeys        []crypto.PublicKey
	AddressesThreshold int
}

// TrustOf is what the site file says.
func TrustOf(s *site.Site) (Trust, error) {
	if s.Directory == nil {
		return Trust{}, errors.New(`reading who signs the directory: the site file does not say; write for example
directory:
  keys: [keys/directory-1.pub, keys/directory-2.pub, keys/directory-3.pub]
  threshold: 2
  addresses:
    keys: [keys/addresses-1.pub, keys/addresses-2.pub]
    threshold: 1
and make each pair with: veilor-forge key generate --out DIR --name directory-1`)
	}
	d := s.Directory
	t := Trust{Threshold: d.Threshold, AddressesThreshold: d.Addresses.Threshold}
	for _, l := range []struct {
		files []site.File
		to    *[]crypto.PublicKey
	}{{d.Keys, &t.Keys}, {d.Addresses.Keys, &t.AddressKeys}} {
		for _, f := range l.files {
			if f.Data == nil {
				return Trust{}, fmt.Errorf("reading who signs the directory: %s is not there; make the pair with: veilor-forge key generate --out DIR", f.Path)
			}
			v, err := signing.ParsePublic(f.Path, f.Data)
			if err != nil {
				return Trust{}, err
			}
			*l.to = append(*l.to, v.PublicKey())
		}
	}
	return t, nil
}

// Draft returns the repository f with a newest chain that says d. What says so
// already and will not expire soon is kept, with its signatures. changes are lines
// for the maintainer.
//
// With onlyAddresses, names and keys stay as they were last signed: what is
// being changed about them waits.
func Draft(f Files, d Directory, t Trust, onlyAddresses bool, now time.Time) (_ Files, changes []string, err error) {
	r, err := open(maps.Clone(f))
	if err != nil {
		return nil, nil, err
	}
	main, err := newSigners(t.Keys, t.Threshold)
	if err != nil {
		return nil, nil, err
	}
	movers, err := newSigners(t.AddressKeys, t.AddressesThreshold)
	if err != nil {
		return nil, nil, err
	}
	names, err := d.Names.Encode()
	if err != nil {
		return nil, nil, fmt.Errorf("checking the directory: %w", err)
	}
	addresses, err := d.Addresses.Encode()
	if err != nil {
		return nil, nil, fmt.Errorf("checking the directory: %w", err)
	}
	// Whole days, so that two maintainers who begin on one day begin the same.
	b := &builder{repository: r, today: now.UTC().Truncate(day)}
	if onlyAddresses {
		if err := b.lastSigned(); err != nil {
			return nil, nil, err
		}
	} else {
		if err := b.draftRoot(main, movers); err != nil {
			return nil, nil, err
		}
		if err := b.draftTargets(names, movers); err != nil {
			return nil, nil, err
		}
	}
	if err := b.draftAddresses(addresses); err != nil {
		return nil, nil, err
	}
	if err := b.draftIndex(); err != nil {
		return nil, nil, err
	}
	for _, p := range b.parts() {
		if b.files[p.file], err = p.write(); err != nil {
			return nil, nil, fmt.Errorf("writing %s: %w", p.file, err)
		}
	}
	return b.files, b.changes, nil
}

// builder drafts the next chain.
type builder struct {
	*repository
	today   time.Time
	changes []string
}

func (b *builder) changed(format string, args ...any) {
	b.changes = append(b.changes, fmt.Sprintf(format, args...))
}

// due says whether something that lives for life ends soon.
func (b *builder) due(expires time.Time, life time.Duration) bool {
	return expires.Before(b.today.Add(life / renewBefore))
}

// lastSigned goes back to the newest root and targets with enough signatures.
func (b *builder) lastSigned() error {
	if b.root == nil || b.targets == nil {
		return errors.New("changing addresses only: nothing is signed yet; sign the whole first, without --only-addresses")
	}
	if b.previous != nil && !b.rootSigned() {
		// Laptops would stumble over a root that waits.
		delete(b.files, rootName(b.root.Signed.Version))
		r, err := open(b.files)
		if err != nil {
			return err
		}
		b.repository = r
		b.changed("the new root that waited for signatures is dropped; `directory sign` drafts it again")
	}
	for v := b.targets.Signed.Version; v > 0; v-- {
		m, err := metadata.Targets().FromBytes(b.files[versioned(v, metadata.TARGETS)])
		if err != nil {
			continue
		}
		b.targets = m
		if b.parts()[b.targetsPart()].enough() {
			return nil
		}
	}
	return errors.New("changing addresses only: no version of the names has enough signatures; sign the whole first, without --only-addresses")
}

// targetsPart is the index of targets among the parts.
func (b *builder) targetsPart() int {
	if b.previous != nil {
		return 2
	}
	return 1
}

func (b *builder) draftRoot(main, movers signers) error {
	next := metadata.Root(b.today.Add(rootLife))
	next.Signed.ConsistentSnapshot = true
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		by := main
		if role == metadata.SNAPSHOT || role == metadata.TIMESTAMP {
			by = movers
		}
		next.Signed.Roles[role] = &metadata.Role{KeyIDs: by.ids, Threshold: by.threshold}
		for _, id := range by.ids {
			next.Signed.Keys[id] = by.keys[id]
		}
	}
	if b.root == nil {
		b.root = next
		b.changed("new root: %d of %d keys, for addresses %d of %d", main.threshold, len(main.ids), movers.threshold, len(movers.ids))
		return nil
	}
	same := reflect.DeepEqual(roles(b.root), roles(next))
	signed := b.rootSigned()
	switch {
	case same && !(signed && b.due(b.root.Signed.Expires, rootLife)):
		return nil
	case signed:
		next.Signed.Version = b.root.Signed.Version + 1
		b.previous = b.root
	default:
		next.Signed.Version = b.root.Signed.Version
	}
	if same {
		b.changed("root renewed")
	} else {
		b.changed("root: keys or thresholds changed")
	}
	b.root = next
	return nil
}

// rootSigned says whether the root has all its signatures, the old keys' too.
func (b *builder) rootSigned() bool {
	message, err := canonical(b.root.Signed)
	if err != nil {
		return false
	}
	by := rootSigners(b.root, metadata.ROOT)
	if len(by.good(message, b.root.Signatures)) < by.threshold {
		return false
	}
	if b.previous == nil {
		return true
	}
	by = rootSigners(b.previous, metadata.ROOT)
	return len(by.good(message, b.root.Signatures)) >= by.threshold
}

// roles is what a root says besides version and expiry, in a form to compare.
func roles(root *metadata.Metadata[metadata.RootType]) map[string][]string {
	all := map[string][]string{}
	for name, r := range root.Signed.Roles {
		ids := slices.Clone(r.KeyIDs)
		slices.Sort(ids)
		all[name] = append(ids, fmt.Sprint(r.Threshold))
	}
	return all
}

func (b *builder) draftTargets(names []byte, movers signers) error {
	next := metadata.Targets(b.today.Add(targetsLife))
	if b.targets != nil {
		// Other targets of the repository are not this package's to drop.
		for name, t := range b.targets.Signed.Targets {
			next.Signed.Targets[name] = t
		}
	}
	if err := b.putTarget(next, namesTarget, names); err != nil {
		return err
	}
	next.Signed.Delegations = &metadata.Delegations{
		Keys: movers.keys,
		Roles: []metadata.DelegatedRole{{
			Name: addressesRole, KeyIDs: movers.ids, Threshold: movers.threshold, Terminating: true, Paths: []string{addressesTarget},
		}},
	}
	old := b.targets
	b.targets = b.take(metadata.TARGETS, old, next, targetsLife, rootSigners(b.root, metadata.TARGETS))
	if b.targets != old {
		b.changed("names, keys, services: version %d", b.targets.Signed.Version)
	}
	return nil
}

func (b *builder) draftAddresses(addresses []byte) error {
	next := metadata.Targets(b.today.Add(addressesLife))
	if err := b.putTarget(next, addressesTarget, addresses); err != nil {
		return err
	}
	old := b.addresses
	b.addresses = b.take(addressesRole, old, next, addressesLife, delegatedSigners(b.targets))
	if b.addresses != old {
		b.changed("addresses: version %d", b.addresses.Signed.Version)
	}
	return nil
}

func (b *builder) putTarget(m *metadata.Metadata[metadata.TargetsType], name string, data []byte) error {
	t, err := metadata.TargetFile().FromBytes(name, data, "sha256")
	if err != nil {
		return fmt.Errorf("hashing %s: %w", name, err)
	}
	m.Signed.Targets[name] = t
	b.files[targetPath(name, t)] = data
	return nil
}

// take returns old if it says what next says and is not due, and otherwise next,
// as the version after the newest that anybody has signed: one version never says
// two things. A draft that waits and says the same keeps its signatures.
func (b *builder) take(role string, old, next *metadata.Metadata[metadata.TargetsType], life time.Duration, by signers) *metadata.Metadata[metadata.TargetsType] {
	if old == nil {
		return next
	}
	message, err := canonical(old.Signed)
	signed := err == nil && by.threshold > 0 && len(by.good(message, old.Signatures)) >= by.threshold
	// A file that others signed once is out there; a version gets no new signers.
	foreign := slices.ContainsFunc(old.Signatures, func(s metadata.Signature) bool { return !slices.Contains(by.ids, s.KeyID) })
	if sameTargets(old, next) && !foreign && !(signed && b.due(old.Signed.Expires, life)) {
		return old
	}
	next.Signed.Version = old.Signed.Version
	if len(old.Signatures) > 0 {
		next.Signed.Version++
	}
	for {
		draft, err := metadata.Targets().FromBytes(b.files[versioned(next.Signed.Version, role)])
		switch {
		case err != nil || draft.Signed.Version != next.Signed.Version:
			return next
		case sameTargets(draft, next):
			return draft
		case len(draft.Signatures) == 0:
			return next
		}
		next.Signed.Version++
	}
}

// sameTargets compares without version and expiry.
func sameTargets(a, b *metadata.Metadata[metadata.TargetsType]) bool {
	x, y := a.Signed, b.Signed
	x.Version, y.Version, x.Expires, y.Expires = 0, 0, time.Time{}, time.Time{}
	p, err1 := canonical(x)
	q, err2 := canonical(y)
	return err1 == nil && err2 == nil && bytes.Equal(p, q)
}

// draftIndex drafts snapshot and timestamp if anything else is new, or they end
// soon.
func (b *builder) draftIndex() error {
	by := rootSigners(b.root, metadata.SNAPSHOT)
	want := map[string]int64{metadata.TARGETS + ".json": b.targets.Signed.Version, addressesRole + ".json": b.addresses.Signed.Version}
	next := metadata.Snapshot(b.today.Add(snapshotLife))
	for name, v := range want {
		next.Signed.Meta[name] = metadata.MetaFile(v)
	}
	fresh := b.snapshot == nil
	if !fresh {
		message, err := canonical(b.snapshot.Signed)
		if err != nil {
			return err
		}
		signed := len(by.good(message, b.snapshot.Signatures)) >= by.threshold
		same := len(b.snapshot.Signed.Meta) == len(want)
		for name, v := range want {
			m := b.snapshot.Signed.Meta[name]
			same = same && m != nil && m.Version == v
		}
		stale := signed && b.due(b.snapshot.Signed.Expires, snapshotLife) || !signed && len(b.snapshot.Signatures) > 0
		if !same || stale {
			fresh = true
			next.Signed.Version = b.snapshot.Signed.Version
			if len(b.snapshot.Signatures) > 0 {
				next.Signed.Version++
			}
		}
	}
	if fresh {
		b.snapshot = next
	}
	t := metadata.Timestamp(b.today.Add(timestampLife))
	t.Signed.Meta[metadata.SNAPSHOT+".json"] = metadata.MetaFile(b.snapshot.Signed.Version)
	if b.timestamp == nil {
		b.timestamp = t
		return nil
	}
	message, err := canonical(b.timestamp.Signed)
	if err != nil {
		return err
	}
	signed := len(rootSigners(b.root, metadata.TIMESTAMP).good(message, b.timestamp.Signatures)) >= by.threshold
	stale := signed && b.due(b.timestamp.Signed.Expires, timestampLife) || !signed && len(b.timestamp.Signatures) > 0
	if fresh || stale {
		t.Signed.Version = b.timestamp.Signed.Version
		if len(b.timestamp.Signatures) > 0 {
			t.Signed.Version++
		}
		b.timestamp = t
		if !fresh {
			b.changed("timestamp renewed: version %d", t.Signed.Version)
		}
	}
	return nil
}

// Sign adds a signature by key to every file of the newest chain that wants one
// of that key. The snapshot and the timestamp, which make laptops take the
// change, are signed only when everything that they speak of has enough. It
// returns the names of the files that are newly signed.
func (f Files) Sign(key signature.Signer) (Files, []string, error) {
	r, err := open(maps.Clone(f))
	if err != nil {
		return nil, nil, err
	}
	if r.root == nil || r.timestamp == nil {
		return nil, nil, errors.New("signing: the repository is empty")
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	k, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	id, err := k.ID()
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	var done []string
	ready, known := true, false
	for _, p := range r.parts() {
		if p.role == metadata.SNAPSHOT && !ready {
			break
		}
		if slices.Contains(p.by.ids, id) {
			known = true
			message, err := canonical(p.signed)
			if err != nil {
				return nil, nil, fmt.Errorf("signing %s: %w", p.file, err)
			}
			if !slices.Contains(p.by.good(message, *p.signatures), id) {
				*p.signatures = slices.DeleteFunc(*p.signatures, func(s metadata.Signature) bool { return s.KeyID == id })
				if _, err := p.sign(key); err != nil {
					return nil, nil, fmt.Errorf("signing %s: %w", p.file, err)
				}
				if r.files[p.file], err = p.write(); err != nil {
					return nil, nil, fmt.Errorf("signing %s: %w", p.file, err)
				}
				done = append(done, p.file)
			}
		}
		ready = ready && p.enough()
	}
	if !known {
		for _, p := range r.parts() {
			known = known || slices.Contains(p.by.ids, id)
		}
	}
	if !known {
		return nil, nil, fmt.Errorf("signing: the key %s is none of the directory's; the site file lists them under directory.keys and directory.addresses.keys", shortID(id))
	}
	return r.files, done, nil
}

// Join returns both repositories in one: the signatures that either has. Two
// files of one version that say different things cannot be joined.
func Join(a, b Files) (Files, error) {
	all := maps.Clone(a)
	for name, theirs := range b {
		ours, ok := all[name]
		if !ok || bytes.Equal(ours, theirs) {
			all[name] = theirs
			continue
		}
		joined, err := joinFile(name, ours, theirs)
		if err != nil {
			return nil, err
		}
		all[name] = joined
	}
	if _, err := open(all); err != nil {
		return nil, fmt.Errorf("joining two repositories: %w", err)
	}
	return all, nil
}

func joinFile(name string, ours, theirs []byte) ([]byte, error) {
	switch {
	case name == metadata.TIMESTAMP+".json":
		return joinTimestamp(ours, theirs)
	case !metadataFile.MatchString(name):
		return nil, fmt.Errorf("joining %s: the two differ, though the name has the hash of the content: one is damaged", name)
	}
	switch _, role, _ := cutVersion(name); role {
	case metadata.ROOT:
		return joinSignatures[metadata.RootType](name, ours, theirs)
	case metadata.SNAPSHOT:
		return joinSignatures[metadata.SnapshotType](name, ours, theirs)
	}
	return joinSignatures[metadata.TargetsType](name, ours, theirs)
}

// joinTimestamp takes the newer: the only file whose name does not say its
// version.
func joinTimestamp(ours, theirs []byte) ([]byte, error) {
	a, err1 := metadata.Timestamp().FromBytes(ours)
	b, err2 := metadata.Timestamp().FromBytes(theirs)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("joining timestamp.json: %w", err)
	}
	switch {
	case a.Signed.Version > b.Signed.Version:
		return ours, nil
	case a.Signed.Version < b.Signed.Version:
		return theirs, nil
	}
	return joinSignatures[metadata.TimestampType]("timestamp.json", ours, theirs)
}

// joinSignatures wants two copies of one file and keeps the signatures of both.
// Whether they are good is for the reader to find out.
func joinSignatures[T metadata.Roles](name string, ours, theirs []byte) ([]byte, error) {
	var both [2]*metadata.Metadata[T]
	var messages [2][]byte
	for i, data := range [][]byte{ours, theirs} {
		m, err := new(metadata.Metadata[T]).FromBytes(data)
		if err != nil {
			return nil, fmt.Errorf("joining %s: %w", name, err)
		}
		both[i] = m
		if messages[i], err = canonical(m.Signed); err != nil {
			return nil, fmt.Errorf("joining %s: %w", name, err)
		}
	}
	if !bytes.Equal(messages[0], messages[1]) {
		return nil, fmt.Errorf("joining %s: the two say different things under one version; one maintainer must drop his (remove the file) and sign the other's", name)
	}
	for _, s := range both[1].Signatures {
		if !slices.ContainsFunc(both[0].Signatures, func(o metadata.Signature) bool { return o.KeyID == s.KeyID }) {
			both[0].Signatures = append(both[0].Signatures, s)
		}
	}
	slices.SortFunc(both[0].Signatures, func(a, b metadata.Signature) int { return strings.Compare(a.KeyID, b.KeyID) })
	data, err := both[0].ToBytes(false)
	if err != nil {
		return nil, fmt.Errorf("joining %s: %w", name, err)
	}
	return data, nil
}

// cutVersion splits "3.targets.json".
func cutVersion(name string) (version, role string, ok bool) {
	version, rest, ok := strings.Cut(name, ".")
	return version, strings.TrimSuffix(rest, ".json"), ok
}
