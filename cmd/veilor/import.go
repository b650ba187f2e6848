package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/directory"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/status"
	"github.com/veilor/veilor-os/internal/yggdrasil"
	"github.com/veilor/veilor-os/internal/ygggroup"
)

func (a *app) directoryStore(s *site.Site) directory.Store {
	return directory.Store{Dir: filepath.Join(a.root, directory.Dir), Site: s}
}

func (a *app) meshImportCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take a newer directory, or reserve edges, that somebody brings",
		Long: `Import takes a directory of names, keys and addresses that is newer than the one
in force, or what is meant for this laptop alone: reserve edges, and the password
that the nodes of the fallback share. It needs no network: the file may come on a
stick, or as QR codes from a phone.

FILE is directory.pem, or the text of the QR codes, one a line, in any order. A
hyphen reads standard input. What the maintainers did not sign, what is older
than what this laptop has seen, and what has expired is refused, and then nothing
changes.`,
		Example: "  run0 veilor mesh import /run/media/stick/directory.pem\n  run0 veilor mesh import - < codes.txt",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usagef("one file is wanted; write for example: veilor mesh import directory.pem")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.needRoot("mesh import " + args[0]); err != nil {
				return err
			}
			s, err := site.Load(a.site)
			if err != nil {
				return err
			}
			text, err := readPacket(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			packet, err := directory.Unpack(text)
			if err != nil {
				return refused(err, time.Now())
			}
			key := ""
			if packet.Reserve != nil {
				y, err := yggdrasil.Query(cmd.Context(), a.yggSocket)
				if err != nil {
					return &advice.Error{
						Text:  fmt.Sprintf("reserve edges are for one laptop, and this one's key is not known: %v", err),
						Todo:  "Start it with: run0 systemctl start veilor-ygg    then run this again.",
						Cause: err,
					}
				}
				key = y.Key
			}
			d, reserve, err := a.directoryStore(s).Import(packet, key, time.Now())
			current := errors.Is(err, directory.ErrCurrent)
			if err != nil && !current {
				return refused(err, time.Now())
			}
			if !current {
				// The daemon serves what is new in it at once. Reserve edges are
				// veilor-ygg's, which looks by itself.
				if err := a.tellMesh(cmd.Context(), "/directory", nil); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "veilor: the directory is in force, but veilor-mesh does not follow it yet: %v\n  It does with: run0 systemctl restart veilor-mesh\n", err)
				}
			}
			r := imported{Changed: !current, Version: d.Version, Moves: d.Moves, Expires: d.Expires}
			if reserve != nil {
				for _, e := range reserve.Edges {
					r.Reserve = append(r.Reserve, e.Name)
				}
				if err := a.keepGroup(reserve.Secret, &r, time.Now()); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.text(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; fields are added over time, never changed")
	return cmd
}

// imported is the answer of import.
type imported struct {
	// Changed is false if what was brought is in force already.
	Changed bool      `json:"changed"`
	Version int64     `json:"version"`
	Moves   int64     `json:"addresses_version"`
	Expires time.Time `json:"expires"`
	// Reserve are the names of reserve edges that were brought.
	Reserve []string `json:"reserve,omitempty"`
	// Group says that the password of the site's Yggdrasil nodes was brought and
	// is kept, GroupNext when it next begins to count, if it does not yet or
	// another follows.
	Group     bool       `json:"group_password,omitempty"`
	GroupNext *time.Time `json:"group_password_from,omitempty"`
}

// keepGroup puts the group's password, if one was brought, where veilor-ygg
// looks for it.
func (a *app) keepGroup(text []byte, r *imported, now time.Time) error {
	if len(text) == 0 {
		return nil
	}
	g, err := ygggroup.Parse(text)
	if err != nil {
		return fmt.Errorf("reading the group's password: %w", err)
	}
	changed, err := ygggroup.Write(filepath.Join(a.root, ygggroup.Path), text)
	if err != nil {
		return err
	}
	r.Group, r.Changed = true, r.Changed || changed
	for _, at := range g.Changes() {
		if at.After(now) && r.GroupNext == nil {
			r.GroupNext = &at
		}
	}
	return nil
}

func (r imported) text(w io.Writer) error {
	what := fmt.Sprintf("directory %d with addresses %d, good until %s", r.Version, r.Moves, r.Expires.Format(time.DateOnly))
	if r.Group {
		when := "veilor-ygg uses it within a minute"
		if r.GroupNext != nil {
			when = "it begins to count on " + r.GroupNext.UTC().Format("2006-01-02 15:04 UTC")
		}
		if _, err := fmt.Fprintf(w, "The password of the site's fallback nodes is kept: %s. Delete the file that brought it.\n", when); err != nil {
			return err
		}
	}
	switch {
	case r.Reserve != nil:
		_, err := fmt.Fprintf(w, "%d reserve edges for this laptop are in force: %v\n", len(r.Reserve), r.Reserve)
		return err
	case r.Group:
		return nil
	case !r.Changed:
		_, err := fmt.Fprintf(w, "It is in force already: %s. Nothing was changed.\n", what)
		return err
	}
	_, err := fmt.Fprintf(w, "In force now: %s.\n", what)
	return err
}

// readPacket reads a file or standard input, no more than a real one has.
func readPacket(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("reading the directory: %w", err)
		}
		defer f.Close()
		in = f
	}
	// One more, so that Unpack sees that it is too much.
	text, err := io.ReadAll(io.LimitReader(in, directory.MaxPacket+1))
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w", err)
	}
	return text, nil
}

// refused says why, and what to do.
func refused(err error, now time.Time) error {
	say := language().Say
	for _, r := range []struct {
		is         error
		text, code string
	}{
		{directory.ErrUnsigned, say("directory refused: it is not signed by enough of the maintainers' keys"), status.DirectoryUnsigned},
		{directory.ErrOlder, say("directory refused: it is older than the one in force"), status.DirectoryOlder},
		{directory.ErrExpired, say("directory refused: its signatures had expired on %s, which is today by this laptop's clock", now.Format(time.DateOnly)), status.DirectoryExpired},
		{directory.ErrTooLarge, say("directory refused: it is too large to be one"), status.DirectoryOversized},
		{directory.ErrStranger, say("reserve edges refused: they are for another laptop"), status.ReserveStranger},
		{directory.ErrNoAnchor, say("directory refused: this system's image carries no signed directory, so it cannot know who may sign one"), status.DirectoryUnsignedImage},
		{directory.ErrDamaged, say("directory refused: it is damaged, or something else"), status.DirectoryDamaged},
	} {
		if errors.Is(err, r.is) {
			return &advice.Error{Text: r.text + "   [" + r.code + "]", Todo: say(status.Remedy(r.code)) + "\n(" + err.Error() + ")", Cause: err}
		}
	}
	return err
}
