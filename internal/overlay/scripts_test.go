package overlay

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// laptop runs a script of the overlay with stand-ins for the programs that it
// calls.
type laptop struct {
	t   *testing.T
	dir string
	env []string
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &laptop{t: t, dir: dir, env: append(os.Environ(),
		"PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "LOG="+filepath.Join(dir, "log"), "DIR="+dir)}
}

// program puts a shell script on the PATH.
func (l *laptop) program(name, body string) { l.write("bin/"+name, "#!/bin/sh\n"+body+"\n", 0o755) }

func (l *laptop) write(name, text string, mode os.FileMode) {
	l.t.Helper()
	file := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		l.t.Fatal(err)
	}
}

// read is a file's text; "" if there is none.
func (l *laptop) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(l.dir, name))
	return string(b)
}

func (l *laptop) set(name, value string) { l.env = append(l.env, name+"="+value) }

// run runs a script of the overlay and wants this text in what it prints.
func (l *laptop) run(ok bool, want, input, script string, args ...string) string {
	l.t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "overlay", filepath.FromSlash(script)))
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Dir, cmd.Stdin = l.env, l.dir, strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if (err == nil) != ok || !strings.Contains(string(out), want) {
		l.t.Errorf("%s %v: %v\n%s\nwant …%s…", script, args, err, out, want)
	}
	return string(out)
}

