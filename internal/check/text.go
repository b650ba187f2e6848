package check

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/veilor/veilor-os/internal/recipe"
)

var textRules = []Rule{
	{
		ID:     "shell",
		What:   "shellcheck has nothing to say about any script, or line of the recipe",
		Why:    "these run as root, in the build or on the laptop",
		Source: "shellcheck",
		Fix:    "follow the page that shellcheck names (SCnnnn)",
		check:  shell,
	},
	{
		ID:     "desktop-files",
		What:   "every desktop file is one",
		Why:    "a program that cannot be read is not in the menu",
		Source: "freedesktop desktop-entry-spec, desktop-file-validate",
		Fix:    "correct the line that is named",
		check:  desktopFiles,
	},
	{
		ID:     "plymouth",
		What:   "the theme of the boot screen has all its files",
		Why:    "with one missing Plymouth shows text, and the passphrase is asked for blindly",
		Source: "Plymouth, script plugin",
		Fix:    "add the file that is named, or correct the theme",
		check:  plymouth,
	},
	{
		ID:     "json",
		What:   "every JSON file of the image can be read",
		Why:    "who reads it at run time fails there, on the laptop",
		Source: "RFC 8259",
		Fix:    "correct the file that is named",
		check: func(_ context.Context, s *Subject) error {
			if err := s.need("overlay"); err != nil {
				return err
			}
			var p problems
			for _, e := range s.below("", ".json") {
				if err := json.Unmarshal(e.Data, new(any)); err != nil {
					p.addf("/%s: %w", e.Path, err)
				}
			}
			return p.err()
		},
	},
	{
		ID:     "programs",
		What:   "every program of ours that a unit starts is there, and may be started",
		Why:    "the unit would fail on the laptop",
		Source: "systemd.service(5)",
		Fix:    "add the program, or set its mode (chmod +x)",
		check:  unitPrograms,
	},
}

var shebangRe = regexp.MustCompile(`^#!\s*(?:/usr)?/bin/(?:env\s+)?(sh|bash|dash)\b`)

func shell(ctx context.Context, s *Subject) error {
	if err := s.need("recipe", "overlay"); err != nil {
		return err
	}
	var p problems
	files := map[string][]byte{}
	for _, e := range s.Tree {
		if e.Link == "" && shebangRe.Match(e.Data) {
			files[e.Path] = e.Data
			if !e.Exec && !strings.HasPrefix(e.Path, "etc/profile.d/") {
				p.addf("/%s is a script and not executable", e.Path)
			}
		}
	}
	for _, e := range s.Scripts {
		if shebangRe.Match(e.Data) {
			files["scripts/"+e.Path] = e.Data
		}
	}
	for _, m := range s.Recipe.Modules {
		script, ok := m.Spec.(*recipe.Script)
		if !ok {
			continue
		}
		for i, l := range script.Snippets {
			files[fmt.Sprintf("recipe-line-%d-snippet-%d", m.Line, i+1)] = []byte("#!/bin/sh\n" + l + "\n")
		}
	}
	p.add(laid(files, func(dir string) error {
		args := []string{"--format=gcc", "--norc"}
		for name := range files {
			args = append(args, dir+"/"+name)
		}
		out, err := s.Tools.run(ctx, "shellcheck", args...)
		if _, missing := err.(skip); missing {
			return err
		}
		if err != nil {
			return fmt.Errorf("%s", complaint(out, err, dir))
		}
		return nil
	}))
	return p.err()
}

// heredocRe finds a desktop file that a script writes.
var (
	heredocRe  = regexp.MustCompile(`(?s)<<-?'?EOF'?\n(\[Desktop Entry\]\n.*?)\nEOF\n`)
	variableRe = regexp.MustCompile(`\$\{?[A-Za-z_]+\}?`)
)

