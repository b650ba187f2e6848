package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// askEnv makes this test binary ask the daemon on that socket, and print the
// status of each answer: METHOD PATH BODY...
const askEnv = "VEILOR_TEST_ASK"

func ask(socket string, args []string) error {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	for ; len(args) >= 3; args = args[3:] {
		req, err := http.NewRequest(args[0], "http://mesh"+args[1], strings.NewReader(args[2]))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	return nil
}

// TestUsers has other users of the machine ask the daemon: who logs in may read,
// a daemon may not even that, and only root gives orders.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: the daemon's socket and other users; run `sudo go test ./cmd/veilor`")
	}
	dir := t.TempDir()
	// Others must get at the socket and at this program, wherever go test put it.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "ask")
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	siteFile := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(siteFile, []byte(strings.ReplaceAll(testSiteText(t), "127.83.0.1}", "127.83.0.205}")), 0o644); err != nil {
		t.Fatal(err)
	}
	a, _ := startDaemon(t, dir, siteFile, "127.83.0.206:0")

	const root, person, homed, webServer = 0, 1000, 60200, 33
	users := []uint32{person, homed, webServer, 999, 65534, root} // root's orders last
	questions := []struct {
		method, path, body string
		want               map[uint32]int // of users that are not there: 403
	}{
		{"GET", "/status", "", map[uint32]int{root: 200, person: 200, homed: 200}},
		{"GET", "/log", "", map[uint32]int{root: 200, person: 200, homed: 200}},
		{"GET", "/watch", "", map[uint32]int{root: 200, person: 200, homed: 200}},
		{"GET", "/explain?name=x.veilor", "", map[uint32]int{root: 200, person: 200, homed: 200}},
		{"GET", "/test?name=nobody.veilor", "", map[uint32]int{root: 404, person: 404, homed: 404}},
		{"POST", "/directory", "", map[uint32]int{root: 200}},
		{"POST", "/quiet", `{"on":true}`, map[uint32]int{root: 200}},
	}
	var args []string
	for _, q := range questions {
		args = append(args, q.method, q.path, q.body)
	}
	for _, uid := range users {
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), askEnv+"="+a.meshSocket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		answers := strings.Fields(string(out))
		if err != nil || len(answers) != len(questions) {
			t.Errorf("user %d: %v, %d answers: %s", uid, err, len(answers), &errs)
			continue
		}
		for i, q := range questions {
			want, ok := q.want[uid]
			if !ok {
				want = http.StatusForbidden
			}
			if answers[i] != fmt.Sprint(want) {
				t.Errorf("user %d: %s %s: %s, want %d", uid, q.method, q.path, answers[i], want)
			}
		}
	}
}
