package matrix

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func record(t *testing.T) *Record {
	t.Helper()
	f, err := os.Open("testdata/record.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Conditions under which everything was the same are one block, and no other is.
func TestSameOutcome(t *testing.T) {
	r := record(t)
	before := len(r.view().blocks)
	last := r.Conditions[len(r.Conditions)-1]
	for _, name := range []string{"again", "other"} {
		r.Conditions = append(r.Conditions, Condition{Name: name, Text: "the ISP does " + name})
		for _, c := range r.Cells {
			if c.Condition == last.Name {
				c.Condition = name
				if name == "other" {
					c.Refused++
				}
				r.Cells = append(r.Cells, c)
			}
		}
	}
	blocks := r.view().blocks
	if len(blocks) != before+1 {
		t.Fatalf("%d blocks, want %d", len(blocks), before+1)
	}
	if d := cmp.Diff([]string{last.Text, "the ISP does again"}, blocks[before-1].texts); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	var text, picture bytes.Buffer
	if err := errors.Join(r.Text(&text), r.SVG(&picture, Wide)); err != nil {
		t.Fatal(err)
	}
	if want := "\n" + last.Text + "\nthe ISP does again\n"; !strings.Contains(text.String(), want) {
		t.Errorf("%s\nhas no %q", &text, want)
	}
	if !strings.Contains(picture.String(), ">the ISP does again<") {
		t.Error("the picture does not name it")
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; run with -update if it is right):\n%s", path, diff)
	}
}

// The record of the test has every kind of square.
func TestGolden(t *testing.T) {
	r := record(t)
	var text, wide, narrow, js bytes.Buffer
	if err := errors.Join(r.Text(&text), r.SVG(&wide, Wide), r.SVG(&narrow, Narrow)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteTo(&js); err != nil {
		t.Fatal(err)
	}
	golden(t, "record.txt", text.Bytes())
	golden(t, "wide.svg", wide.Bytes())
	golden(t, "narrow.svg", narrow.Bytes())
	golden(t, "record.json", js.Bytes())
	for _, want := range []string{"silent", "shut", "leaks", "443, ping", "all; 4 of 4"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the record of the test shows nothing that is %q", want)
		}
	}
	for name, b := range map[string][]byte{"wide": wide.Bytes(), "narrow": narrow.Bytes()} {
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s is no XML: %v", name, err)
				break
			}
		}
	}
}

func TestHolds(t *testing.T) {
	r := record(t)
	err := r.Holds()
	if err == nil || !strings.Contains(err.Error(), "laptop reaches 22/tcp of cousin") {
		t.Errorf("a leak: %v", err)
	}
	for i := range r.Cells {
		r.Cells[i].Leaked = nil
	}
	if err := r.Holds(); err != nil {
		t.Errorf("without the leak: %v", err)
	}
	r.Control.Seen--
	if r.Holds() == nil {
		t.Error("a packet that was not seen with every door open")
	}
	r.Control = Control{}
	if r.Holds() == nil {
		t.Error("no control at all")
	}
}

func TestReadRefuses(t *testing.T) {
	good, err := os.ReadFile("testdata/record.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"nothing":        {"", "EOF"},
		"no cells":       {`{"conditions": [{"name": "a", "text": "b"}]}`, "no cells"},
		"unknown field":  {`{"colour": "red"}`, "colour"},
		"more after it":  {string(good) + "{}", "follows"},
		"no condition":   {strings.Replace(string(good), `"condition": "open"`, `"condition": "other"`, 1), `no condition "other"`},
		"a cell twice":   {strings.Replace(string(good), `"layer": "yggdrasil"`, `"layer": "tailnet"`, 1), "twice"},
		"negative":       {strings.Replace(string(good), `"refused": 30`, `"refused": -1`, 1), "-1 refused"},
		"far too long":   {strings.Repeat(" ", maxBytes+1), "larger"},
		"twice the name": {`{"conditions": [{"name": "a"}, {"name": "a"}], "cells": [{}]}`, "twice"},
	} {
		if _, err := Read(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

// Whatever Read takes can be shown.
func FuzzRead(f *testing.F) {
	// Short, since what the fuzzer finds is made of it.
	f.Add([]byte(`{"conditions": [{"name": "a", "text": "b"}], "control": {"sent": 1, "seen": 1}, "cells": [
		{"condition": "a", "layer": "tailnet", "source": {"name": "l", "class": "guest"}, "destination": {"name": "n", "class": "infra"}, "open": ["443/tcp"], "refused": 3},
		{"condition": "a", "layer": "yggdrasil", "source": {"name": "l", "class": "guest"}, "destination": {"name": "o", "class": "admin"}, "leaked": ["icmp"], "shut": ["1/tcp"], "silent": true}]}`))
	f.Add([]byte(`{"conditions": [{"name": "a"}], "cells": [{"condition": "a", "layer": "<", "source": {"name": "s"}, "destination": {"name": "d"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if err := errors.Join(r.Text(io.Discard), r.SVG(io.Discard, Wide), r.SVG(io.Discard, Narrow)); err != nil {
			t.Fatal(err)
		}
		r.Holds()
	})
}