func desktopFiles(ctx context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, e := range s.Tree {
		switch {
		case strings.HasSuffix(e.Path, ".desktop"):
			files[e.Path] = e.Data
		case shebangRe.Match(e.Data):
			for i, m := range heredocRe.FindAllSubmatch(e.Data, -1) {
				files[fmt.Sprintf("%s-%d.desktop", e.Path, i+1)] = append(variableRe.ReplaceAll(m[1], []byte("x")), '\n')
			}
		}
	}
	if len(files) == 0 {
		return nil
	}
	return laid(files, func(dir string) error {
		var p problems
		for name := range files {
			out, err := s.Tools.run(ctx, "desktop-file-validate", dir+"/"+name)
			if _, missing := err.(skip); missing {
				return err
			}
			if err != nil {
				p.addf("/%s: %s", name, complaint(out, err, dir))
			}
		}
		return p.err()
	})
}

var (
	plymouthImageRe = regexp.MustCompile(`\bImage\s*\(\s*"([^"]+)"`)
	plymouthKeyRe   = regexp.MustCompile(`(?m)^(Name|ModuleName|ImageDir|ScriptFile)\s*=\s*(.+?)\s*$`)
)

func plymouth(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	const dir = "usr/share/plymouth/themes/"
	themes := s.below(dir, ".plymouth")
	if len(themes) == 0 {
		return fmt.Errorf("no theme in /%s", dir)
	}
	var p problems
	has := func(file string) bool { _, ok := s.Tree.Find(strings.TrimPrefix(file, "/")); return ok }
	for _, t := range themes {
		if name := path.Base(path.Dir(t.Path)); name+".plymouth" != path.Base(t.Path) {
			p.addf("/%s: a theme is called like its directory, %s", t.Path, name)
		}
		key := map[string]string{}
		for _, m := range plymouthKeyRe.FindAllSubmatch(t.Data, -1) {
			key[string(m[1])] = string(m[2])
		}
		if key["Name"] == "" || key["ModuleName"] == "" {
			p.addf("/%s: Name or ModuleName is missing", t.Path)
		}
		if key["ModuleName"] != "script" {
			continue
		}
		script, ok := s.Tree.Find(strings.TrimPrefix(key["ScriptFile"], "/"))
		if !ok {
			p.addf("/%s: its script %s is not there", t.Path, key["ScriptFile"])
			continue
		}
		for _, m := range plymouthImageRe.FindAllSubmatch(stripComments(script.Data), -1) {
			if f := path.Join(key["ImageDir"], string(m[1])); !has(f) {
				p.addf("/%s: its picture %s is not there", script.Path, f)
			}
		}
	}
	return p.err()
}

// stripComments takes # comments out of a Plymouth script.
func stripComments(data []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			b.Write(line)
		}
	}
	return b.Bytes()
}

var execRe = regexp.MustCompile(`(?m)^Exec(?:Start|StartPre|StartPost|Stop|StopPost|Condition|Reload)=[-@:+!]*(/\S+)`)

func unitPrograms(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	units := append(s.units(), s.below("usr/lib/systemd/system/", ".conf")...)
	for _, e := range units {
		for _, m := range execRe.FindAllSubmatch(e.Data, -1) {
			program := strings.TrimPrefix(string(m[1]), "/")
			switch f, ok := s.Tree.Find(program); {
			case ok && f.Link == "" && !f.Exec:
				p.addf("/%s: /%s is not executable", e.Path, program)
			case ok:
			case strings.HasPrefix(program, "usr/libexec/veilor/"):
				p.addf("/%s: /%s is not in the overlay", e.Path, program)
			case strings.HasPrefix(program, "usr/bin/veilor") && s.source("cmd/"+path.Base(program)+"/main.go") == "":
				p.addf("/%s: there is no cmd/%s", e.Path, path.Base(program))
			case s.Image != nil && !s.Image.Has(program):
				p.addf("/%s: the image has no /%s", e.Path, program)
			}
		}
	}
	return p.err()
}
