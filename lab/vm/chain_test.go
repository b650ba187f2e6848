package vm_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/lab/base"
	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/disk"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	"github.com/veilor/veilor-os/lab/vm"
	"github.com/veilor/veilor-os/lab/webca"
)

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// lab is what the chain of artefacts is made with.
type lab struct {
	*testing.T
	cache *cache.Cache
	log   io.Writer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	gate.Root(t, "deploying and booting")
	gate.Long(t, "deploying and booting")
	dir := gate.Cache(t, "deploying and booting")
	if err := debian.Check(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.ArtifactDir(), "chain.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	c := &cache.Cache{Dir: dir, Notify: func(e cache.Event) {
		t.Logf("%s: %v %v", e.Name, e.What, e.Took.Round(100*time.Millisecond))
	}}
	return &lab{t, c, log}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (l *lab) base(ctx context.Context) (tools, stub string, img *base.Image) {
	l.Helper()
	tools = must(debian.Tools.Build(ctx, l.cache, l.log))(l.T)
	root := must(debian.Base.Build(ctx, l.cache, l.log))(l.T)
	stub = must(bootc.Build(ctx, l.cache, l.log))(l.T)
	programs := must(program.Build(ctx, "../..", filepath.Join(l.cache.Dir, "bin"), l.log))(l.T)
	// The same as the demo's, so that it is made once.
	web := must(webca.Open(filepath.Join(l.cache.Dir, "keys", "web"), time.Now))(l.T)
	img = must(base.Build(ctx, l.cache, base.Spec{
		Tools: tools, Root: root, Bootc: stub, Tailscaled: programs.Tailscaled, Tailscale: programs.Tailscale,
		WebCA: must(os.ReadFile(web.CertFile()))(l.T),
	}, l.log))(l.T)
	return tools, stub, img
}

const (
	passphrase = "correct horse battery staple"
	password   = "lab"
	// passwordHash is crypt(3) of password: SHA-512, salt "lab".
	passwordHash = "$6$lab$8Didkn.UcNG/jLg7V7QIVX8TXEUMaHiIjiDSTr0wAgIU0I3PLx3iJU9IWSsHB2a53VxKmQZAq1Hyy09qF/fXn1"
)

// TestChain goes from package archives to a running machine: the base, put on
// an encrypted disk by ostree's own code, booted through firmware and boot
// loader, unlocked at the prompt.
func TestChain(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	tools, stub, img := l.base(ctx)
	installed, err := disk.Install(ctx, l.cache, disk.Spec{
		Tools: tools, Bootc: stub,
		Imgref: "ostree-unverified-image:oci:" + img.Dir, Digest: img.Digest, Share: []string{img.Dir},
		Passphrase: passphrase, RootHash: passwordHash, Hostname: "laptop", Kargs: []string{"console=ttyS0"},
		Progress: func(s disk.Stage) { t.Logf("disk: %s", s) },
	}, l.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("disk stages in seconds: %v", installed.Took)

	m := l.start(ctx, tools, installed.Path)
	lap := l.laps()
	if err := m.Unlock(ctx, "not it"); err != nil {
		t.Fatal(err)
	}
	lap("prompt")
	if err := m.AwaitLogin(ctx); !errors.Is(err, vm.ErrPassphrase) {
		t.Fatalf("after a wrong passphrase: %v, want to be asked again", err)
	}
	lap("asked again")
	if err := m.Retry(ctx, passphrase); err != nil {
		t.Fatal(err)
	}
	if err := m.AwaitLogin(ctx); err != nil {
		t.Fatal(err)
	}
	lap("login prompt")
	if err := m.Login(ctx, "root", password); err != nil {
		t.Fatal(err)
	}
	lap("shell")
	l.checkMachine(ctx, m, img)
	lap("looked around")
	if err := m.Poweroff(ctx); err != nil {
		t.Error(err)
	}
	lap("off")
}

// start powers on a machine with a scratch directory of its own.
func (l *lab) start(ctx context.Context, tools, image string) *vm.Machine {
	l.Helper()
	root := must(sandbox.Overlay(tools, l.TempDir()))(l.T)
	l.Cleanup(func() { root.Close() })
	dir := l.ArtifactDir()
	for _, d := range []string{dir, filepath.Dir(image)} {
		if err := root.Share(d); err != nil {
			l.Fatal(err)
		}
	}
	kernel := must(debian.Kernel(must(debian.Base.Build(ctx, l.cache, l.log))(l.T)))(l.T)
	verdict := must(vm.Probe(ctx, l.cache, root, kernel, l.log))(l.T)
	l.Logf("acceleration: %s: %s", verdict.Accel, verdict.Why)
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.MkdirAll(data, 0o755), os.WriteFile(filepath.Join(data, "hello"), []byte("hello"), 0o644)); err != nil {
		l.Fatal(err)
	}
	if err := vm.MakeData(ctx, root, data, filepath.Join(dir, "data.img"), l.log); err != nil {
		l.Fatal(err)
	}
	m := must(vm.Start(ctx, vm.Config{Tools: root, Dir: dir, Disk: image, Data: filepath.Join(dir, "data.img"), Accel: verdict.Accel}))(l.T)
	l.Cleanup(func() { m.Kill() })
	return m
}

