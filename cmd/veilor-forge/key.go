package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/signing"
	"github.com/veilor/veilor-os/internal/trust"
	"golang.org/x/term"
)

// passphraseEnv is cosign's own name, so that one secret serves both.
const passphraseEnv = "COSIGN_PASSWORD"

// passphrase gets the passphrase of a key from the environment or a terminal.
func passphrase(file string) ([]byte, error) {
	if p, ok := os.LookupEnv(passphraseEnv); ok {
		return []byte(p), nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, fmt.Errorf("opening %s: %w", file, errNoPassphrase)
	}
	fmt.Fprintf(os.Stderr, "Passphrase of %s: ", file)
	p, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return p, err
}

// newPassphrase asks twice.
func newPassphrase() ([]byte, error) {
	if p, ok := os.LookupEnv(passphraseEnv); ok {
		return []byte(p), nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, fmt.Errorf("making a key pair: %w", errNoPassphrase)
	}
	first, err := passphrase("the new key")
	if err != nil {
		return nil, err
	}
	second, err := passphrase("the new key, again")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, second) {
		return nil, errors.New("making a key pair: the two passphrases differ; run it again")
	}
	return first, nil
}

var nameRe = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)

func keyGenerate() *cobra.Command {
	var out, name string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Make a key pair that signs images",
		Long: `generate makes NAME.key and NAME.pub as "cosign generate-key-pair" does. The
private half is encrypted; its passphrase is $COSIGN_PASSWORD or is asked. Keys
that GitHub signs with, of ci and of release, must have an empty one: there the
secret is the key, and nobody is asked. Nothing is overwritten.

The public half goes to the place that the site file names under
image.signatures; the private half never goes into git.`,
		Example: `  veilor-forge key generate --out ~/veilor-keys --name ci
  COSIGN_PASSWORD= veilor-forge key generate --out ~/veilor-keys --name release`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if !nameRe.MatchString(name) {
				return usageError{fmt.Errorf("%q is no name for a key; write for example --name ci", name)}
			}
			p, err := newPassphrase()
			if err != nil {
				return err
			}
			defer clear(p)
			private, public, err := signing.Generate(out, name, p)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s\n%s\n", private, public)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "`directory` to write to")
	c.Flags().StringVar(&name, "name", "cosign", "`name` of the files, without suffix")
	require(c, "out")
	return c
}

func authorityCreate() *cobra.Command {
	var at checkout
	var out string
	c := &cobra.Command{
		Use:   "create",
		Short: "Make the site's own certificate authority",
		Long: `create makes authority.pem and authority.key. The authority is bound to the
site's zone: no program believes a certificate of it for any other name. Nothing
is overwritten.

authority.pem goes to the place that the site file names under authority;
authority.key stays with the operator.`,
		Example: `  veilor-forge authority create --site site/veilor.yaml --out ~/veilor-keys`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := at.load()
			if err != nil {
				return err
			}
			p, err := trust.Create(s.Zone, time.Now())
			if err != nil {
				return err
			}
			return writePair(c, out, "authority", p)
		},
	}
	at.flags(c)
	c.Flags().StringVar(&out, "out", "", "`directory` to write to")
	require(c, "out")
	return c
}

func authorityIssue() *cobra.Command {
	var at checkout
	var out, key string
	c := &cobra.Command{
		Use:   "issue NAME...",
		Short: "Issue a certificate for names of services",
		Long: `issue makes one certificate for the names, signed by the site's authority, as
FIRST-NAME.pem and FIRST-NAME.key. It is good for 397 days. Nothing is
overwritten.`,
		Example: `  veilor-forge authority issue --key ~/veilor-keys/authority.key --out certificates x.veilor`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no name; write for example x.veilor")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			s, err := at.load()
			if err != nil {
				return err
			}
			if s.Authority.Data == nil {
				return fmt.Errorf("reading the authority: the site names %s, which is not there; make it with: veilor-forge authority create --site %s --out DIR", s.Authority.Path, at.site)
			}
			secret, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("reading the authority's key: %w", err)
			}
			a, err := trust.Open("the site's authority", s.Authority.Data, key, secret)
			if err != nil {
				return err
			}
			p, err := a.Issue(args, time.Now())
			if err != nil {
				return err
			}
			return writePair(c, out, args[0], p)
		},
	}
	at.flags(c)
	c.Flags().StringVar(&key, "key", "", "the authority's private key `file`")
	c.Flags().StringVar(&out, "out", "", "`directory` to write to")
	require(c, "key", "out")
	return c
}

// writePair writes name.pem and name.key (0600) into dir, which it makes.
func writePair(c *cobra.Command, dir, name string, p *trust.Pair) error {
	cert, key := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for _, f := range []string{cert, key} {
		if _, err := os.Lstat(f); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("writing %s: it is there already; name another directory with --out, or move it away", f)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	if err := renameio.WriteFile(key, p.Key, 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	if err := renameio.WriteFile(cert, p.Certificate, 0o644, renameio.IgnoreUmask()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", cert, err), os.Remove(key))
	}
	fmt.Fprintf(c.OutOrStdout(), "%s\n%s\n", cert, key)
	return nil
}