func TestXwaylandSwitch(t *testing.T) {
	const script = "usr/libexec/veilor/xwayland"
	l := newLaptop(t)
	l.set("VEILOR_XWAYLAND_OVERRIDE", filepath.Join(l.dir, "etc/unit.service.d/override.conf"))
	if err := os.MkdirAll(filepath.Join(l.dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.program("run0", `shift; exec "$@"`)
	l.run(true, "on\n", "", script)
	l.run(true, "off from the next login", "", script, "off")
	if got, want := l.read("etc/unit.service.d/override.conf"), "[Service]\nExecStart=\nExecStart=/usr/bin/kwin_wayland_wrapper\n"; got != want {
		t.Errorf("override %q, want the base's %q", got, want)
	}
	l.run(true, "off\n", "", script, "status")
	l.run(true, "off already", "", script, "off")
	l.run(true, "on from the next login", "", script, "on")
	l.run(true, "on already", "", script, "on")
	l.run(true, "on\n", "", script, "status")
	l.run(false, "write on, off or status", "", script, "maybe")
}

func TestUSBGuardRules(t *testing.T) {
	const script = "usr/libexec/veilor/usbguard-rules"
	const keyboard = `allow id 046d:c31c serial "" name "USB Keyboard" with-interface { 03:01:01 03:00:00 }`
	for name, c := range map[string]struct {
		usbguard string
		ok       bool
		want     string
		kept     string // of rules.conf
	}{
		"a keyboard": {"echo '" + keyboard + "'", true, "", keyboard + "\nTAIL\n"},
		"nothing":    {":", false, "nothing written, and everything stays allowed", ""},
		"bare id":    {"echo 'allow id 046d:c31c'", false, "would admit a keyboard of that id", ""},
		"fails":      {"exit 3", false, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t)
			l.program("usbguard", `echo "$*" >>"$LOG"`+"\n"+c.usbguard)
			l.program("usbguard-rule-parser", ":")
			l.write("tail", "TAIL\n", 0o644)
			l.write("etc/.keep", "", 0o644)
			l.set("VEILOR_USBGUARD_DIR", filepath.Join(l.dir, "etc"))
			l.set("VEILOR_USBGUARD_TAIL", filepath.Join(l.dir, "tail"))
			l.run(c.ok, c.want, "", script)
			if got := l.read("etc/rules.conf"); got != c.kept {
				t.Errorf("rules.conf %q, want %q", got, c.kept)
			}
			left, err := filepath.Glob(filepath.Join(l.dir, "etc", ".rules*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if c.kept == "" {
				return
			}
			if info, err := os.Stat(filepath.Join(l.dir, "etc/rules.conf")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v: the daemon refuses what others can read", info.Mode(), err)
			}
			// What a person changed stays.
			l.write("etc/rules.conf", "mine\n", 0o600)
			l.run(true, "", "", script)
			if got := l.read("etc/rules.conf"); got != "mine\n" {
				t.Errorf("rules.conf %q after a second run", got)
			}
			if got := strings.Count(l.read("log"), "generate-policy"); got != 1 {
				t.Errorf("made %d times", got)
			}
		})
	}
}

func TestWifiResume(t *testing.T) {
	const script = "usr/libexec/veilor/wifi-resume"
	for name, c := range map[string]struct {
		radio, state string
		gone         bool // the interface, after the sleep
		reloads      bool
	}{
		"comes back":     {"enabled", "30 (disconnected)", false, false},
		"is gone":        {"enabled", "30 (disconnected)", true, true},
		"is unavailable": {"enabled", "20 (unavailable)", false, true},
		"switched off":   {"disabled", "20 (unavailable)", false, false},
		"unmanaged":      {"enabled", "10 (unmanaged)", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t)
			l.program("nmcli", `case "$*" in "-g WIFI radio") echo "$RADIO" ;; *) echo "$STATE" ;; esac`)
			l.program("modprobe", `echo "modprobe $*" >>"$LOG"`)
			l.set("RADIO", c.radio)
			l.set("STATE", c.state)
			l.set("VEILOR_WIFI_STATE", filepath.Join(l.dir, "drivers"))
			l.set("VEILOR_WIFI_NET", filepath.Join(l.dir, "net"))
			l.set("VEILOR_WIFI_PATIENCE", "1")
			// A Wi-Fi card whose driver is a module, one in the kernel, and a cable.
			for _, d := range []string{"net/wlan0/phy80211", "net/wlan0/device/driver", "module/somewifi", "net/wlan1/phy80211", "net/wlan1/device/driver", "net/eth0/device/driver"} {
				if err := os.MkdirAll(filepath.Join(l.dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("../../../../module/somewifi", filepath.Join(l.dir, "net/wlan0/device/driver/module")); err != nil {
				t.Fatal(err)
			}
			l.run(true, "", "", script, "note")
			if got := l.read("drivers"); got != "wlan0 somewifi\n" {
				t.Errorf("noted %q", got)
			}
			if c.gone {
				if err := os.Rename(filepath.Join(l.dir, "net/wlan0"), filepath.Join(l.dir, "away")); err != nil {
					t.Fatal(err)
				}
			}
			l.run(true, "", "", script, "restore")
			want := ""
			if c.reloads {
				want = "modprobe -r --remove-holders somewifi\nmodprobe somewifi\n"
			}
			if got := l.read("log"); got != want {
				t.Errorf("did %q, want %q", got, want)
			}
		})
	}
	newLaptop(t).run(false, "write note or restore", "", script)
}

func TestInstallThorium(t *testing.T) {
	const script = "usr/libexec/veilor/install-thorium"
	const sum = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" // of "x"
	const asset = "thorium-browser_138.0.7204.303_SSE3.zip"
	release := func(url, digest string) string {
		var all []string
		for _, l := range []string{"SSE3", "AVX2"} {
			all = append(all, `{"name":"`+strings.Replace(asset, "SSE3", l, 1)+`","browser_download_url":"`+url+`","digest":"`+digest+`"}`)
		}
		return `{"assets":[{"name":"other.deb"},` + strings.Join(all, ",") + `]}`
	}
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("SKIPPED, the installation of Thorium was NOT tried: jq is not installed")
	}
	const good = "https://github.com/Alex313031/thorium/releases/download/x/" + asset
	for name, c := range map[string]struct {
		release, answer string
		ok              bool
		want            string
		installed       bool
	}{
		"yes":           {release(good, "sha256:"+sum), "yes\n", true, "12 milestones", true},
		"no":            {release(good, "sha256:"+sum), "y\n", true, "Nothing was installed", false},
		"silence":       {release(good, "sha256:"+sum), "", false, "milestones", false},
		"swapped":       {release(good, "sha256:"+strings.Repeat("0", 64)), "yes\n", false, "is not what the release states", false},
		"no sum":        {release(good, ""), "yes\n", false, "states no SHA-256", false},
		"another place": {release("https://github.example/x.zip", "sha256:"+sum), "yes\n", false, "not its own repository", false},
		"no file":       {`{"assets":[]}`, "yes\n", false, "the latest release has no", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t)
			l.write("release.json", c.release, 0o644)
			l.program("uname", "echo x86_64")
			l.program("trivalent", "echo Trivalent 150.0.7871.46")
			l.program("curl", `for a; do [ "$p" = -o ] && out=$a; p=$a; done
if [ -n "${out-}" ]; then printf x >"$out"; else cat "$DIR/release.json"; fi`)
			l.program("unzip", `mkdir -p "$4/t"; echo >"$4/t/thorium"; chmod +x "$4/t/thorium"`)
			l.set("HOME", filepath.Join(l.dir, "home"))
			l.set("XDG_DATA_HOME", filepath.Join(l.dir, "data"))
			l.run(c.ok, c.want, c.answer, script)
			desktop := l.read("data/applications/veilor-thorium.desktop")
			if (desktop != "") != c.installed || strings.Contains(desktop, "MimeType") {
				t.Errorf("desktop file: %q", desktop)
			}
			if _, err := os.Stat(filepath.Join(l.dir, "data/veilor-thorium/t/thorium")); (err == nil) != c.installed {
				t.Errorf("installed: %v", err)
			}
		})
	}
}

