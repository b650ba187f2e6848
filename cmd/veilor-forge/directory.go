package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// packedFile is the directory as one file, and publicDir what a server
	// serves: both only ever hold what enough people have signed.
	packedFile = "directory.pem"
	publicDir  = "public"
)

func directoryCommand() *cobra.Command {
	return group("directory", "Sign what laptops believe of names, keys and addresses",
		directorySign(), directoryMerge(), directoryCheck(), directoryShow(), directoryReserve())
}

// ledger is the site and the repository in which its directory is signed.
type ledger struct {
	checkout
	repo string
}

func (l *ledger) flags(c *cobra.Command) {
	l.checkout.flags(c)
	c.Flags().StringVar(&l.repo, "repo", "", "`directory` of the signed files (default: where the site file says that directory.signed is)")
}

// open reads both.
func (l *ledger) open() (*site.Site, directory.Files, error) {
	s, err := l.load()
	if err != nil {
		return nil, nil, err
	}
	if l.repo == "" {
		if s.Directory == nil || s.Directory.Signed.Path == "" {
			return nil, nil, usageError{errors.New("nobody says where the signed files are; name the place with --repo DIR, or as directory.signed in the site file, for example directory/directory.pem")}
		}
		l.repo = filepath.Dir(filepath.Join(filepath.Dir(l.site), s.Directory.Signed.Path))
	}
	files, err := directory.ReadRepository(l.repo)
	return s, files, err
}

// save writes the files, and what can be published if enough have signed. It
// says which it was.
func (l *ledger) save(w io.Writer, files directory.Files) error {
	if err := directory.WriteRepository(l.repo, files); err != nil {
		return err
	}
	copied, err := verified(files)
	if errors.Is(err, directory.ErrUnsigned) {
		fmt.Fprintln(w, "Not in force yet. Still wanted:")
		return missing(w, files)
	}
	if err != nil {
		return err
	}
	packed, err := directory.Pack(copied.Files)
	if err != nil {
		return err
	}
	if err := directory.WriteRepository(filepath.Join(l.repo, publicDir), copied.Files); err != nil {
		return err
	}
	file := filepath.Join(l.repo, packedFile)
	if err := renameio.WriteFile(file, packed, 0o644, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	_, err = fmt.Fprintf(w, "Enough have signed. %s is for images and for `veilor mesh import`;\n%s is what a server serves.\n", file, filepath.Join(l.repo, publicDir))
	return err
}

// verified is what a laptop would make of the files; the clock is not asked.
func verified(files directory.Files) (*directory.Copy, error) {
	return directory.Verify(files["1.root.json"], nil, files.Get, time.Time{})
}

// missing prints a line for each signature that is wanted.
func missing(w io.Writer, files directory.Files) error {
	all, err := files.Signatures()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Enough() {
			continue
		}
		who := "the maintainers' keys"
		switch {
		case s.Old:
			who = "the keys that are being replaced"
		case s.Role != "root" && s.Role != "targets":
			who = "the keys for addresses"
		}
		fmt.Fprintf(w, "  %-20s %d of %d signatures by %s\n", s.File, len(s.Keys), s.Wanted, who)
	}
	return nil
}

func directorySign() *cobra.Command {
	var l ledger
	var keys []string
	var onlyAddresses bool
	c := &cobra.Command{
		Use:   "sign",
		Short: "Put what the site file says into the directory, and sign it",
		Long: `sign compares the site file with the directory that is signed, drafts what has
changed, and signs the draft with each key. What is signed and still says the
same stays; what ends soon is renewed.

Names, keys and services want the signatures of the maintainers, as many as the
site file says under directory. Addresses want those of directory.addresses. Each
maintainer runs sign on his own machine, on the same draft: pass the files on, or
let each sign a copy and join the copies with merge. When enough have signed,
somebody with a key for addresses runs it once more: that makes laptops take it.

To move a server in a hurry, change its address in the site file and give
--only-addresses: one signature may be enough then, and names that wait for
theirs go on waiting.

The passphrase is $COSIGN_PASSWORD or is asked.`,
		Example: `  veilor-forge directory sign --key ~/veilor-keys/directory-1.key
  veilor-forge directory sign --only-addresses --key ~/veilor-keys/addresses-1.key`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, files, err := l.open()
			if err != nil {
				return err
			}
			trust, err := directory.TrustOf(s)
			if err != nil {
				return err
			}
			d, err := directory.FromSite(s)
			if err != nil {
				return err
			}
			if old, err := verified(files); err == nil {
				if errs := directory.Renumbered(old.Directory, d); errs != nil {
					return errors.Join(errs...)
				}
			}
			files, changes, err := directory.Draft(files, d, trust, onlyAddresses, time.Now())
			if err != nil {
				return err
			}
			for _, line := range changes {
				fmt.Fprintln(c.OutOrStdout(), line)
			}
			for _, file := range keys {
				k, err := signing.Load(file, passphrase)
				if err != nil {
					return err
				}
				signer, err := k.Signer()
				if err != nil {
					return fmt.Errorf("reading %s: %w", file, err)
				}
				var done []string
				if files, done, err = files.Sign(signer); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				what := "nothing new to sign"
				if len(done) > 0 {
					what = "signed " + strings.Join(done, ", ")
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", file, what)
			}
			return l.save(c.OutOrStdout(), files)
		},
	}
	l.flags(c)
	c.Flags().StringArrayVar(&keys, "key", nil, "private key `file`; may be given several times")
	c.Flags().BoolVar(&onlyAddresses, "only-addresses", false, "leave names and keys as they were last signed")
	require(c, "key")
	return c
}

