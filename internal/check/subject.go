package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/trust"
)

// Paths in a checkout.
const (
	recipePath   = "bluebuild/recipes/recipe.yml"
	overlayDir   = "overlay"
	workflowsDir = ".github/workflows"
)

// Image is a built image, as far as rules look into it.
type Image interface {
	// Has says whether the image has a file, link or directory at a path without
	// leading slash.
	Has(path string) bool
	// Read returns a file's content, fs.ErrNotExist if there is none.
	Read(ctx context.Context, path string) ([]byte, error)
	// Lstat returns the type and permission bits of what the image has at a path,
	// a link's target, and the SHA-256 of a regular file's content. Links are not
	// followed.
	Lstat(path string) (mode fs.FileMode, link string, sum [sha256.Size]byte, ok bool)
	// Setuid are all files with a setuid or setgid bit, sorted.
	Setuid() []string
}

// Subject is what the rules look at.
type Subject struct {
	// Source is the checkout.
	Source fs.FS
	// Site is complete: what the operator has not supplied has a stand-in.
	Site *site.Site
	// Missing is what the stand-ins are for.
	Missing error
	Recipe  *recipe.Recipe
	// RecipeText is the recipe as written.
	RecipeText string
	// Tree is the overlay as rendered for Site, without programs.
	Tree    overlay.Tree
	Undo    []overlay.Undo
	Scripts overlay.Tree
	// Image is nil if none was given.
	Image Image
	Tools Tools

	broken map[string]error // what could not be read, by name
}

// Load reads the checkout src for the site s. What cannot be read fails the rules
// that are about it; the others go on.
func Load(src fs.FS, s *site.Site, now time.Time) (*Subject, error) {
	sub := &Subject{Source: src, Missing: s.Complete(), broken: map[string]error{}}
	var err error
	if sub.Site, err = completed(s, now); err != nil {
		return nil, err
	}
	text, err := fs.ReadFile(src, recipePath)
	if err == nil {
		sub.RecipeText = string(text)
		sub.Recipe, err = recipe.Parse(recipePath, text)
	}
	if err != nil {
		sub.broken["recipe"] = err
		sub.Recipe = &recipe.Recipe{}
	}
	over, err := fs.Sub(src, overlayDir)
	if err != nil {
		return nil, fmt.Errorf("reading the overlay: %w", err)
	}
	if sub.Tree, err = overlay.Render(over, sub.Site); err != nil {
		sub.broken["overlay"] = err
	}
	if sub.Undo, err = overlay.LoadUndo(over); err != nil {
		sub.broken["undo"] = err
	}
	if sub.Scripts, err = overlay.Scripts(over, sub.Undo, sub.Tree); err != nil && sub.broken["overlay"] == nil {
		sub.broken["overlay"] = err
	}
	return sub, nil
}

// need returns an error for a rule that cannot be checked because something that
// it is about could not be read; the rule about that says what is wrong.
func (s *Subject) need(names ...string) error {
	for _, n := range names {
		if s.broken[n] != nil {
			return skipf("the %s cannot be read", n)
		}
	}
	return nil
}

// file returns a file of the rendered overlay; a problem if it is not there.
func (s *Subject) file(p string) ([]byte, error) {
	if err := s.need("overlay"); err != nil {
		return nil, err
	}
	e, ok := s.Tree.Find(p)
	if !ok {
		return nil, fmt.Errorf("/%s is not in the overlay", p)
	}
	return e.Data, nil
}

// below are the files of the rendered overlay in a directory and further down
// ("etc/sudoers.d/") whose names end in suffix.
func (s *Subject) below(dir, suffix string) []overlay.Entry {
	var found []overlay.Entry
	for _, e := range s.Tree {
		if e.Link == "" && strings.HasPrefix(e.Path, dir) && strings.HasSuffix(e.Path, suffix) {
			found = append(found, e)
		}
	}
	return found
}

// units are the overlay's own system and user services.
func (s *Subject) units() []overlay.Entry {
	var found []overlay.Entry
	for _, dir := range []string{"usr/lib/systemd/system/", "usr/lib/systemd/user/"} {
		for _, e := range s.below(dir, "") {
			if path.Dir(e.Path)+"/" == dir {
				found = append(found, e)
			}
		}
	}
	return found
}

// modules are all modules of one type.
func modules[T recipe.Spec](s *Subject) []T {
	var found []T
	for _, m := range s.Recipe.Modules {
		if spec, ok := m.Spec.(T); ok {
			found = append(found, spec)
		}
	}
	return found
}

// snippets are all lines that the recipe runs in the image.
func (s *Subject) snippets() []string {
	var all []string
	for _, m := range modules[*recipe.Script](s) {
		all = append(all, m.Snippets...)
	}
	return all
}

