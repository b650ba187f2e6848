package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/veilor/veilor-os/internal/strictyaml"
)

// UndoFile is the undo list, in the overlay directory but not in the image.
const UndoFile = "undo.yaml"

// UndoScript is the name of the script that [Script] makes, as the recipe calls
// it.
const UndoScript = "veilor-undo.sh"

// Undo is one thing that the base does and that veilor undoes or counts on.
type Undo struct {
	// Path is absolute.
	Path string `yaml:"path"`
	// Also are copies of the file that a base may have; Action applies to them
	// too.
	Also []string `yaml:"also,omitempty"`
	Why  string   `yaml:"why"`
	// Expect are texts that the base's file must contain.
	Expect []string `yaml:"expect,omitempty"`
	// ExpectAbsent says that the base must not have the file.
	ExpectAbsent bool   `yaml:"expect_absent,omitempty"`
	Action       Action `yaml:"action"`
	// Text is the line that Append adds.
	Text string `yaml:"text,omitempty"`
}

// Action is what is done when the base is as expected.
type Action string

const (
	Remove  Action = "remove"  // delete it
	Replace Action = "replace" // the overlay has the file
	Append  Action = "append"  // add Text to it as its last line
	Note    Action = "note"    // nothing: the check is all
)

// ParseUndo reads an undo list. name is used in errors.
func ParseUndo(name string, data []byte) ([]Undo, error) {
	var list struct {
		Undo []Undo `yaml:"undo"`
	}
	doc, err := strictyaml.Decode(name, data, &list, "see the comment at the head of overlay/undo.yaml for the keys there are")
	if err != nil {
		return nil, err
	}
	var errs []error
	seen := map[string]bool{}
	for i, u := range list.Undo {
		at := fmt.Sprintf("undo[%d]", i)
		add := func(key, format string, args ...any) { errs = append(errs, doc.Problem(at+key, format, args...)) }
		for _, p := range u.paths() {
			if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\n") {
				add(".path", "%q is no absolute path", p)
			}
			if seen[p] {
				add(".path", "%s is there twice; put what is expected into one entry", p)
			}
			seen[p] = true
		}
		if u.Why == "" || strings.Contains(u.Why, "\n") {
			add(".why", "missing, or more than one line; say why veilor cannot leave it as it is")
		}
		if u.ExpectAbsent == (len(u.Expect) > 0) {
			add("", "write either expect (texts that the base's file must contain) or expect_absent: true")
		}
		for _, e := range u.Expect {
			if e == "" || strings.Contains(e, "\n") {
				add(".expect", "%q: every text must be a part of one line", e)
			}
		}
		switch u.Action {
		case Remove, Replace, Append, Note:
			if u.ExpectAbsent && u.Action != Note {
				add(".action", "%s of a file that must be absent; write note", u.Action)
			}
			if u.Action == Append && len(u.Also) > 0 {
				add(".also", "a line is appended to one file; leave the copies out")
			}
		default:
			add(".action", "%q; write remove, replace, append or note", u.Action)
		}
		if (u.Action == Append) == (u.Text == "") || strings.Contains(u.Text, "\n") {
			add(".text", "%q: append wants one line of text, and nothing else has one", u.Text)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return list.Undo, nil
}

// LoadUndo reads the undo list of the overlay directory src.
func LoadUndo(src fs.FS) ([]Undo, error) {
	data, err := fs.ReadFile(src, UndoFile)
	if err != nil {
		return nil, fmt.Errorf("reading the undo list: %w", err)
	}
	return ParseUndo(path.Join("overlay", UndoFile), data)
}

func (u Undo) paths() []string { return append([]string{u.Path}, u.Also...) }

// Changed is the error for a base that does not look as the undo list expects.
type Changed struct {
	Undo
	What string // what is otherwise than expected
}

func (c Changed) Error() string {
	return fmt.Sprintf("checking the base: %s: %s; %s (%s): look at what the base does now and change its entry in overlay/%s", c.Path, c.What, "the undo list counts on it", c.Why, UndoFile)
}

// Plan checks the whole list against a base, whose files read returns
// (fs.ErrNotExist if absent), and against t, the tree that replaces files. It
// returns the absolute paths to remove.
func Plan(list []Undo, t Tree, read func(path string) ([]byte, error)) ([]string, error) {
	var remove []string
	var errs []error
	for _, u := range list {
		found, err := u.check(read)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch _, ours := t.Find(strings.TrimPrefix(u.Path, "/")); {
		case u.Action == Remove && ours:
			errs = append(errs, fmt.Errorf("checking the undo list: %s is removed, but the overlay has it; write action: replace", u.Path))
		case u.Action == Append && ours:
			errs = append(errs, fmt.Errorf("checking the undo list: a line is appended to %s, but the overlay has it; write action: replace", u.Path))
		case u.Action == Replace && !ours:
			errs = append(errs, fmt.Errorf("checking the undo list: %s is replaced, but the overlay does not have it; add it or write action: remove", u.Path))
		case u.Action == Remove:
			remove = append(remove, found...)
		case u.Action == Replace:
			// The twin of a replaced file must not come back.
			remove = append(remove, slices.DeleteFunc(found, func(p string) bool { return p == u.Path })...)
		}
	}
	return remove, errors.Join(errs...)
}

// Appended returns the files of a base to which the list adds a line, as they are
// then. The list has been checked with [Plan].
func Appended(list []Undo, read func(path string) ([]byte, error)) ([]Entry, error) {
	var entries []Entry
	for _, u := range list {
		if u.Action != Append {
			continue
		}
		data, err := read(u.Path)
		if err != nil {
			return nil, fmt.Errorf("appending to %s of the base: %w", u.Path, err)
		}
		if !slices.Contains(strings.Split(string(data), "\n"), u.Text) {
			if len(data) > 0 && data[len(data)-1] != '\n' {
				data = append(data, '\n')
			}
			data = append(slices.Clip(data), u.Text+"\n"...)
		}
		entries = append(entries, Entry{Path: strings.TrimPrefix(u.Path, "/"), Data: data, Group: Config})
	}
	return entries, nil
}

// check returns which of the paths the base has.
func (u Undo) check(read func(string) ([]byte, error)) ([]string, error) {
	var found []string
	for _, p := range u.paths() {
		data, err := read(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("checking the base: %s: %w", p, err)
		case u.ExpectAbsent:
			return nil, Changed{u, p + " is there again"}
		}
		for _, want := range u.Expect {
			if !bytes.Contains(data, []byte(want)) {
				return nil, Changed{u, fmt.Sprintf("%s does not contain %q any more", p, want)}
			}
		}
		found = append(found, p)
	}
	if len(found) == 0 && !u.ExpectAbsent {
		return nil, Changed{u, "is not there any more"}
	}
	return found, nil
}

// Script is the list as a POSIX shell script for a build that runs in the base
// itself. It checks everything before it removes anything. $VEILOR_UNDO_ROOT is
// put before every path.
func Script(list []Undo) []byte {
	var b strings.Builder
	b.WriteString(`#!/bin/sh
# Made of overlay/undo.yaml by veilor-forge; change that file instead.
# Texts of the base are meant as they stand:
# shellcheck disable=SC2016
set -eu

root=${VEILOR_UNDO_ROOT-}
bad=0

# changed PATH WHAT WHY: the base is not as the list expects.
changed() {
    echo "veilor-undo: $1: $2; the undo list counts on it ($3): look at what the base does now and change its entry in overlay/undo.yaml" >&2
    bad=1
}

# expect PATH TEXT WHY
expect() {
    grep -qF -e "$2" -- "$root$1" || changed "$1" "does not contain '$2' any more" "$3"
}
`)
	for _, u := range list {
		fmt.Fprintf(&b, "\n# %s\n", u.Why)
		if u.ExpectAbsent {
			for _, p := range u.paths() {
				fmt.Fprintf(&b, "if [ -e \"$root\"%s ] || [ -L \"$root\"%[1]s ]; then changed %[1]s 'is there again' %s; fi\n", quote(p), quote(u.Why))
			}
			continue
		}
		b.WriteString("found=0\n")
		for _, p := range u.paths() {
			fmt.Fprintf(&b, "if [ -f \"$root\"%s ]; then\n    found=1\n", quote(p))
			for _, e := range u.Expect {
				fmt.Fprintf(&b, "    expect %s %s %s\n", quote(p), quote(e), quote(u.Why))
			}
			b.WriteString("fi\n")
		}
		fmt.Fprintf(&b, "[ \"$found\" = 1 ] || changed %s 'is not there any more' %s\n", quote(u.Path), quote(u.Why))
	}
	b.WriteString("\n[ \"$bad\" = 0 ] || exit 1\n")
	for _, u := range list {
		gone := u.paths()
		switch u.Action {
		case Replace:
			gone = u.Also
		case Append:
			fmt.Fprintf(&b, `if ! grep -qxF -e %s -- "$root"%s; then
    [ -z "$(tail -c 1 -- "$root"%[2]s)" ] || echo >>"$root"%[2]s
    printf '%%s\n' %[1]s >>"$root"%[2]s
fi
`, quote(u.Text), quote(u.Path))
			continue
		case Note:
			continue
		}
		for _, p := range gone {
			fmt.Fprintf(&b, "rm -f -- \"$root\"%s\n", quote(p))
		}
	}
	return []byte(b.String())
}

// quote makes s one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