func directoryMerge() *cobra.Command {
	var l ledger
	c := &cobra.Command{
		Use:   "merge DIR...",
		Short: "Join the signatures that others made on their copies",
		Long: `merge adds to the directory's files those of each DIR: a copy that somebody else
has signed. Two copies that say different things under one version cannot be
joined; then one maintainer drops his draft and signs the other's.`,
		Example: `  veilor-forge directory merge /run/media/stick/directory`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no directory; write for example: veilor-forge directory merge ../copy")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			_, files, err := l.open()
			if err != nil {
				return err
			}
			for _, dir := range args {
				if !isDir(dir) {
					return usageError{fmt.Errorf("%s is no directory", dir)}
				}
				theirs, err := directory.ReadRepository(dir)
				if err != nil {
					return err
				}
				if len(theirs) == 0 {
					return fmt.Errorf("joining %s: there are no signed files in it", dir)
				}
				if files, err = directory.Join(files, theirs); err != nil {
					return fmt.Errorf("%s: %w", dir, err)
				}
			}
			return l.save(c.OutOrStdout(), files)
		},
	}
	l.flags(c)
	return c
}

func directoryCheck() *cobra.Command {
	var l ledger
	c := &cobra.Command{
		Use:   "check",
		Short: "Refuse a directory that would not help when the network is taken away",
		Long: `check reads the site file and the signed files, and lists what is wrong: an edge in
the control server's network, edges in fewer than two networks, an address that
nobody outside reaches, a server without an address, a loopback number that was
another's, signatures that are missing or end within two weeks, and a site file
that says something else than what is signed. It exits 1 if there is anything.

Two addresses are in one network if they share their first 24 bits (IPv6: 48), or
if the site file names the same network for both. A site whose control server is
under .test is a lab, and may have private addresses.`,
		Example: `  veilor-forge directory check
  veilor-forge directory check --site site/veilor.yaml`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, files, err := l.open()
			if err != nil {
				return err
			}
			d, err := directory.FromSite(s)
			if err != nil {
				return err
			}
			errs := directory.Check(d)
			switch signed, err := verified(files); {
			case len(files) == 0:
				errs = append(errs, errors.New("nothing is signed; begin with: veilor-forge directory sign --key FILE"))
			case errors.Is(err, directory.ErrUnsigned):
				errs = append(errs, errors.New("what was drafted last is not signed by enough; see: veilor-forge directory show"))
			case err != nil:
				errs = append(errs, err)
			default:
				errs = append(errs, directory.Renumbered(signed.Directory, d)...)
				errs = append(errs, compare(signed.Directory, d, time.Now())...)
			}
			if len(errs) > 0 {
				return errors.Join(errs...)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%d services, %d edges, %d public peers: nothing is wrong\n", len(d.Names.Services), len(d.Names.Edges), len(d.Names.Public))
			return err
		},
	}
	l.flags(c)
	return c
}

// renewIn is how long before their end signatures are called for: people sign by
// hand, and go on holiday.
const renewIn = 14 * 24 * time.Hour

