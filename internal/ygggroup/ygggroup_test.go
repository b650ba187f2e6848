package ygggroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	first  = "the first is known to a few"
	second = "the second follows it in spring"
)

func date(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestAt(t *testing.T) {
	for name, c := range map[string]struct {
		text                  string
		before, between, late string
		changes               int
	}{
		"one, always":         {first, first, first, first, 0},
		"with an end of line": {first + "\r\n", first, first, first, 0},
		"one, some day":       {"from 2026-12-01T00:00:00Z\n" + first + "\n", "", first, first, 1},
		"one, then another":   {first + "\nfrom 2027-03-01T00:00:00Z\n" + second, first, first, second, 1},
		"none, one, another":  {"from 2026-12-01T00:00:00+00:00\n" + first + "\nfrom 2027-03-01T00:00:00Z\n" + second + "\n", "", first, second, 2},
	} {
		s, err := Parse([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for at, want := range map[string]string{
			"2026-11-30T23:59:59Z": c.before, "2026-12-01T00:00:00Z": c.between, "2027-02-28T23:59:59Z": c.between, "2027-03-01T00:00:00Z": c.late,
		} {
			if got := s.At(date(at)); got != want {
				t.Errorf("%s: %s: %q, want %q", name, at, got, want)
			}
		}
		if len(s.Changes()) != c.changes {
			t.Errorf("%s: changes %v", name, s.Changes())
		}
	}
	if got := (Schedule{}).At(date("2027-03-01T00:00:00Z")); got != "" {
		t.Errorf("none: %q", got)
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "line 1: a password is one line",
		"too short":                  "line 1: a password is one line",
		strings.Repeat("x", 257):     "line 1: a password is one line",
		first + "\n\n" + second:      "line 2: a password is one line",
		first + "\n" + second:        "line 2: a second password without a date",
		"from tomorrow on\n" + first: "line 1: no date",
		"from 2026-12-01T00:00:00Z":  "a date without a password",
		"from 2026-12-01T00:00:00Z\nfrom 2026-12-02T00:00:00Z\n" + first:                 "line 2: two dates",
		"from 2026-12-02T00:00:00Z\n" + first + "\nfrom 2026-12-02T00:00:00Z\n" + second: "line 4: this password counts from before",
		first + strings.Repeat("x", MaxText):                                             "bytes; it has at most",
		"from 2026-12-01T00:00:00Z\nsecret\x00 and more of it":                           "line 2: a password is one line",
	} {
		_, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
			continue
		}
		for _, secret := range []string{first, second, "tomorrow", "secret"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%.40q: the error quotes it: %v", text, err)
			}
		}
	}
}

func TestPrintsNothing(t *testing.T) {
	s, err := Parse([]byte(first))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, s); strings.Contains(got, "known") {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "veilor-ygg")
	path := filepath.Join(dir, "group")
	if _, err := Write(path, []byte(first)); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "systemctl start veilor-ygg") {
		t.Errorf("without its directory: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	owner := os.Getuid()
	if owner == 0 {
		owner = 4711
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Write(path, []byte("short")); err == nil {
		t.Error("a password that is none was kept")
	}
	for _, want := range []bool{true, false} {
		if changed, err := Write(path, []byte(first)); err != nil || changed != want {
			t.Errorf("changed: %v, %v; want %v", changed, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || !strings.Contains(fmt.Sprintf("%+v", info.Sys()), fmt.Sprintf("Uid:%d", owner)) {
		t.Errorf("%v, %+v; want 0600 of %d", info.Mode(), info.Sys(), owner)
	}
	if s, err := Read(path); err != nil || s.At(time.Now()) != first {
		t.Errorf("read back: %v", err)
	}
	if changed, err := Write(path, []byte(second)); err != nil || !changed {
		t.Errorf("another: %v, %v", changed, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("others may read it: %v", err)
	}
	if changed, err := Write(path, []byte(second)); err != nil || !changed {
		t.Errorf("it was open to others: %v, %v", changed, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(first))
	f.Add([]byte("from 2026-12-01T00:00:00Z\n" + first + "\nfrom 2027-03-01T00:00:00Z\n" + second + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		last := s.At(time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC))
		if len(last) < minPassword || len(last) > maxPassword || !bytes.Contains(text, []byte(last)) {
			t.Errorf("%q of %q", last, text)
		}
		again, err := Parse(s.Text())
		if err != nil || !bytes.Equal(again.Text(), s.Text()) {
			t.Errorf("%q, read again, is %q; %v", s.Text(), again.Text(), err)
		}
	})
}
