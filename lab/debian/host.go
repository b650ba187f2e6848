package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// diskNeeded is what a cold run writes into the cache, measured at about 6
	// GB (roots, base image, Rust target, disk and overlays), and some air.
	diskNeeded = 10 << 30

	// rustNeeded is the oldest minor version of Rust 1 that the locked
	// dependencies of lab/bootc build with.
	rustNeeded = 85
)

// need is one thing that the machine must have before the lab can make the
// rest itself.
type need struct {
	what    string // as a person would call it
	pkg     string // Debian package, if one has it
	hint    string // what to do if none has
	missing func(context.Context) bool
}

// needs is everything that the lab asks of the machine.
var needs = []need{
	{what: "mmdebstrap", pkg: "mmdebstrap", missing: noCommand("mmdebstrap")},
	{what: "the archive keys of Debian 13", pkg: "debian-archive-keyring", missing: noFile("/usr/share/keyrings/debian-archive-trixie-*", "/usr/share/keyrings/debian-archive-keyring.pgp")},
	{what: "git", pkg: "git", missing: noCommand("git")},
	{what: "mount", pkg: "mount", missing: noCommand("mount")},
	{what: "ip", pkg: "iproute2", missing: noCommand("ip")},
	{what: "nft", pkg: "nftables", missing: noCommand("nft")},       // tests compare with its reading
	{what: "Python's venv", pkg: "python3-venv", missing: noPython}, // zizmor judges the workflows
	{what: "jq", pkg: "jq", missing: noCommand("jq")},               // their scripts are tried
	{what: "a C compiler", pkg: "gcc", missing: noCommand("cc")},
	{what: "the C library's headers", pkg: "libc6-dev", missing: noFile("/usr/include/stdlib.h")},
	{what: "pkg-config", pkg: "pkg-config", missing: noCommand("pkg-config")},
	{what: "libostree's headers", pkg: "libostree-dev", missing: noLibrary("ostree-1")},
	{what: "OpenSSL's headers", pkg: "libssl-dev", missing: noLibrary("openssl")},
	{what: "zstd's headers", pkg: "libzstd-dev", missing: noLibrary("libzstd")},
	{what: "zlib's headers", pkg: "zlib1g-dev", missing: noLibrary("zlib")},
	{what: "go", hint: "install Go as named in go.mod (https://go.dev/doc/install)", missing: noCommand("go")},
	{what: fmt.Sprintf("cargo 1.%d or newer", rustNeeded), hint: "install Rust (https://rustup.rs)", missing: noCargo},
}

// MissingError says what the machine lacks and how to get it.
type MissingError struct {
	What     []string // for a person
	Packages []string // for apt-get
	Hints    []string // for what is no package
}

func (e *MissingError) Error() string {
	var todo []string
	if len(e.Packages) > 0 {
		todo = append(todo, "apt-get install -y --no-install-recommends "+strings.Join(e.Packages, " "))
	}
	todo = append(todo, e.Hints...)
	return fmt.Sprintf("this machine lacks %s: %s", strings.Join(e.What, ", "), strings.Join(todo, "; "))
}

// Check tells what the machine lacks for the lab, all of it in one error, with
// the command that installs it. dir is where the cache is, or will be.
func Check(ctx context.Context, dir string) error {
	return errors.Join(check(ctx, needs), checkSpace(dir))
}

func check(ctx context.Context, needs []need) error {
	var e MissingError
	for _, n := range needs {
		if !n.missing(ctx) {
			continue
		}
		e.What = append(e.What, n.what)
		if n.pkg != "" {
			e.Packages = append(e.Packages, n.pkg)
		} else {
			e.Hints = append(e.Hints, n.hint)
		}
	}
	if len(e.What) == 0 {
		return nil
	}
	slices.Sort(e.Packages)
	return &e
}

// checkSpace looks at the nearest directory that exists. A cache that is
// already there has most of what it needs, so only an empty one is judged.
func checkSpace(dir string) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("looking for disk space: %w", err)
	}
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return fmt.Errorf("looking for disk space in %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
	if free := st.Bavail * uint64(st.Bsize); free < diskNeeded {
		return fmt.Errorf("%s has %d GB free, the lab needs %d GB: make room, or put the cache elsewhere", dir, free>>30, uint64(diskNeeded)>>30)
	}
	return nil
}

func noCommand(name string) func(context.Context) bool {
	return func(context.Context) bool {
		_, err := exec.LookPath(name)
		return err != nil
	}
}

func noFile(patterns ...string) func(context.Context) bool {
	return func(context.Context) bool {
		for _, p := range patterns {
			if found, _ := filepath.Glob(p); len(found) > 0 {
				return false
			}
		}
		return true
	}
}

func noLibrary(name string) func(context.Context) bool {
	return func(ctx context.Context) bool {
		return exec.CommandContext(ctx, "pkg-config", "--exists", name).Run() != nil
	}
}

func noCargo(ctx context.Context) bool {
	out, err := exec.CommandContext(ctx, "cargo", "--version").Output()
	return err != nil || rustMinor(string(out)) < rustNeeded
}

// rustMinor reads "cargo 1.95.0 (f2d3ce0bd 2026-03-21)"; 0 if it is not that.
func rustMinor(line string) int {
	rest, ok := strings.CutPrefix(line, "cargo 1.")
	if !ok {
		return 0
	}
	digits, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// noPython looks for ensurepip too: Debian's venv starts without it and then fails.
func noPython(ctx context.Context) bool {
	return exec.CommandContext(ctx, "python3", "-c", "import venv, ensurepip").Run() != nil
}