func compare(signed, now directory.Directory, at time.Time) []error {
	var errs []error
	same := func(a, b interface{ Encode() ([]byte, error) }) bool {
		x, err1 := a.Encode()
		y, err2 := b.Encode()
		return err1 == nil && err2 == nil && string(x) == string(y)
	}
	if !same(signed.Names, now.Names) {
		errs = append(errs, errors.New("the site file has other names, keys or services than those that are signed; sign again"))
	}
	if !same(signed.Addresses, now.Addresses) {
		errs = append(errs, errors.New("the site file has other addresses than those that are signed; sign again"))
	}
	if signed.Expires.Before(at.Add(renewIn)) {
		errs = append(errs, fmt.Errorf("the signatures end on %s; sign again, which renews them", signed.Expires.Format(time.DateOnly)))
	}
	return errs
}

func directoryShow() *cobra.Command {
	var l ledger
	var asJSON, qr bool
	c := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Say what is signed, by how many, and until when",
		Long: `show prints the directory in FILE, a directory.pem, or in the repository, and who
has signed it. With --qr it prints the text of the QR codes, one a line, that
"veilor mesh import" reads; any program makes codes of them.`,
		Example: `  veilor-forge directory show
  veilor-forge directory show --qr site/directory/directory.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var files directory.Files
			var packed []byte
			if len(args) == 1 {
				var err error
				if packed, err = os.ReadFile(args[0]); err != nil {
					return fmt.Errorf("reading the directory: %w", err)
				}
				packet, err := directory.Unpack(packed)
				if err != nil {
					return err
				}
				if packet.Reserve == nil {
					files = packet.Files
				}
			} else {
				var err error
				if _, files, err = l.open(); err != nil {
					return err
				}
				if packed, err = os.ReadFile(filepath.Join(l.repo, packedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("reading the directory: %w", err)
				}
			}
			if qr {
				codes, err := directory.QR(packed)
				for _, text := range codes {
					fmt.Fprintln(c.OutOrStdout(), text)
				}
				return err
			}
			if files == nil {
				return usageError{errors.New("reserve edges are shown with --qr only")}
			}
			return show(c.OutOrStdout(), files, asJSON)
		},
	}
	l.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; fields are added over time, never changed")
	c.Flags().BoolVar(&qr, "qr", false, "print the text of the QR codes, one a line")
	return c
}

func show(w io.Writer, files directory.Files, asJSON bool) error {
	sigs, err := files.Signatures()
	if err != nil {
		return err
	}
	signed, err := verified(files)
	if asJSON {
		v := struct {
			InForce    bool                  `json:"in_force"`
			Signatures []directory.Signature `json:"signatures"`
			Names      *directory.Names      `json:"names,omitempty"`
			Addresses  *directory.Addresses  `json:"addresses,omitempty"`
			Expires    *time.Time            `json:"expires,omitempty"`
		}{InForce: err == nil, Signatures: sigs}
		if err == nil {
			v.Names, v.Addresses, v.Expires = &signed.Directory.Names, &signed.Directory.Addresses, &signed.Directory.Expires
		}
		return printJSON(w, v)
	}
	for _, s := range sigs {
		enough := "enough"
		if !s.Enough() {
			enough = "not enough"
		}
		if s.Old {
			enough += ", by the keys before"
		}
		fmt.Fprintf(w, "%-20s %d of %d signatures, %s  %s\n", s.File, len(s.Keys), s.Wanted, enough, strings.Join(s.Keys, " "))
	}
	if errors.Is(err, directory.ErrUnsigned) {
		_, err := fmt.Fprintln(w, "\nNot in force yet.")
		return err
	}
	if err != nil {
		return err
	}
	d := signed.Directory
	fmt.Fprintf(w, "\nnames version %d, addresses version %d, until %s\n", d.Version, d.Moves, d.Expires.Format(time.DateOnly))
	for _, s := range d.Names.Services {
		fmt.Fprintf(w, "service  %-16s %-12s on %s, ports %v\n", s.Name, s.Loopback(), s.Host, s.Ports)
	}
	for i, s := range d.Servers() {
		kind := "relay"
		if i == 0 {
			kind = "control"
		}
		fmt.Fprintf(w, "%-8s %-16s %v %s\n", kind, s.Name, s.Addresses, s.Network)
	}
	for _, p := range d.Edges() {
		fmt.Fprintf(w, "edge     %-16s %s %s %s\n", p.Name, p.Address, p.URL, p.Network)
	}
	for _, p := range d.Public() {
		fmt.Fprintf(w, "public   %-16s %s %s %s\n", p.Name, p.Address, p.URL, p.Network)
	}
	return nil
}