// calls says whether the recipe runs the script, and the renderer has it.
func (s *Subject) calls(script string) error {
	for _, m := range modules[*recipe.Script](s) {
		if slices.Contains(m.Scripts, script) {
			if _, ok := s.Scripts.Find(script); !ok {
				return fmt.Errorf("%s calls %s, which nothing renders", recipePath, script)
			}
			return nil
		}
	}
	return fmt.Errorf("%s does not call %s", recipePath, script)
}

// installs are the names of all packages that the recipe installs.
func (s *Subject) installs() []string {
	var all []string
	var flatten func(v any)
	flatten = func(v any) {
		switch v := v.(type) {
		case string:
			all = append(all, v)
		case []any:
			for _, e := range v {
				flatten(e)
			}
		case map[string]any:
			for _, k := range []string{"packages", "name", "new"} {
				flatten(v[k])
			}
		}
	}
	for _, m := range modules[*recipe.DNF](s) {
		flatten(m.Install.Packages)
		for _, r := range m.Replace {
			flatten(r.Packages)
		}
	}
	for _, m := range modules[*recipe.RPMOSTree](s) {
		all = append(all, m.Install...)
		flatten(m.Replace)
	}
	return all
}

// removes are the names of all packages that the recipe removes.
func (s *Subject) removes() []string {
	var all []string
	for _, m := range modules[*recipe.DNF](s) {
		all = append(all, m.Remove.Packages...)
	}
	for _, m := range modules[*recipe.RPMOSTree](s) {
		all = append(all, m.Remove...)
	}
	return all
}

// undoes returns the undo entry of a path.
func (s *Subject) undoes(p string) (overlay.Undo, bool) {
	for _, u := range s.Undo {
		if u.Path == p {
			return u, true
		}
	}
	return overlay.Undo{}, false
}

// completed returns a copy of s in which what only the operator can supply has a
// stand-in, so that everything else can be checked before he does.
func completed(s *site.Site, now time.Time) (*site.Site, error) {
	c := *s
	var failed error
	fill := func(files []site.File) []site.File {
		files = slices.Clone(files)
		for i := range files {
			if files[i].Data == nil {
				var err error
				files[i].Data, err = standInKey()
				failed = errors.Join(failed, err)
			}
		}
		return files
	}
	c.Image.Signatures = slices.Clone(s.Image.Signatures)
	for i := range c.Image.Signatures {
		c.Image.Signatures[i].Keys = fill(c.Image.Signatures[i].Keys)
	}
	if d := s.Directory; d != nil {
		d := *d
		d.Keys, d.Addresses.Keys = fill(d.Keys), fill(d.Addresses.Keys)
		c.Directory = &d
	}
	if failed != nil {
		return nil, failed
	}
	if c.Authority.Data == nil {
		pair, err := trust.Create(s.Zone, now)
		if err != nil {
			return nil, err
		}
		c.Authority.Data = pair.Certificate
	}
	nodes := 0
	node := func() site.Key {
		nodes++
		return site.Key(fmt.Sprintf("%064x", nodes))
	}
	c.Hosts = slices.Clone(s.Hosts)
	for i := range c.Hosts {
		if !slices.ContainsFunc(s.Services, func(v site.Service) bool { return v.Host == c.Hosts[i].Name }) {
			continue
		}
		if !c.Hosts[i].Tailnet.IsValid() {
			// Headscale gives addresses in this prefix from its start on.
			c.Hosts[i].Tailnet = netip.AddrFrom4([4]byte{100, 64, 255, byte(i + 1)})
		}
		if c.Hosts[i].Yggdrasil == "" {
			c.Hosts[i].Yggdrasil = node()
		}
	}
	peers := func(list []site.Peer) []site.Peer {
		list = slices.Clone(list)
		for i := range list {
			if list[i].Key == "" {
				list[i].Key = node()
			}
			if !list[i].Address.IsValid() {
				list[i].Address = netip.MustParseAddrPort("192.0.2.1:443") // TEST-NET-1, RFC 5737
			}
		}
		return list
	}
	edges := s.Yggdrasil.Edges
	if len(edges) == 0 {
		edges = []site.Peer{{Name: "stand-in", URL: "wss://edge.example/"}}
	}
	c.Yggdrasil = site.Yggdrasil{Edges: peers(edges), Public: peers(s.Yggdrasil.Public)}
	return &c, nil
}

// standInKey is a public key that nobody signs with.
func standInKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a stand-in for a key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("making a stand-in for a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// source returns a file of the checkout, and "" if it is not there.
func (s *Subject) source(p string) string {
	data, err := fs.ReadFile(s.Source, p)
	if err != nil {
		return ""
	}
	return string(data)
}

// contains returns a problem for each text that is not in data, which errors call
// name.
func contains(name string, data []byte, texts ...string) error {
	var p problems
	for _, t := range texts {
		if !bytes.Contains(data, []byte(t)) {
			p.addf("%s does not contain %q", name, t)
		}
	}
	return p.err()
}
