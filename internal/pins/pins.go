// Package pins keeps the addresses of the control server and its relays in a
// block of /etc/hosts, so that no DNS is asked for them: one that is blocked,
// empty or lying takes nothing away, also on a cold boot.
//
// The file stays the person's. Only the lines between our two markers are ours;
// the rest stays as it is, byte for byte, and so do owner, mode and labels.
package pins

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// File is what resolvers read: nss-files and Go's resolver directly, systemd-
// resolved by ReadEtcHosts=, dnsmasq and others by default.
const File = "/etc/hosts"

const (
	begin = "# veilor: begin; from the signed directory, written by veilor-pins.service"
	end   = "# veilor: end"
	// maxFile bounds what is read. Lists that block advertisers have 5 MiB.
	maxFile = 32 << 20
	// mode is of a file that is not there yet.
	mode = 0o644
)

// Host is a name and where it is.
type Host struct {
	Name      string
	Addresses []netip.Addr
}

// hostRe is a name that means one thing to every reader of the file.
var hostRe = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// Render returns the text of old with our block saying hosts. No hosts is no
// block. Lines of others for the same names come after it and thus count for
// nothing where a reader takes the first, and beside it where he takes all;
// Render names them in others.
func Render(old []byte, hosts []Host) (text []byte, others []string, err error) {
	var block bytes.Buffer
	ours := map[string]bool{}
	for _, h := range hosts {
		if !hostRe.MatchString(h.Name) || strings.Contains(h.Name, "..") {
			return nil, nil, fmt.Errorf("pinning %q: no host name", h.Name)
		}
		for _, a := range h.Addresses {
			if !a.IsValid() || a.Zone() != "" {
				return nil, nil, fmt.Errorf("pinning %s: %s is no address of a server", h.Name, a)
			}
			fmt.Fprintf(&block, "%s %s\n", a, h.Name)
			ours[h.Name] = true
		}
	}
	rest := withoutBlock(old)
	for _, line := range strings.Split(string(rest), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 {
			for _, name := range fields[1:] {
				if ours[strings.ToLower(name)] {
					others = append(others, fields[0]+" "+name)
				}
			}
		}
	}
	if block.Len() == 0 {
		return rest, nil, nil
	}
	var b bytes.Buffer
	// First, since the first line that has a name wins.
	fmt.Fprintf(&b, "%s\n%s%s\n", begin, block.Bytes(), end)
	b.Write(rest)
	return b.Bytes(), others, nil
}

// withoutBlock drops our block, and pieces that somebody left of it: a begin
// without an end counts as long as the lines look like ours.
func withoutBlock(text []byte) []byte {
	var kept bytes.Buffer
	inside := false
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line = text[:i+1]
		}
		text = text[len(line):]
		switch content := strings.TrimSpace(string(line)); {
		case strings.HasPrefix(content, "# veilor: begin"):
			inside = true
		case content == end:
			inside = false
		case inside && ourLine(content):
		default:
			inside = false
			kept.Write(line)
		}
	}
	return kept.Bytes()
}

// ourLine says whether a line may be of our block: an address and one name.
func ourLine(content string) bool {
	fields := strings.Split(content, " ")
	if len(fields) != 2 {
		return false
	}
	_, err := netip.ParseAddr(fields[0])
	return err == nil && hostRe.MatchString(fields[1])
}

// Apply writes hosts into the file at path, whole or not at all, and says
// whether that changed anything. others are lines of the file that pin the same
// names elsewhere; they stay.
func Apply(path string, hosts []Host) (changed bool, others []string, err error) {
	// The file that counts is the one behind a link.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	old, info, err := read(path)
	if err != nil {
		return false, nil, fmt.Errorf("reading the pins: %w", err)
	}
	text, others, err := Render(old, hosts)
	if err != nil || bytes.Equal(text, old) {
		return false, others, err
	}
	if err := write(path, text, info); err != nil {
		return false, others, fmt.Errorf("writing the pins: %w", err)
	}
	return true, others, nil
}

// read returns the file's text; info is nil if there is no file.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, nil, fmt.Errorf("%s is no plain file of at most %d bytes; put it right by hand", path, maxFile)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return text, info, err
}

// write replaces path by a file with the same owner, mode and extended
// attributes (the SELinux label is one).
func write(path string, text []byte, info fs.FileInfo) error {
	perm := fs.FileMode(mode)
	if info != nil {
		perm = info.Mode().Perm()
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(perm))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if info != nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
				return fmt.Errorf("keeping the owner: %w", err)
			}
		}
		if err := copyAttributes(path, f.File); err != nil {
			return err
		}
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// copyAttributes copies what the file system lets us.
func copyAttributes(path string, to *os.File) error {
	size, err := unix.Listxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keeping the label: %w", err)
	}
	list := make([]byte, size)
	if size, err = unix.Listxattr(path, list); err != nil {
		return fmt.Errorf("keeping the label: %w", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		n, err := unix.Getxattr(path, name, nil)
		if err != nil {
			continue // gone meanwhile, or not for us
		}
		value := make([]byte, n)
		if n, err = unix.Getxattr(path, name, value); err != nil {
			continue
		}
		if err := unix.Fsetxattr(int(to.Fd()), name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("keeping the attribute %s: %w", name, err)
		}
	}
	return nil
}
