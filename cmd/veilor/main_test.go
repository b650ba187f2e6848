package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/site"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(askEnv); socket != "" {
		if err := ask(socket, os.Args[1:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	// The control servers of the tests are trusted as a site's would be. It must
	// be set before the first certificate is verified.
	s := httptest.NewTLSServer(nil)
	dir, err := os.MkdirTemp("", "veilor")
	if err != nil {
		panic(err)
	}
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		panic(err)
	}
	s.Close()
	os.Setenv("SSL_CERT_FILE", roots)
	testscript.Main(cleanup{m, dir}, map[string]func(){
		"veilor": func() {
			a := defaults()
			// Who runs the tests does not matter: the script says who asks.
			if uid, err := strconv.Atoi(os.Getenv("TEST_EUID")); err == nil {
				a.euid = func() int { return uid }
			}
			os.Exit(a.run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// cleanup removes dir after the tests.
type cleanup struct {
	*testing.M
	dir string
}

func (c cleanup) Run() int {
	defer os.RemoveAll(c.dir)
	return c.M.Run()
}

func TestScript(t *testing.T) {
	text := testSiteText(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// Each script has ports of its own.
			ports := map[string]int{}
			for _, name := range []string{"PORT", "DNSPORT"} {
				l, err := net.Listen("tcp", "127.83.0.53:0")
				if err != nil {
					return err
				}
				ports[name] = l.Addr().(*net.TCPAddr).Port
				l.Close()
				env.Setenv(name, strconv.Itoa(ports[name]))
			}
			site := strings.NewReplacer("ports: [443]", fmt.Sprintf("ports: [%d]", ports["PORT"]), "x.veilor:443", fmt.Sprintf("x.veilor:%d", ports["PORT"])).Replace(text)
			env.Setenv("TEST_EUID", "0")
			return os.WriteFile(filepath.Join(env.WorkDir, "site.yaml"), []byte(site), 0o644)
		},
	})
}

const goodKey = "hskey-auth-3f9cAB-_0123-Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_Zy-_"

// laptop is what `veilor join` finds on a machine: tailscaled's socket, the
// forwarder's, systemctl, and a control server outside.
type laptop struct {
	*app
	dir     string
	mu      sync.Mutex
	backend string
	health  []string
	outcome func(*laptop) // of handing a key over
	key     string        // that tailscaled got
}

// testSiteText is the site file of most tests, testSite what is in it.
func testSiteText(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func testSite(t *testing.T) *site.Site {
	t.Helper()
	v, err := site.Parse("site.yaml", []byte(testSiteText(t)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	l := &laptop{app: defaults(), dir: t.TempDir(), backend: "NeedsLogin"}
	l.euid = func() int { return 0 }
	l.terminal = func(uintptr) bool { return false }
	l.root = l.dir
	l.tailscaledSocket, l.meshSocket, l.yggSocket = l.path("ts"), l.path("mesh"), l.path("ygg")

	control := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(control.Close)
	l.site = l.path("site.yaml")
	l.write(t, "site.yaml", strings.NewReplacer(
		"https://hs.example.org", control.URL, "ports: [443]", "ports: [8443]", "x.veilor:443", "x.veilor:8443",
	).Replace(testSiteText(t)), 0o644)
	l.write(t, "bin/systemctl", "#!/bin/sh\nprintf '%s\\n' \"$*\" >>\""+l.path("systemctl.log")+"\"\n", 0o755)
	t.Setenv("PATH", l.path("bin")+":"+os.Getenv("PATH"))

	l.listen(t, l.tailscaledSocket, http.HandlerFunc(l.tailscaled))
	l.listen(t, l.meshSocket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"services":[{"name":"x.veilor","layer":"tailnet","latency_ms":1.5,"layers":[
			{"name":"tailnet","state":"up","latency_ms":1.5},{"name":"yggdrasil","state":"up","latency_ms":3}]}]}`)
	}))
	return l
}

func (l *laptop) path(name string) string { return filepath.Join(l.dir, name) }

func (l *laptop) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(l.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path(name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (l *laptop) listen(t *testing.T, path string, h http.Handler) {
	t.Helper()
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(socket)
	t.Cleanup(func() { s.Close() })
}

// tailscaled answers as one does, as far as joining needs.
func (l *laptop) tailscaled(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch filepath.Base(r.URL.Path) {
	case "status":
		st := map[string]any{"BackendState": l.backend, "HaveNodeKey": true, "Health": l.health}
		if l.backend == "Running" {
			st["TailscaleIPs"] = []string{"100.64.0.3"}
			st["Self"] = map[string]any{"HostName": "laptop-7f", "Tags": []string{"tag:guest"}}
		}
		json.NewEncoder(w).Encode(st)
	case "start":
		var opts struct{ AuthKey string }
		json.NewDecoder(r.Body).Decode(&opts)
		l.key = opts.AuthKey
		l.outcome(l)
		w.WriteHeader(http.StatusNoContent)
	case "logout":
		l.backend, l.health = "NeedsLogin", nil
		w.WriteHeader(http.StatusNoContent)
	case "watch-ipn-bus":
		fmt.Fprintln(w, `{"Version":"1"}`)
		w.(http.Flusher).Flush()
		l.mu.Unlock()
		<-r.Context().Done()
		l.mu.Lock()
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (l *laptop) systemctl(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(l.path("systemctl.log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(log), "--quiet --no-ask-password ", "")
}

func TestJoin(t *testing.T) {
	l := newLaptop(t)
	l.outcome = func(l *laptop) { l.backend = "Running" }
	var out, errs bytes.Buffer
	code := l.run([]string{"join", "--hostname", "laptop-7f"}, strings.NewReader("  "+goodKey+"\n"), &out, &errs)
	if code != 0 {
		t.Fatalf("exit %d:\n%s", code, errs.String())
	}
	for _, want := range []string{
		"  key         hskey-auth-3f9c…, well-formed ",
		"  clock       right ",
		"  control     127.0.0.1, reachable ",
		"  tailnet     joined as laptop-7f (100.64.0.3) ",
		"  x.veilor    answers over tailnet and over yggdrasil ",
	} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no line %q in:\n%s", want, errs.String())
		}
	}
	if want := "You are in. Open https://x.veilor/ in the browser"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("stdout = %q", out.String())
	}
	if l.key != goodKey {
		t.Error("tailscaled got another key")
	}
	if strings.Contains(out.String()+errs.String(), goodKey[30:]) {
		t.Error("the key is shown")
	}
	if got := l.systemctl(t); got != "enable tailscaled.service\nrestart tailscaled.service\n" {
		t.Errorf("systemctl: %q", got)
	}

	out.Reset()
	errs.Reset()
	if code := l.run([]string{"join"}, strings.NewReader(goodKey), &out, &errs); code != cli.Failed || !strings.Contains(errs.String(), "has joined already, as laptop-7f (100.64.0.3)") {
		t.Errorf("joining twice: exit %d, %s", code, errs.String())
	}
	out.Reset()
	if code := l.run([]string{"leave"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "laptop-7f has left") || l.backend != "NeedsLogin" {
		t.Errorf("leaving: exit %d, %s, %s", code, out.String(), l.backend)
	}
	if got := l.systemctl(t); !strings.HasSuffix(got, "disable --now tailscaled.service\n") {
		t.Errorf("systemctl: %q", got)
	}
}

// TestJoinUndone: a key that the control server refuses leaves nothing behind.
func TestJoinUndone(t *testing.T) {
	l := newLaptop(t)
	l.outcome = func(l *laptop) { l.health = []string{"… The last login error was: authkey already used"} }
	var out, errs bytes.Buffer
	code := l.run([]string{"join"}, strings.NewReader(goodKey), &out, &errs)
	if code != cli.Failed || !strings.Contains(errs.String(), "veilor: this key was used before\n  A key opens one laptop, once.") {
		t.Errorf("exit %d:\n%s", code, errs.String())
	}
	if l.backend != "NeedsLogin" || !strings.HasSuffix(l.systemctl(t), "disable --now tailscaled.service\n") {
		t.Errorf("not undone: %s, %q", l.backend, l.systemctl(t))
	}
	if strings.Contains(out.String()+errs.String(), goodKey[30:]) {
		t.Error("the key is shown")
	}
}

// TestJoinTouchesNothingEarly: what is wrong before tailscaled is started
// leaves systemd alone.
func TestJoinTouchesNothingEarly(t *testing.T) {
	for in, want := range map[string]string{
		goodKey[:50]: "the key is cut short",
		"":           "the key is empty",
	} {
		l := newLaptop(t)
		var errs bytes.Buffer
		if code := l.run([]string{"join"}, strings.NewReader(in), &errs, &errs); code != cli.Failed || !strings.Contains(errs.String(), want) {
			t.Errorf("exit %d:\n%s", code, errs.String())
		}
		if got := l.systemctl(t); got != "" {
			t.Errorf("systemctl: %q", got)
		}
	}
}

// TestJoinBlocked: a control server that does not answer is named, and nothing
// is changed.
func TestJoinBlocked(t *testing.T) {
	l := newLaptop(t)
	site, err := os.ReadFile(l.site)
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`https://127\.0\.0\.1:[0-9]+`)
	l.write(t, "site.yaml", url.ReplaceAllString(string(site), "https://127.0.0.1:1"), 0o644)
	var errs bytes.Buffer
	code := l.run([]string{"join"}, strings.NewReader(goodKey), &errs, &errs)
	if code != cli.Failed || !strings.Contains(errs.String(), "  control     failed ") || !strings.Contains(errs.String(), "127.0.0.1 does not answer: connect: connection refused") {
		t.Errorf("exit %d:\n%s", code, errs.String())
	}
	if got := l.systemctl(t); got != "" {
		t.Errorf("systemctl: %q", got)
	}
}

func TestOSRelease(t *testing.T) {
	got := parseOSRelease("# x\nNAME=\"veilor-os\"\nVERSION_ID=44\nIMAGE_VERSION='44.lab.1'\n\nbroken\n")
	if got != (osName{"veilor-os", "44.lab.1"}) {
		t.Errorf("%+v", got)
	}
}

func FuzzOSRelease(f *testing.F) {
	f.Add("NAME=\"a\"\nVERSION_ID=4\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range []string{parseOSRelease(s).name, parseOSRelease(s).version} {
			if strings.Contains(v, "\n") || !strings.Contains(s, v) {
				t.Errorf("%q is no value of one line", v)
			}
		}
	})
}
