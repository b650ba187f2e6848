// Package ygggroup is the password that all Yggdrasil nodes of a site share
// (GroupPassword in yggdrasil.conf): who lacks it gets no answer from them, and
// so learns nothing of them.
//
// All must have the same one at the same time, or they do not answer each other
// either. A laptop gets it once, by hand, and is then out of reach for weeks. So
// the file says from when on it counts, and everybody changes by the clock:
//
//	from 2026-12-01T00:00:00Z
//	8kZ…the first password…
//	from 2027-03-01T00:00:00Z
//	Qr7…the one that follows it…
//
// A password without a line before it counts from the beginning of time.
package ygggroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// Path is where a laptop keeps it.
const Path = "/var/lib/veilor-ygg/group"

const (
	// minPassword and maxPassword bound one, in bytes. It is shared by all and
	// typed by nobody, so it has no reason to be short.
	minPassword, maxPassword = 16, 256
	// maxEntries is how many there may be: one in force, those that follow it.
	maxEntries = 4
	// MaxText bounds the file, in bytes.
	MaxText = maxEntries * (maxPassword + 64)
)

// Schedule is the passwords of a site, and from when on each counts. Its fields
// are not exported, and it prints as nothing: it is secret.
type Schedule struct{ entries []entry }

type entry struct {
	from     time.Time // zero: always
	password string
}

// String hides the passwords, whatever verb prints a schedule.
func (Schedule) String() string { return "(a group's passwords)" }

// GoString hides them too.
func (s Schedule) GoString() string { return s.String() }

// Parse reads the text of a file. Its errors quote nothing of it.
func Parse(text []byte) (Schedule, error) {
	bad := func(line int, format string, a ...any) (Schedule, error) {
		return Schedule{}, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, a...))
	}
	if len(text) > MaxText {
		return Schedule{}, fmt.Errorf("%d bytes; it has at most %d", len(text), MaxText)
	}
	var s Schedule
	var from time.Time
	dated := false
	for i, line := range strings.Split(strings.TrimRight(string(text), "\r\n"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		at, isDate := strings.CutPrefix(line, "from ")
		switch {
		case isDate && dated:
			return bad(i+1, "two dates, and no password between them; remove one")
		case isDate:
			var err error
			if from, err = time.Parse(time.RFC3339, at); err != nil || from.IsZero() || from.Nanosecond() != 0 {
				return bad(i+1, "no date; write for example: from 2026-12-01T00:00:00Z")
			}
			dated = true
		case len(line) < minPassword, len(line) > maxPassword, strings.ContainsAny(line, "\r\x00"):
			return bad(i+1, "a password is one line of %d to %d bytes; make one with `openssl rand -base64 32`", minPassword, maxPassword)
		case !dated && len(s.entries) > 0:
			return bad(i+1, "a second password without a date; write when it follows the first: from 2026-12-01T00:00:00Z")
		case len(s.entries) > 0 && !from.After(s.entries[len(s.entries)-1].from):
			return bad(i+1, "this password counts from before the one above it; put them in order")
		case len(s.entries) == maxEntries:
			return bad(i+1, "more than %d passwords; remove the old ones", maxEntries)
		default:
			s.entries = append(s.entries, entry{from, line})
			dated = false
		}
	}
	if dated {
		return Schedule{}, errors.New("a date without a password after it")
	}
	return s, nil
}

// At is the password in force at a time; empty if none is.
func (s Schedule) At(now time.Time) (password string) {
	for _, e := range s.entries {
		if !now.Before(e.from) {
			password = e.password
		}
	}
	return password
}

// Text is what Parse reads as s.
func (s Schedule) Text() []byte {
	var b bytes.Buffer
	for _, e := range s.entries {
		if !e.from.IsZero() {
			fmt.Fprintf(&b, "from %s\n", e.from.UTC().Format(time.RFC3339))
		}
		b.WriteString(e.password + "\n")
	}
	return b.Bytes()
}

// Changes are when another password begins to count, oldest first. One that
// always counted has no such time.
func (s Schedule) Changes() (times []time.Time) {
	for _, e := range s.entries {
		if !e.from.IsZero() {
			times = append(times, e.from)
		}
	}
	return times
}

// Read reads the file at path, which only its owner may read.
func Read(path string) (Schedule, error) {
	fail := func(err error) (Schedule, error) {
		return Schedule{}, fmt.Errorf("reading the group's password: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fail(fmt.Errorf("others may read %s; run `chmod 600 %s`", path, path))
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxText+1))
	if err != nil {
		return fail(err)
	}
	s, err := Parse(text)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", path, err))
	}
	return s, nil
}

// Write puts text at path, whole and 0600, for the owner of the directory that
// it is in: veilor-ygg's own, who reads it within a minute. changed is false if
// it was there already. It is what an import calls, and what a join calls once
// the mint hands the password over.
func Write(path string, text []byte) (changed bool, err error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("keeping the group's password: %w", err)
	}
	if _, err := Parse(text); err != nil {
		return fail(err)
	}
	dir, err := os.Stat(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%w; veilor-ygg makes that directory: start it with `systemctl start veilor-ygg`", err))
	}
	if err != nil {
		return fail(err)
	}
	owner, ok := dir.Sys().(*syscall.Stat_t)
	if !ok {
		return fail(fmt.Errorf("%s: its owner is not known", filepath.Dir(path)))
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm() == 0o600 {
		old, err := os.ReadFile(path)
		if st, ok := info.Sys().(*syscall.Stat_t); err == nil && ok && st.Uid == owner.Uid && bytes.Equal(old, text) {
			return false, nil
		}
	}
	// The directory is not root's: the file is made under a name that nobody
	// knows, given away by its descriptor, and then moved.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o600), renameio.IgnoreUmask())
	if err != nil {
		return fail(err)
	}
	defer f.Cleanup()
	if _, err := f.Write(text); err != nil {
		return fail(err)
	}
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return fail(err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fail(err)
	}
	return true, nil
}
