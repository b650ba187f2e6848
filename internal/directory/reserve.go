package directory

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const (
	// reserveType is the PEM type of reserve edges.
	reserveType = "VEILOR RESERVE EDGES"
	// payloadType keeps these signatures apart from all others (DSSE's PAE).
	payloadType = "application/vnd.veilor.reserve-edges+json"
	// maxReserve is how many reserve edges one laptop gets.
	maxReserve = 8
	// maxSignatures bounds the work of a hostile file.
	maxSignatures = 32
	// reserveLife is how long a list may be imported. What was imported stays.
	reserveLife = 90 * day
)

// Reserve is what one laptop gets that no public directory has: edges, since the
// directory is a censor's list of what to block, and the password of the
// Yggdrasil group.
type Reserve struct {
	Format int `json:"format"`
	// For is the Yggdrasil public key of the laptop, 64 hex digits.
	For string `json:"for"`
	// Number grows with every list for this laptop.
	Number  int64          `json:"number"`
	Expires time.Time      `json:"expires"`
	Edges   []ReservedEdge `json:"edges"`
	// Group says which password comes along, if one does.
	Group *GroupDigest `json:"group,omitempty"`

	// Secret is that password, as package ygggroup reads it; only Import gives it.
	Secret []byte `json:"-"`
}

// GroupDigest is what is signed and kept of a password: enough to know it by. The
// password itself is in the file that is brought, and then only where veilor-ygg
// reads it.
type GroupDigest struct {
	Salt   []byte `json:"salt"`
	SHA256 []byte `json:"sha256"`
}

// saltSize is in bytes (NIST SP 800-132 §5.1 asks for 16).
const saltSize = 16

func digest(salt, secret []byte) []byte {
	h := sha256.New()
	h.Write([]byte("veilor group password\x00"))
	h.Write(salt)
	h.Write(secret)
	return h.Sum(nil)
}

// ReservedEdge is an edge with its address.
type ReservedEdge struct {
	Node
	NodeAddress NodeAddress `json:"at"`
}

// Peer is e as the directory's edges are.
func (e ReservedEdge) Peer() Peer {
	return Peer{Node: e.Node, Address: e.NodeAddress.Address, Network: e.NodeAddress.Network}
}

// Envelope is a signed Reserve, in the form of DSSE
// (github.com/secure-systems-lab/dsse).
type Envelope struct {
	Payload     []byte        `json:"payload"`
	PayloadType string        `json:"payloadType"`
	Signatures  []EnvelopeSig `json:"signatures"`
	// Secret is the password that the payload's GroupDigest is of. Whoever has
	// the file has it: it is for one laptop, and is handed over as its key would
	// be.
	Secret []byte `json:"secret,omitempty"`
}

// EnvelopeSig is one signature; KeyID is TUF's.
type EnvelopeSig struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// NewReserve is a list that nobody has signed yet, with the text of the group's
// password (package ygggroup) if that is not empty.
func NewReserve(laptop string, number int64, edges []ReservedEdge, group []byte, now time.Time) (*Envelope, error) {
	r := Reserve{Format: Format, For: laptop, Number: number, Expires: now.UTC().Truncate(day).Add(reserveLife), Edges: edges}
	if len(group) > 0 {
		salt := make([]byte, saltSize)
		rand.Read(salt) // never fails
		r.Group = &GroupDigest{Salt: salt, SHA256: digest(salt, group)}
	}
	if err := r.valid(); err != nil {
		return nil, fmt.Errorf("making reserve edges: %w", err)
	}
	data, err := encode(r)
	if err != nil {
		return nil, fmt.Errorf("making reserve edges: %w", err)
	}
	return &Envelope{Payload: data, PayloadType: payloadType, Signatures: []EnvelopeSig{}, Secret: group}, nil
}

func (r Reserve) valid() error {
	var c checks
	c.key("the laptop", r.For)
	if r.Number < 1 {
		c.failf("list %d; the first is 1", r.Number)
	}
	if g := r.Group; g != nil && (len(g.Salt) != saltSize || len(g.SHA256) != sha256.Size) {
		c.failf("the digest of the group's password has %d and %d bytes", len(g.Salt), len(g.SHA256))
	}
	if (len(r.Edges) == 0 && r.Group == nil) || len(r.Edges) > maxReserve {
		c.failf("%d reserve edges; 1 to %d are read", len(r.Edges), maxReserve)
		return errors.Join(c.errs...)
	}
	n := Names{Format: Format, Zone: "veilor", Control: "https://control.example"}
	a := Addresses{Format: Format}
	for _, e := range r.Edges {
		n.Edges = append(n.Edges, e.Node)
		a.Nodes = append(a.Nodes, e.NodeAddress)
		if e.NodeAddress.Name != e.Name {
			c.failf("reserve edge %s: its address is %q's", e.Name, e.NodeAddress.Name)
		}
	}
	return errors.Join(append(c.errs, n.valid(), a.valid())...)
}

