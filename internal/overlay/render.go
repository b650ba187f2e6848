package overlay

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"text/template"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/theme"
)

// Paths of what is made rather than copied.
const (
	SitePath      = "usr/share/veilor/site.yaml"
	AuthorityPath = "etc/pki/ca-trust/source/anchors/veilor-authority.pem"
	PolicyPath    = "etc/containers/policy.json"
)

// KeyPath is where the image carries the n-th (from 1) public key of a signature
// group.
func KeyPath(group string, n int) string {
	return fmt.Sprintf("usr/share/pki/containers/veilor-%s-%d.pub", group, n)
}

// Render returns what src, the overlay directory, becomes for s, without
// programs. Links are not followed; see [Tree.Check].
func Render(src fs.FS, s *site.Site) (Tree, error) {
	kept, err := readBasePolicy(src)
	if err != nil {
		return nil, err
	}
	made, err := fromSite(s, kept)
	if err != nil {
		return nil, err
	}
	look, err := readTheme(src)
	if err != nil {
		return nil, fmt.Errorf("reading the overlay: %w", err)
	}
	more := look.Funcs()
	// Without include in what is included, nothing can include itself.
	more["include"] = func(p string) (string, error) {
		data, err := fs.ReadFile(src, p+".tmpl")
		if err != nil {
			return "", err
		}
		text, err := expand(p, data, s, look.Funcs())
		return string(text), err
	}
	var entries []Entry
	var errs []error
	err = fs.WalkDir(src, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		if p == UndoFile || p == BasePolicyFile || p == CeilingsFile || strings.HasPrefix(p, scriptsDir) {
			return nil
		}
		e, err := read(src, p, d, s, more)
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the overlay: %w", err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return Tree(made).Join(entries...)
}

// readTheme reads the overlay's colours; nil if it has none.
func readTheme(src fs.FS) (*theme.Theme, error) {
	data, err := fs.ReadFile(src, theme.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return theme.Parse(theme.Path, data)
}

// read makes the entry of one file of the overlay.
func read(src fs.FS, p string, d fs.DirEntry, s *site.Site, more template.FuncMap) (Entry, error) {
	bad := func(format string, args ...any) (Entry, error) {
		return Entry{}, fmt.Errorf("reading the overlay: %s: %s", p, fmt.Sprintf(format, args...))
	}
	switch top, rest, _ := strings.Cut(p, "/"); {
	case top != "usr" && top != "etc":
		return bad("only usr/ and etc/ belong to the image; move it there, or make what is elsewhere at run time (tmpfiles.d for /var)")
	case strings.HasPrefix(rest, "etc/") && top == "usr":
		return bad("usr/etc is ostree's own; move it to etc/")
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return bad("a name that begins with .wh. removes a file in an image layer; list what is to be removed in %s", UndoFile)
	}
	info, err := d.Info()
	if err != nil {
		return Entry{}, fmt.Errorf("reading the overlay: %w", err)
	}
	mode := info.Mode()
	switch {
	case mode&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		return bad("setuid or setgid; remove it (chmod ug-s) and give the unit that needs it a capability")
	case mode.Type() == fs.ModeSymlink:
		target, err := fs.ReadLink(src, p)
		if err != nil {
			return Entry{}, fmt.Errorf("reading the overlay: %w", err)
		}
		return Entry{Path: p, Link: target, Group: groupOf(p)}, nil
	case !mode.IsRegular():
		return bad("neither a file nor a link; remove it")
	}
	data, err := fs.ReadFile(src, p)
	if err != nil {
		return Entry{}, fmt.Errorf("reading the overlay: %w", err)
	}
	e := Entry{Path: p, Data: data, Exec: mode&0o100 != 0, Group: groupOf(p)}
	if name, ok := strings.CutSuffix(p, ".tmpl"); ok {
		// What the look is made of takes its colours from the theme, and
		// nothing from the site.
		if e.Path = name; e.Group != Branding {
			e.Group = Site
		}
		if e.Data, err = expand(p, data, s, more); err != nil {
			return Entry{}, fmt.Errorf("rendering the overlay: %w", err)
		}
	}
	if name, ok := strings.CutSuffix(e.Path, ".png.svg"); ok {
		e.Path = name + ".png"
		if e.Data, err = theme.PNG(p, e.Data); err != nil {
			return Entry{}, fmt.Errorf("rendering the overlay: %w", err)
		}
	}
	if bytes.Contains(e.Data, []byte("PRIVATE KEY-----")) {
		return bad("holds a private key; an image is public, remove it and change the key")
	}
	return e, nil
}

// brandingDirs hold what is large and changes with the look alone, so that a new
// wallpaper costs a client no program and a new unit no wallpaper.
var brandingDirs = []string{
	"usr/share/backgrounds/", "usr/share/color-schemes/", "usr/share/fonts/", "usr/share/icons/", "usr/share/konsole/",
	"usr/share/pixmaps/", "usr/share/plasma/", "usr/share/plymouth/", "usr/share/sddm/", "usr/share/wallpapers/",
}

// groupOf is the group of what the overlay has at p, if nothing of it is the
// site's.
func groupOf(p string) Group {
	for _, d := range brandingDirs {
		if strings.HasPrefix(p, d) {
			return Branding
		}
	}
	return Config
}

// funcs are what templates have beside the methods of Site; see the package
// comment.
var funcs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v)
		return strings.TrimSuffix(b.String(), "\n"), err
	},
	"join":       func(list []string, sep string) string { return strings.Join(list, sep) },
	"trimPrefix": func(prefix, s string) string { return strings.TrimPrefix(s, prefix) },
	"resolver":   func() string { return site.Resolver.String() },
}

// siteFuncs are the functions whose answer is the site's.
func siteFuncs(s *site.Site) template.FuncMap {
	return template.FuncMap{
		"mirror": func() string { return Mirror(s) },
		"der":    der,
	}
}

// der is a PEM certificate as browsers' policies want it: base64 of its DER form.
func der(text []byte) (string, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return "", errors.New("der: no PEM block")
	}
	return base64.StdEncoding.EncodeToString(block.Bytes), nil
}

func expand(name string, data []byte, s *site.Site, more template.FuncMap) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(funcs).Funcs(siteFuncs(s)).Funcs(more).Parse(string(data))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fromSite makes the entries that are the site's alone.
func fromSite(s *site.Site, kept []BaseScope) ([]Entry, error) {
	text, err := s.Inline()
	if err != nil {
		return nil, fmt.Errorf("rendering the site: %w", err)
	}
	entries := []Entry{
		{Path: SitePath, Data: text, Group: Site},
		{Path: AuthorityPath, Data: s.Authority.Data, Group: Site},
		{Path: PolicyPath, Data: Policy(s, kept...), Group: Site},
	}
	zones, err := zones(s)
	if err != nil {
		return nil, fmt.Errorf("rendering the firewall: %w", err)
	}
	entries = append(entries, zones...)
	for _, g := range s.Image.Signatures {
		for i, k := range g.Keys {
			entries = append(entries, Entry{Path: KeyPath(g.Name, i+1), Data: k.Data, Group: Site})
		}
	}
	return Tree(nil).Join(entries...)
}