func TestMullvadKey(t *testing.T) {
	const script = "scripts/veilor-mullvad.sh"
	const want = "A1198702FC3E0A09A9AE5B75D5A1D4F266DE8DDF"
	for name, c := range map[string]struct {
		gpg, files string
		ok         bool
		want       string
		installs   bool
	}{
		"ours":       {"echo pub:x; echo fpr:::::::::" + want + ":; echo sub:x; echo fpr:::::::::BBBB:", "/usr/bin/mullvad-browser", true, "", true},
		"another":    {"echo pub:x; echo fpr:::::::::AAAA:", "", false, "holds the key AAAA instead of " + want, false},
		"one more":   {"echo pub:x; echo fpr:::::::::" + want + ":; echo pub:x; echo fpr:::::::::AAAA:", "", false, "instead of", false},
		"none":       {":", "", false, "instead of", false},
		"below /opt": {"echo pub:x; echo fpr:::::::::" + want + ":", "/opt/mullvad/x", false, "below /opt", true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLaptop(t)
			l.set("VEILOR_ROOT", filepath.Join(l.dir, "root"))
			l.write("root/usr/share/pki/rpm-gpg/mullvad-keyring.asc", "key", 0o644)
			l.program("uname", "echo x86_64")
			l.program("gpg", c.gpg)
			l.program("dnf", `echo "dnf $*" >>"$LOG"`)
			l.program("rpm", "echo "+c.files)
			l.run(c.ok, c.want, "", script)
			if got := l.read("log"); strings.Contains(got, "install mullvad-browser") != c.installs {
				t.Errorf("did %q", got)
			}
		})
	}
	l := newLaptop(t)
	l.set("VEILOR_ROOT", filepath.Join(l.dir, "root"))
	l.program("uname", "echo x86_64")
	l.run(false, "put the key with the fingerprint "+want, "", script)
	l.program("uname", "echo aarch64")
	l.run(true, "not installed here", "", script)
}

func TestVerifyImage(t *testing.T) {
	const script = "scripts/veilor-verify.sh"
	l := newLaptop(t)
	l.set("VEILOR_ROOT", filepath.Join(l.dir, "root"))
	l.program("rpm", `[ "$*" = "-V sudo" ]`)
	for _, f := range []string{"usr/bin/sudo", "usr/lib64/libhardened_malloc.so", "usr/lib64/glibc-hwcaps/x86-64-v3/libhardened_malloc-pkey.so"} {
		l.write("root/"+f, "", 0o755|os.ModeSetuid)
	}
	l.run(true, "", "", script)
	l.write("root/usr/bin/su", "", 0o755|os.ModeSetuid)
	l.run(false, "/usr/bin/su is setuid or setgid", "", script)
	l.write("root/usr/bin/su", "", 0o755)
	l.run(true, "", "", script)
	l.program("rpm", "echo S.5....T. /usr/bin/sudo; exit 1")
	l.run(false, "not as its package says", "", script)
}

// Every file of ours is marked with its layer, and the recipe gets every script.
func TestScripts(t *testing.T) {
	tree := Tree{
		{Path: "etc/a b", Data: []byte("x"), Group: Config},
		{Path: "etc/l", Link: "/dev/null", Group: Config},
		{Path: "usr/bin/p", Data: []byte("x"), Group: Programs},
	}
	all, err := Scripts(fstest.MapFS{"scripts/s.sh": {Data: []byte("#!/bin/sh\n")}}, nil, tree)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Path)
		if !e.Exec {
			t.Errorf("%s is not executable", e.Path)
		}
	}
	if got := strings.Join(names, " "); got != "s.sh veilor-components.sh veilor-undo.sh" {
		t.Error(got)
	}
	l := newLaptop(t)
	c, _ := all.Find(ComponentsScript)
	none := exec.Command("/bin/sh", "-s")
	none.Env, none.Stdin = []string{"PATH=" + t.TempDir()}, strings.NewReader(string(c.Data))
	if out, err := none.CombinedOutput(); err == nil || !strings.Contains(string(out), "install the package attr") {
		t.Errorf("without setfattr: %v: %s", err, out)
	}
	l.program("setfattr", `echo "$*" >>"$LOG"`)
	cmd := exec.Command("sh", "-s")
	cmd.Env, cmd.Stdin = append(l.env, "VEILOR_ROOT=/r"), strings.NewReader(string(c.Data))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := "-n user.component -v veilor-programs -- /r/usr/bin/p\n-n user.update-interval -v weekly -- /r/usr/bin/p\n" +
		"-n user.component -v veilor-config -- /r/etc/a b\n-n user.update-interval -v monthly -- /r/etc/a b\n"
	if got := l.read("log"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if _, err := Scripts(fstest.MapFS{"scripts/s.sh": {Data: []byte("echo\n")}}, nil, nil); err == nil || !strings.Contains(err.Error(), "write #!/bin/sh") {
		t.Error(err)
	}
}
