package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/strictyaml"
)

// maxExposure is the highest score of `systemd-analyze security` for a service of
// ours, on its scale from 0 to 10. systemd itself calls anything below 2 safe and
// below 5 ok.
const maxExposure = 2.5

var unitRules = []Rule{
	{
		ID:     "unit-exposure",
		What:   "every service of ours is as shut in as it can be",
		Why:    "a hole in one of them must not be a hole in the laptop",
		Source: "systemd-analyze security",
		Fix:    "restrict the unit further, or commit a ceiling with its reason in overlay/ceilings.yaml",
		check:  exposure,
	},
	{
		ID:     "presets",
		What:   "presets, recipe and units agree on what starts",
		Why:    "an [Install] section does nothing by itself; a preset alone counts on the first boot only, and not where the installer wrote a machine id",
		Source: "systemd.preset(5), machine-id(5)",
		Fix:    "name the unit in overlay/usr/lib/systemd/system-preset (user-preset for a unit of a person's session) and under enabled or disabled in the recipe",
		check:  presets,
	},
	{
		ID:     "unit-install",
		What:   "what a unit is wanted by pulls it in",
		Why:    "a unit wanted by a passive target, or by one kind of sleep, never runs or not always",
		Source: "systemd.special(7)",
		Fix:    "write WantedBy=multi-user.target, or sleep.target with StopWhenUnneeded=yes",
		check:  wantedBy,
	},
	{
		ID:     "sysusers",
		What:   "every user of a unit is made by sysusers.d",
		Why:    "a script that makes users runs in the build, and /etc/passwd of a laptop does not get them",
		Source: "sysusers.d(5)",
		Fix:    "add a line to overlay/usr/lib/sysusers.d",
		check:  sysusers,
	},
}

// ceiling is a committed exception to maxExposure.
type ceiling struct {
	Unit     string  `yaml:"unit"`
	Exposure float64 `yaml:"exposure"`
	Why      string  `yaml:"why"`
}

// parseCeilings reads the text of overlay.CeilingsFile.
func parseCeilings(name string, data []byte) ([]ceiling, error) {
	var file struct {
		Ceilings []ceiling `yaml:"ceilings"`
	}
	doc, err := strictyaml.Decode(name, data, &file, "see the comment at the head of "+name+" for the keys there are")
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, c := range file.Ceilings {
		at := fmt.Sprintf("ceilings[%d]", i)
		if c.Unit == "" || len(strings.Fields(c.Why)) < 4 {
			errs = append(errs, doc.Problem(at, "unit and why must say which service and for what it needs its rights"))
		}
		if c.Exposure <= maxExposure || c.Exposure > 10 {
			errs = append(errs, doc.Problem(at+".exposure", "%.1f; a ceiling lies above %.1f and is at most 10", c.Exposure, maxExposure))
		}
	}
	return file.Ceilings, errors.Join(errs...)
}

var exposureRe = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func exposure(ctx context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	ceilings := map[string]float64{}
	name := overlayDir + "/" + overlay.CeilingsFile
	if data, err := fs.ReadFile(s.Source, name); err == nil {
		all, err := parseCeilings(name, data)
		p.add(err)
		for _, c := range all {
			ceilings[c.Unit] = c.Exposure
		}
	}
	files := map[string][]byte{}
	var names []string
	for _, e := range s.units() {
		if n := path.Base(e.Path); strings.HasSuffix(n, ".service") && strings.HasPrefix(e.Path, "usr/lib/systemd/system/") {
			files[n] = e.Data
			names = append(names, n)
		}
	}
	for c := range ceilings {
		if !slices.Contains(names, c) {
			p.addf("%s: there is no %s", name, c)
		}
	}
	p.add(laid(files, func(dir string) error {
		var p problems
		for _, n := range names {
			out, err := s.Tools.run(ctx, "systemd-analyze", "security", "--offline=true", "--no-pager", dir+"/"+n)
			if _, missing := err.(skip); missing {
				return err
			}
			m := exposureRe.FindStringSubmatch(out)
			if m == nil && (strings.Contains(out, "unrecognized option") || strings.Contains(out, "Failed to connect to bus")) {
				return skipf("systemd-analyze is older than version 250")
			}
			if m == nil {
				p.addf("%s: %s", n, complaint(out, fmt.Errorf("no score: %v", err), dir))
				continue
			}
			score, _ := strconv.ParseFloat(m[1], 64)
			limit, committed := ceilings[n]
			switch {
			case committed && score <= maxExposure:
				p.addf("%s: exposure %.1f needs no ceiling any more; take it out of %s", n, score, name)
			case !committed && score > maxExposure, committed && score > limit:
				p.addf("%s: exposure %.1f, at most %.1f", n, score, max(limit, maxExposure))
			}
		}
		return p.err()
	}))
	return p.err()
}

