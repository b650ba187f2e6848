package bootc

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sum = "sha256:4e0c000000000000000000000000000000000000000000000000000000000000"

// status is bootc's answer with the given booted and staged entries.
func status(booted, staged string) string {
	return `{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost","metadata":{"name":"host"},
	"spec":{"image":{"image":"ghcr.io/veilor/veilor-os:44","transport":"registry","signature":"containerPolicy"},"bootOrder":"default"},
	"status":{"staged":` + staged + `,"booted":` + booted + `,"rollback":null,"rollbackQueued":false,"type":"bootcHost","someday":[1]}}`
}

func entryJSON(signature string) string {
	return `{"image":{"image":{"image":"ghcr.io/veilor/veilor-os:44","transport":"registry"` + signature + `},
	"version":"44.20261122.0","timestamp":"2026-11-22T00:00:00Z","imageDigest":"` + sum + `","architecture":"amd64"},
	"cachedUpdate":null,"incompatible":false,"pinned":false,"store":"ostreeContainer",
	"ostree":{"stateroot":"default","checksum":"ab","deploySerial":0}}`
}

func TestParse(t *testing.T) {
	img := Image{Ref: "ghcr.io/veilor/veilor-os:44", Digest: sum, Version: "44.20261122.0", Signature: ContainerPolicy}
	with := func(s Signature) Image { i := img; i.Signature = s; return i }
	for _, tt := range []struct {
		in   string
		want Host
	}{
		{status(entryJSON(`,"signature":"containerPolicy"`), "null"), Host{Booted: img}},
		{status(entryJSON(`,"signature":"insecure"`), entryJSON(`,"signature":{"ostreeRemote":"fedora"}`)),
			Host{Booted: with(Insecure), Staged: new(with("ostreeRemote:fedora"))}},
		{status(entryJSON(``), "null"), Host{Booted: with(Insecure)}},
		{status(entryJSON(`,"signature":null`), "null"), Host{Booted: with(Insecure)}},
	} {
		got, err := Parse([]byte(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := entryJSON(`,"signature":"containerPolicy"`)
	for in, want := range map[string]string{
		"":     "unexpected end",
		"[]":   "cannot unmarshal",
		"null": `it is "" ""`,
		strings.Replace(status(good, "null"), "/v1", "/v2", 1):        `it is "org.containers.bootc/v2"`,
		`{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost"}`: "it has no status",
		status("null", "null"):                                                                  ErrNotManaged.Error(),
		status(`{"image":null}`, "null"):                                                        ErrNotManaged.Error(),
		status(strings.Replace(good, sum, "sha256:4e0c", 1), "null"):                            `the booted image has the digest "sha256:4e0c"`,
		status(strings.Replace(good, "ghcr.io/veilor/veilor-os:44", "", 1), "null"):             "the booted image has no name",
		status(strings.Replace(good, `"containerPolicy"`, `"trustMe"`, 1), "null"):              "which is not known",
		status(good, strings.Replace(good, sum, "", 1)):                                         "the staged image has the digest",
		status(strings.Replace(good, `"version":"44.20261122.0"`, `"version":44`, 1), "null"):   "cannot unmarshal",
		status(strings.Replace(good, `"imageDigest":"`+sum, `"imageDigests":"`+sum, 1), "null"): "the booted image has the digest",
	} {
		if _, err := Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

// TestStatus runs a bootc that answers as one does.
func TestStatus(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script := func(body string) {
		if err := os.WriteFile(filepath.Join(dir, "bootc"), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("[ \"$*\" = 'status --format=json' ] || exit 3\ncat <<'E'\n" + status(entryJSON(`,"signature":"containerPolicy"`), "null") + "\nE\n")
	if h, err := Status(t.Context()); err != nil || h.Booted.Digest != sum {
		t.Errorf("%+v, %v", h, err)
	}
	script("echo 'note' >&2; echo 'error: Status: this command requires root' >&2; exit 1\n")
	if _, err := Status(t.Context()); err == nil || err.Error() != "asking bootc: error: Status: this command requires root" {
		t.Errorf("a failing bootc: %v", err)
	}
	script("head -c 8000000 /dev/zero\n")
	if _, err := Status(t.Context()); err == nil {
		t.Error("a flood was read")
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Status(t.Context()); !errors.Is(err, ErrMissing) {
		t.Errorf("no bootc: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(status(entryJSON(`,"signature":"containerPolicy"`), "null")))
	f.Add([]byte(status(entryJSON(`,"signature":{"ostreeRemote":"x"}`), entryJSON(``))))
	f.Add([]byte(status("null", "null")))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := Parse(data)
		if err != nil {
			return
		}
		for _, i := range []*Image{&h.Booted, h.Staged} {
			if i == nil {
				continue
			}
			if i.Ref == "" || !digest.MatchString(i.Digest) || i.Signature == "" {
				t.Fatalf("accepted %+v", i)
			}
		}
	})
}