// Sign adds the signature of a maintainer.
func (e *Envelope) Sign(key signature.Signer) error {
	public, err := key.PublicKey()
	if err != nil {
		return fmt.Errorf("signing reserve edges: %w", err)
	}
	s, err := newSigners([]crypto.PublicKey{public}, 1)
	if err != nil {
		return fmt.Errorf("signing reserve edges: %w", err)
	}
	sig, err := key.SignMessage(bytes.NewReader(dsse.PAE(e.PayloadType, e.Payload)))
	if err != nil {
		return fmt.Errorf("signing reserve edges: %w", err)
	}
	e.Signatures = slices.DeleteFunc(e.Signatures, func(o EnvelopeSig) bool { return o.KeyID == s.ids[0] })
	e.Signatures = append(e.Signatures, EnvelopeSig{KeyID: s.ids[0], Sig: sig})
	return nil
}

// Pack is e as PEM.
func (e *Envelope) Pack() ([]byte, error) { return pack(reserveType, e) }

// verify wants the signatures of those who sign names and keys: an edge brings a
// key, and that is not for the addresses role.
func (e *Envelope) verify(root *metadata.Metadata[metadata.RootType]) (Reserve, error) {
	if e.PayloadType != payloadType {
		return Reserve{}, fmt.Errorf("reading reserve edges: %w: a payload of type %q", ErrDamaged, e.PayloadType)
	}
	if len(e.Signatures) > maxSignatures || len(e.Payload) > maxFile {
		return Reserve{}, fmt.Errorf("reading reserve edges: %w", ErrTooLarge)
	}
	by := rootSigners(root, metadata.TARGETS)
	var sigs []metadata.Signature
	for _, s := range e.Signatures {
		sigs = append(sigs, metadata.Signature{KeyID: s.KeyID, Signature: s.Sig})
	}
	if good := by.good(dsse.PAE(e.PayloadType, e.Payload), sigs); by.threshold < 1 || len(good) < by.threshold {
		return Reserve{}, fmt.Errorf("reading reserve edges: %w: %d of %d", ErrUnsigned, len(good), by.threshold)
	}
	var r Reserve
	if err := decode("reserve edges", e.Payload, &r); err != nil {
		return Reserve{}, err
	}
	if err := r.valid(); err != nil {
		return Reserve{}, fmt.Errorf("reading reserve edges: %w", err)
	}
	return r, nil
}

// open is verify, for the laptop with this key at this time, and newer than
// number. With ErrCurrent it returns the list, too.
func (e *Envelope) open(root *metadata.Metadata[metadata.RootType], laptop string, number int64, now time.Time) (Reserve, error) {
	r, err := e.verify(root)
	if err != nil {
		return Reserve{}, err
	}
	switch {
	case r.For != laptop:
		return Reserve{}, fmt.Errorf("reading reserve edges: %w: they are for the laptop with the key %s…, and this one's is %s…", ErrStranger, r.For[:8], laptop[:min(8, len(laptop))])
	case !now.IsZero() && now.After(r.Expires):
		return Reserve{}, fmt.Errorf("reading reserve edges: %w on %s", ErrExpired, r.Expires.Format(time.DateOnly))
	case r.Number < number:
		return Reserve{}, fmt.Errorf("reading reserve edges: %w: list %d, in force is %d", ErrOlder, r.Number, number)
	case r.Number == number:
		return r, fmt.Errorf("reading reserve edges: %w", ErrCurrent)
	}
	return r, nil
}

// secret is the password that came with e, which is r.
func (e *Envelope) secret(r Reserve) ([]byte, error) {
	switch {
	case r.Group == nil && e.Secret == nil:
		return nil, nil
	case e.Secret == nil:
		return nil, fmt.Errorf("reading reserve edges: %w: the group's password is not in it any more; ask for the file anew", ErrDamaged)
	case r.Group == nil, subtle.ConstantTimeCompare(digest(r.Group.Salt, e.Secret), r.Group.SHA256) != 1:
		return nil, fmt.Errorf("reading reserve edges: %w: the group's password is not the one that was signed", ErrUnsigned)
	}
	return e.Secret, nil
}

// ErrStranger is for another laptop.
var ErrStranger = errors.New("not for this laptop")

// newestRoot is the last root of verified files.
func newestRoot(files Files) (*metadata.Metadata[metadata.RootType], error) {
	newest := int64(0)
	for name := range maps.Keys(files) {
		var version int64
		if n, err := fmt.Sscanf(name, "%d.root.json", &version); n == 1 && err == nil {
			newest = max(newest, version)
		}
	}
	return metadata.Root().FromBytes(files[rootName(newest)])
}
