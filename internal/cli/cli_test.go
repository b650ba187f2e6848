package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/advice"
)

func TestExit(t *testing.T) {
	var fails error
	for _, c := range []struct {
		args string
		err  error
		code int
		want string
	}{
		{"sub do", nil, Done, ""},
		{"sub do", errors.New("reading: no such file"), Failed, "prog: reading: no such file\n"},
		{"sub do", &advice.Error{Text: "not now", Todo: "Wait.\nThen again."}, Failed, "prog: not now\n  Wait.\n  Then again.\n"},
		{"sub do", fmt.Errorf("flag: %w", Usagef("%d is no port", 0)), Misused, "prog: flag: 0 is no port\n  See: prog sub do --help\n"},
		{"sub do more", nil, Misused, "prog: \"more\": no argument is wanted here\n  See: prog sub do --help\n"},
		{"sub one a b", nil, Misused, "prog: \"b\": a name is all that is wanted here\n  See: prog sub one --help\n"},
		{"sub one a", nil, Done, ""},
		{"sub do --what", nil, Misused, "prog: unknown flag: --what\n  See: prog sub do --help\n"},
		{"sub frob", nil, Misused, "prog: unknown command \"frob\"\n  See: prog sub --help\n"},
		{"frob", nil, Misused, "prog: unknown command \"frob\"\n  See: prog --help\n"},
		{"", nil, Misused, "prog: no command given\n  See: prog --help\n"},
	} {
		fails = c.err
		run := func(*cobra.Command, []string) error { return fails }
		root, sub := Prepare(&cobra.Command{Use: "prog"}), Group(&cobra.Command{Use: "sub"})
		sub.AddCommand(&cobra.Command{Use: "do", Args: NoArgs, RunE: run}, &cobra.Command{Use: "one", Args: AtMostOne("a name"), RunE: run})
		root.AddCommand(sub)
		var stdout, stderr bytes.Buffer
		root.SetArgs(strings.Fields(c.args))
		root.SetOut(&stdout)
		root.SetErr(&stderr)
		cmd, err := root.ExecuteC()
		if code := Exit(&stderr, cmd, err); code != c.code || !strings.HasSuffix(stderr.String(), c.want) || stdout.Len() > 0 {
			t.Errorf("prog %s: exit %d, want %d; %q, want %q; stdout %q", c.args, code, c.code, stderr.String(), c.want, stdout.String())
		}
	}
}
