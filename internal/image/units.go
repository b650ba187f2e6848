package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
)

// errNoUnit says that neither overlay nor base has a unit.
var errNoUnit = errors.New("no such unit in the overlay or the base")

// units applies a systemd module as systemctl --root would: links below
// etc/systemd/system (or user) made and removed by the [Install] sections.
// absent are units that are not there to be disabled.
func (s *stage) units(ctx context.Context, m *recipe.Systemd) (absent []string, err error) {
	for _, scope := range []struct {
		name string
		u    recipe.Units
	}{{"system", m.System}, {"user", m.User}} {
		u := unitScope{stage: s, name: scope.name, conf: "etc/systemd/" + scope.name + "/", vendor: "usr/lib/systemd/" + scope.name + "/"}
		for _, n := range scope.u.Unmasked {
			u.unmask(n)
		}
		for _, n := range scope.u.Enabled {
			if err := u.enable(ctx, n, map[string]bool{}); err != nil {
				return nil, fmt.Errorf("enabling %s: %w", n, err)
			}
		}
		for _, n := range scope.u.Disabled {
			err := u.disable(ctx, n)
			if errors.Is(err, errNoUnit) {
				absent = append(absent, "disabled "+n)
			} else if err != nil {
				return nil, fmt.Errorf("disabling %s: %w", n, err)
			}
		}
		for _, n := range scope.u.Masked {
			if err := u.mask(n); err != nil {
				return nil, fmt.Errorf("masking %s: %w", n, err)
			}
		}
	}
	return absent, nil
}

// unitScope is the system's or the users' units.
type unitScope struct {
	*stage
	name, conf, vendor string
}

// install is the [Install] section of a unit (systemd.unit(5)).
type install struct {
	links []string // relative to conf: "multi-user.target.wants/x.service"
	also  []string
}

// read returns the content of a unit and where it is in the image.
func (u unitScope) read(ctx context.Context, name string) ([]byte, string, error) {
	file := name
	if at := strings.IndexByte(name, '@'); at >= 0 {
		file = name[:at+1] + path.Ext(name)
	}
	for _, dir := range []string{u.conf, u.vendor} {
		for _, f := range slices.Compact([]string{name, file}) {
			if e, ok := u.entries[dir+f]; ok {
				if e.Link == "/dev/null" {
					return nil, "", errors.New("it is masked; take it out of masked, or put it under unmasked")
				}
				return e.Data, dir + f, nil
			}
			if u.remove[dir+f] {
				continue
			}
			if b, _, ok := u.base.find(dir + f); ok && b.typ == tar.TypeSymlink && b.link == "/dev/null" {
				return nil, "", errors.New("the base masks it; put it under unmasked too")
			}
			data, err := u.base.Read(ctx, dir+f)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, "", fmt.Errorf("reading /%s%s: %w", dir, f, err)
			}
			return data, dir + f, nil
		}
	}
	return nil, "", errNoUnit
}

// parseInstall reads the [Install] section of the unit called name.
func parseInstall(name string, data []byte) install {
	var in install
	section := ""
	lines := bufio.NewScanner(bytes.NewReader(bytes.ReplaceAll(data, []byte("\\\n"), nil)))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "[Install]" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		for _, v := range strings.Fields(value) {
			switch strings.TrimSpace(key) {
			case "WantedBy":
				in.links = append(in.links, v+".wants/"+name)
			case "RequiredBy":
				in.links = append(in.links, v+".requires/"+name)
			case "UpheldBy":
				in.links = append(in.links, v+".upholds/"+name)
			case "Alias":
				in.links = append(in.links, v)
			case "Also":
				in.also = append(in.also, v)
			}
		}
	}
	return in
}

// enable makes the links of a unit and of those that it names in Also.
func (u unitScope) enable(ctx context.Context, name string, seen map[string]bool) error {
	if seen[name] {
		return nil
	}
	seen[name] = true
	data, at, err := u.read(ctx, name)
	if err != nil {
		return err
	}
	in := parseInstall(name, data)
	if len(in.links)+len(in.also) == 0 {
		return errors.New("its [Install] section is missing or empty, so nothing would start it; give it WantedBy")
	}
	for _, l := range in.links {
		delete(u.remove, u.conf+l)
		u.put(overlay.Entry{Path: u.conf + l, Link: "/" + at, Group: overlay.Config})
	}
	for _, a := range in.also {
		if err := u.enable(ctx, a, seen); err != nil {
			return fmt.Errorf("its Also=%s: %w", a, err)
		}
	}
	return nil
}

// disable removes every link by which the unit is enabled, wherever the base
// made it, and those of the units in its Also.
func (u unitScope) disable(ctx context.Context, name string) error {
	data, _, err := u.read(ctx, name)
	if err != nil {
		return err
	}
	for _, n := range append([]string{name}, parseInstall(name, data).also...) {
		enables := func(p, target string) bool {
			return path.Base(target) == n || (path.Base(p) == n && path.Dir(p) != path.Clean(u.conf))
		}
		for p, e := range u.entries {
			if strings.HasPrefix(p, u.conf) && e.Link != "" && enables(p, e.Link) {
				delete(u.entries, p)
			}
		}
		for p, f := range u.base.files {
			in, ok := strings.CutPrefix(p, "usr/")
			if !ok || !strings.HasPrefix(in, u.conf) {
				in = p
			}
			if strings.HasPrefix(in, u.conf) && f.typ == tar.TypeSymlink && enables(in, f.link) {
				u.remove[p] = true
			}
		}
	}
	return nil
}

// mask makes the unit unstartable. That it does not exist is no error: another
// base may bring it.
func (u unitScope) mask(name string) error {
	p := u.conf + name
	if e, ok := u.entries[p]; ok && e.Link == "" {
		return fmt.Errorf("the overlay has the unit at /%s, where the mask goes; move it to /%s", p, u.vendor)
	}
	if f, at, ok := u.base.find(p); ok && f.typ != tar.TypeSymlink {
		return fmt.Errorf("the base has the unit at /%s, where the mask goes; disable it instead", at)
	}
	u.put(overlay.Entry{Path: p, Link: "/dev/null", Group: overlay.Config})
	return nil
}

// unmask removes a mask of the base.
func (u unitScope) unmask(name string) {
	if f, at, ok := u.base.find(u.conf + name); ok && f.typ == tar.TypeSymlink && f.link == "/dev/null" {
		u.remove[at] = true
	}
}
