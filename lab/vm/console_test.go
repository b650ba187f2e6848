package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestExpectConsumesUpToTheMatch(t *testing.T) {
	ours, theirs := net.Pipe()
	var log bytes.Buffer
	c := NewConsole(ours, &log)
	go func() {
		// In pieces, as a serial line delivers.
		for _, piece := range []string{"noise lo", "gin: rest lo", "gin: "} {
			io.WriteString(theirs, piece)
		}
	}()
	re := regexp.MustCompile(`(\S+) (lo)gin: `)
	for _, want := range [][]string{{"noise login: ", "noise", "lo"}, {"rest login: ", "rest", "lo"}} {
		got, err := c.Expect(t.Context(), time.Second, re)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("match (-want +got):\n%s", diff)
		}
	}
	_, err := c.Expect(t.Context(), 10*time.Millisecond, re)
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("silence: %v, want ErrTimeout", err)
	}
	io.WriteString(theirs, "panic")
	theirs.Close()
	var missed *ExpectError
	if _, err = c.Expect(t.Context(), time.Second, re); !errors.As(err, &missed) || missed.Tail != "panic" {
		t.Errorf("end of the line: %v, want an ExpectError with what was seen", err)
	}
	if log.String() != "noise login: rest login: panic" {
		t.Errorf("log %q", log.String())
	}
}

func TestExpectEndsWithItsContext(t *testing.T) {
	ours, _ := net.Pipe()
	c := NewConsole(ours, nil)
	boom := errors.New("boom")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if _, err := c.Expect(ctx, time.Minute, regexp.MustCompile("x")); !errors.Is(err, boom) {
		t.Errorf("error %v, want the context's cause", err)
	}
}

func TestPromptsAsSystemdPrintsThem(t *testing.T) {
	for line, want := range map[string]int{
		"🔐 Please enter passphrase for disk root (luks-1111): (press TAB for no echo) ": 1,
		"Please enter passphrase for disk QEMU (luks-1):":                               1,
		"\r\nDebian GNU/Linux 13 laptop ttyS0\r\n\r\nlaptop login: ":                    2,
		"[  12.3] reboot: System halted":                                                3,
		"You are in emergency mode.":                                                    3,
	} {
		got := bootAnswer.FindStringSubmatch(line)
		if got == nil || got[want] == "" {
			t.Errorf("%q: groups %q, want group %d", line, got, want)
		}
	}
}

// shell is a Machine whose console is a local shell with noise in between.
func shell(t *testing.T) *Machine {
	t.Helper()
	ours, theirs := net.Pipe()
	cmd := exec.CommandContext(t.Context(), "bash", "--norc", "--noprofile")
	cmd.Stdin = theirs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		io.WriteString(theirs, "[  OK  ] Reached target late.\r\n")
		io.Copy(theirs, out)
	}()
	t.Cleanup(func() { ours.Close(); theirs.Close(); cmd.Process.Kill() })
	return &Machine{Console: NewConsole(ours, nil), started: time.Unix(1, 5)}
}

func TestRun(t *testing.T) {
	m := shell(t)
	for _, tc := range []struct {
		command string
		want    Result
	}{
		{"echo one", Result{"one", 0}},
		{"exit_code() { return 7; }; exit_code", Result{"", 7}},
		{"printf 'no newline'", Result{"no newline", 0}},
		{"echo; echo a; echo; echo b >&2", Result{"\na\n\nb", 0}},
		{"cd /; X='kept'", Result{"", 0}},
		{"pwd; echo $X # and a comment", Result{"/\nkept", 0}},
		{"cat <<'EOT'\nit's \"quoted\" $X\nEOT", Result{`it's "quoted" $X`, 0}},
		{"cat", Result{"", 0}}, // stdin is empty, not the console
		{"echo '>lab-1-1 0'", Result{">lab-1-1 0", 0}},
		{"no-such-command-here 2>/dev/null", Result{"", 127}},
		{"printf %s " + strings.Repeat("long", 3000) + " | wc -c", Result{"12000", 0}},
	} {
		got, err := m.Run(t.Context(), tc.command)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", brief(tc.command), diff)
		}
	}
	var failed *CommandError
	if _, err := m.Must(t.Context(), "echo why; false"); !errors.As(err, &failed) || failed.Output != "why" {
		t.Errorf("Must of a failing command: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Run(ctx, "sleep 5"); err == nil {
		t.Error("a command that does not end in time was no error")
	}
}

func TestMonitor(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		fmt.Fprintln(theirs, `{"QMP":{"version":{}}}`)
		in := bufio.NewScanner(theirs)
		for in.Scan() {
			var q struct{ Execute string }
			if json.Unmarshal(in.Bytes(), &q) != nil {
				return
			}
			switch q.Execute {
			case "qmp_capabilities":
				fmt.Fprintln(theirs, `{"return":{}}`)
			case "query-status":
				fmt.Fprintln(theirs, `{"event":"RESUME","timestamp":{}}`)
				fmt.Fprintln(theirs, `{"return":{"status":"running"}}`)
			default:
				fmt.Fprintln(theirs, `{"error":{"class":"CommandNotFound","desc":"no such thing"}}`)
			}
		}
	}()
	m, err := newMonitor(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Execute("query-status", nil)
	if err != nil || string(got) != `{"status":"running"}` {
		t.Errorf("answer %s, %v", got, err)
	}
	var refused *ErrMonitor
	if _, err := m.Execute("nonsense", map[string]int{"a": 1}); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("error %v, want QEMU's own", err)
	}
}

func FuzzPrompts(f *testing.F) {
	f.Add("laptop login: ")
	f.Fuzz(func(t *testing.T, s string) {
		for _, re := range []*regexp.Regexp{passphrasePrompt, bootAnswer, loginAnswer} {
			got := re.FindStringSubmatch(s)
			if got == nil {
				continue
			}
			answers := 0
			for _, g := range got[1:] {
				if g != "" {
					answers++
				}
			}
			if strings.ContainsAny(got[0], "\r\n") || answers != min(1, len(got)-1) {
				t.Errorf("%q is %d answers of one line", got[0], answers)
			}
		}
	})
}