func (l *lab) laps() func(string) {
	last := time.Now()
	return func(what string) {
		now := time.Now()
		l.Logf("%-14s %6.1f s", what, now.Sub(last).Seconds())
		last = now
	}
}

// checkMachine asks the machine about itself.
func (l *lab) checkMachine(ctx context.Context, m *vm.Machine, img *base.Image) {
	l.Helper()
	for _, tc := range []struct{ what, command, want string }{
		{"no unit has failed", "systemctl --failed --no-legend --plain", ""},
		{"the system came up whole", "systemctl is-system-running --wait", "running"},
		{"the root is encrypted", "lsblk -rno TYPE $(findmnt -no SOURCE /sysroot)", "crypt"},
		{"the system is read-only", "touch /usr/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system"},
		{"so is the repository", "findmnt -no OPTIONS /sysroot | cut -d, -f1", "ro"},
		{"it knows its name", "cat /etc/hostname", "laptop"},
		{"it has an ID of its own", "grep -cE '^[0-9a-f]{32}$' /etc/machine-id", "1"},
		{"the data disk is there", "mkdir -p /run/lab && mount -o ro LABEL=LAB /run/lab && cat /run/lab/hello; echo", "hello"},
		{"both copies of the trap are there", "cat /etc/systemd/user/plasma-kwin_wayland.service.d/override.conf | cmp - /usr/" + "etc/systemd/user/plasma-kwin_wayland.service.d/override.conf; echo $?", "0"},
		{"an unknown image fails the check of provenance", "/usr/libexec/secureblue/verify-provenance.sh 2>&1 | grep -c WARNING", "1"},
		{"kernel arguments of the image are used", "grep -c lockdown=confidentiality /proc/cmdline", "1"},
		// Not command -v: the profile has a function of that name, as secureblue's.
		{"there is no sudo", "type -P sudo sshd; echo", ""},
		{"output over many lines keeps its shape", "seq 3; false", "1\n2\n3"},
	} {
		got, err := m.Run(ctx, tc.command)
		if err != nil {
			l.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got.Output); diff != "" {
			l.Errorf("%s: %q (-want +got):\n%s", tc.what, tc.command, diff)
		}
	}
	status, err := m.Must(ctx, "bootc status --format=json --format-version=1")
	if err != nil {
		l.Fatal(err)
	}
	if err := bootc.CheckStatus([]byte(status)); err != nil {
		l.Errorf("%v: %s", err, status)
	}
	if !strings.Contains(status, img.Digest) || !strings.Contains(status, `"booted":{"image"`) {
		l.Errorf("status does not name the image %s: %s", img.Digest, status)
	}
	// What is written to the port comes out here.
	if _, err := m.Must(ctx, "echo measured > "+vm.EventsPort); err != nil {
		l.Error(err)
	}
	if err := m.Events.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		l.Error(err)
	}
	line, err := bufio.NewReader(m.Events).ReadString('\n')
	if err != nil || line != "measured\n" {
		l.Errorf("from the port: %q, %v", line, err)
	}
	l.Logf("boot: %s", must(m.Must(ctx, "systemd-analyze; systemd-analyze blame --no-pager | grep service | head -25; head -3 /proc/meminfo; df -m /sysroot /boot"))(l.T))
}