// presetOf returns the preset file of a scope (system or user) that names a unit,
// and what it says.
func presetOf(s *Subject, scope, unit string) (file, verb string) {
	for _, e := range s.below("usr/lib/systemd/"+scope+"-preset/", ".preset") {
		for line := range strings.Lines(string(e.Data)) {
			if w := strings.Fields(line); len(w) == 2 && w[1] == unit {
				return e.Path, w[0]
			}
		}
	}
	return "", ""
}

// scopeOf is the scope of a unit at p: system or user.
func scopeOf(p string) string { return path.Base(path.Dir(p)) }

// presetNames orders preset files so that ours win over the base's.
var presetRe = regexp.MustCompile(`^(enable|disable) [A-Za-z0-9@._-]+\.(service|timer|socket|path|target)$`)

func presets(_ context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	said := map[string]string{} // by scope/name
	for _, m := range modules[*recipe.Systemd](s) {
		for scope, u := range map[string]recipe.Units{"system/": m.System, "user/": m.User} {
			for _, n := range u.Enabled {
				said[scope+n] = "enable"
			}
			for _, n := range append(slices.Clone(u.Disabled), u.Masked...) {
				said[scope+n] = "disable"
			}
		}
	}
	ours := map[string]bool{}
	for _, e := range s.units() {
		n := path.Base(e.Path)
		scope := scopeOf(e.Path)
		ours[scope+"/"+n] = true
		if !regexp.MustCompile(`(?m)^\[Install\]`).Match(e.Data) {
			continue
		}
		_, verb := presetOf(s, scope, n)
		switch recipeSays := said[scope+"/"+n]; {
		case verb == "":
			p.addf("/%s: no preset names it", e.Path)
		case recipeSays == "":
			p.addf("/%s: %s does not say whether it is enabled", e.Path, recipePath)
		case recipeSays != verb:
			p.addf("/%s: the recipe says %s, its preset %s", e.Path, recipeSays, verb)
		}
	}
	for _, e := range append(s.below("usr/lib/systemd/system-preset/", ""), s.below("usr/lib/systemd/user-preset/", "")...) {
		// The first file that names a unit wins: secureblue's are 35 and 40.
		if base := path.Base(e.Path); base >= "35" {
			p.addf("/%s: the base's presets are read before it; begin its name with 30-", e.Path)
		}
		for line := range strings.Lines(uncommented(string(e.Data))) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			if !presetRe.MatchString(line) {
				p.addf("/%s: %q is no preset for one unit", e.Path, line)
				continue
			}
			n := strings.Fields(line)[1]
			if scope := strings.TrimSuffix(path.Base(path.Dir(e.Path)), "-preset"); strings.HasPrefix(n, "veilor") && !ours[scope+"/"+n] {
				p.addf("/%s: there is no unit %s", e.Path, n)
			}
		}
	}
	return p.err()
}

func wantedBy(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	for _, e := range s.units() {
		text := uncommented(string(e.Data))
		for _, m := range regexp.MustCompile(`(?m)^WantedBy=(.*)$`).FindAllStringSubmatch(text, -1) {
			for _, t := range strings.Fields(m[1]) {
				switch t {
				case "first-boot-complete.target", "network-online.target", "network.target", "nss-lookup.target":
					p.addf("/%s: %s is passive, nothing pulls it", e.Path, t)
				case "suspend.target":
					p.addf("/%s: suspend.target misses the other kinds of sleep", e.Path)
				case "sleep.target":
					if !strings.Contains(text, "StopWhenUnneeded=yes") {
						p.addf("/%s: wanted by sleep.target without StopWhenUnneeded=yes", e.Path)
					}
				}
			}
		}
		if strings.Contains(text, "ConditionFirstBoot=") {
			p.addf("/%s: ConditionFirstBoot= is never true where the installer wrote a machine id; use a file below /var or /etc", e.Path)
		}
		if strings.HasSuffix(e.Path, ".service") && strings.Contains(text, "Before=sysinit.target") && !strings.Contains(text, "DefaultDependencies=no") {
			p.addf("/%s: Before=sysinit.target with default dependencies is a cycle", e.Path)
		}
	}
	return p.err()
}

func sysusers(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	made := map[string]bool{"root": true, "nobody": true}
	for _, e := range s.below("usr/lib/sysusers.d/", ".conf") {
		for line := range strings.Lines(uncommented(string(e.Data))) {
			if w := strings.Fields(line); len(w) > 1 && strings.HasPrefix(w[0], "u") {
				made[w[1]] = true
			}
		}
	}
	var p problems
	for _, e := range s.units() {
		for _, m := range regexp.MustCompile(`(?m)^User=(.+)$`).FindAllStringSubmatch(string(e.Data), -1) {
			if !made[strings.TrimSpace(m[1])] && !strings.Contains(string(e.Data), "DynamicUser=yes") {
				p.addf("/%s: nothing makes its user %s", e.Path, m[1])
			}
		}
	}
	if e, ok := s.Tree.Find("etc/passwd"); ok {
		p.addf("/%s replaces the base's list of users", e.Path)
	}
	return p.err()
}
