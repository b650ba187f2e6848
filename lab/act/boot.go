package act

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/vm"
	"github.com/veilor/veilor-os/lab/world"
)

// dataMount is where the machine finds the lab's own programs.
const dataMount = "/run/lab"

// autopsyTime is enough for a machine under emulation to print some journal.
const autopsyTime = 30 * time.Second

// boot starts the world and the machine in it, and logs in on the console.
func (s *Stage) boot(ctx context.Context, a *console.Act) (string, error) {
	a.Step("starting the world outside")
	if err := s.startWorld(ctx, a); err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.powerOn(ctx); err != nil {
		return "", err
	}
	a.Step("waiting for the disk's passphrase prompt (%s)", s.accel.Accel)
	answers := []string{diskPassphrase}
	if s.Mistakes {
		answers = []string{"correct horse", "battery staple", diskPassphrase}
	}
	if err := s.machine.Unlock(ctx, answers[0]); err != nil {
		return "", err
	}
	prompt := time.Since(began)
	for _, next := range answers[1:] {
		a.Step("a wrong passphrase typed, waiting to be asked again")
		if err := s.machine.AwaitLogin(ctx); !errors.Is(err, vm.ErrPassphrase) {
			return "", fmt.Errorf("a wrong passphrase was typed, but it was not asked again: %v", err)
		}
		if err := s.machine.Retry(ctx, next); err != nil {
			return "", err
		}
	}
	a.Step("passphrase typed, waiting for the login prompt")
	if err := s.machine.AwaitLogin(ctx); err != nil {
		return "", err
	}
	login := time.Since(began)
	a.Step("logging in")
	if err := s.machine.Login(ctx, "root", rootPassword); err != nil {
		return "", err
	}
	if err := s.inspect(ctx, a); err != nil {
		return "", err
	}
	s.checks = append(s.checks,
		report.Fact("boot.prompt", "power-on to the passphrase prompt", report.Seconds(prompt), "s"),
		report.Fact("boot.login", "power-on to the login prompt", report.Seconds(login), "s"))
	return fmt.Sprintf("passphrase at %.0f s, login at %.0f s, 0 failed units; veilor status: %s, encrypted, not joined",
		prompt.Seconds(), login.Seconds(), s.Version), nil
}

// startWorld brings up everything outside the laptop.
func (s *Stage) startWorld(ctx context.Context, a *console.Act) error {
	service, err := s.site.Certificate(time.Now())
	if err != nil {
		return err
	}
	s.world, err = world.Start(ctx, world.Config{
		Tools: world.Tools{
			Headscale: s.programs.Headscale, Tailscaled: s.programs.Tailscaled, Tailscale: s.programs.Tailscale,
			VeilorYgg: s.programs.Ygg, PublicPeer: s.programs.PublicPeer,
			Dnsmasq: func(args ...string) *exec.Cmd {
				return s.tools.Command(context.WithoutCancel(ctx), "dnsmasq", args...)
			},
		},
		Site: s.site.Site, EdgeKey: s.site.EdgeKey, PeerKey: s.site.PeerKey, Service: service, WebCA: s.web,
		Run: filepath.Join(s.run, "w"), Logs: filepath.Join(s.Out, "logs"), Names: "/run/netns",
		Progress: func(what string) { a.Step("starting the world outside: %s", what) },
	})
	if err != nil {
		return err
	}
	s.close = append(s.close, s.world.Close)
	// From the laptop's first packet.
	s.strangers, err = s.world.WatchStrangers()
	return err
}

// powerOn starts the machine on a throw-away overlay of the installed disk.
func (s *Stage) powerOn(ctx context.Context) error {
	dir := s.machineDir()
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clearing the machine's directory: %w", err)
	}
	files := filepath.Join(dir, "files")
	if err := os.MkdirAll(files, 0o755); err != nil {
		return fmt.Errorf("preparing the machine: %w", err)
	}
	program, err := os.ReadFile(s.programs.Browser)
	if err != nil {
		return fmt.Errorf("preparing the machine: %w", err)
	}
	if err := os.WriteFile(filepath.Join(files, "browser"), program, 0o755); err != nil {
		return fmt.Errorf("preparing the machine: %w", err)
	}
	if err := vm.MakeData(ctx, s.tools, files, s.dataDisk(), s.log); err != nil {
		return err
	}
	if err := s.switchOn(ctx, false); err != nil {
		return err
	}
	s.close = append(s.close, func() {
		s.machine.Kill()
		for _, name := range []string{"console.log", "qemu.log"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				os.WriteFile(s.logs("vm-"+name), b, 0o644)
			}
		}
	})
	return nil
}

// machineDir holds the machine's disk and logs.
func (s *Stage) machineDir() string { return filepath.Join(s.Cache, "run", "vm") }

func (s *Stage) dataDisk() string { return filepath.Join(s.machineDir(), "data.img") }

// switchOn starts the machine, with its disk as installed or, to resume, as it
// was left.
func (s *Stage) switchOn(ctx context.Context, resume bool) error {
	m, err := vm.Start(ctx, vm.Config{
		Tools: s.tools, Dir: s.machineDir(), Disk: s.disk.Path, Resume: resume, Data: s.dataDisk(), Accel: s.accel.Accel,
		Tap: world.Tap, NetNS: "laptop", MAC: world.LaptopMAC,
	})
	if err == nil {
		s.machine = m
	}
	return err
}

// status is what `veilor status --json` says, as far as the lab asks.
type status struct {
	System struct {
		Image, Digest, Version, Signature string
		Encrypted                         bool
	}
	Mesh struct {
		Joined  bool
		Address string
		Tags    []string
	}
	Services []struct {
		Name, Layer string
		Layers      []struct{ Name, State, Error string }
	}
	Yggdrasil struct {
		Key, Address, Peer string
		Up                 bool
	}
}

// layer is the state of a layer of the first service.
func (st status) layer(name string) string {
	if len(st.Services) > 0 {
		for _, l := range st.Services[0].Layers {
			if l.Name == name {
				return l.State
			}
		}
	}
	return ""
}

func (s *Stage) status(ctx context.Context) (status, error) {
	var st status
	out, err := s.machine.Must(ctx, "veilor status --json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("reading veilor status: %w: %.300s", err, out)
	}
	return st, nil
}

// inspect holds the booted system against what was installed.
func (s *Stage) inspect(ctx context.Context, a *console.Act) error {
	a.Step("asking veilor status")
	if err := s.unitsHold(ctx, "boot.units", "no unit has failed"); err != nil {
		return err
	}
	if _, err := s.machine.Must(ctx, "mkdir -p "+dataMount+" && mount -o ro LABEL="+vm.DataLabel+" "+dataMount); err != nil {
		return err
	}
	if err := s.show(ctx, "first boot", "veilor status"); err != nil {
		return err
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	want := fmt.Sprintf("%s:%d", s.site.Image.Ref, s.site.OS.Release)
	var wrong []error
	if st.System.Image != want {
		wrong = append(wrong, fmt.Errorf("image %q, not %q", st.System.Image, want))
	}
	if st.System.Digest != s.image.Digest {
		wrong = append(wrong, fmt.Errorf("digest %q, not %q", st.System.Digest, s.image.Digest))
	}
	if st.System.Version != s.Version {
		wrong = append(wrong, fmt.Errorf("version %q, not %q", st.System.Version, s.Version))
	}
	if st.System.Signature != "containerPolicy" {
		wrong = append(wrong, fmt.Errorf("signature %q: not enforced by the container policy", st.System.Signature))
	}
	if !st.System.Encrypted {
		wrong = append(wrong, errors.New("the root is not encrypted"))
	}
	if st.Mesh.Joined {
		wrong = append(wrong, errors.New("already joined"))
	}
	// A stranger, even one who is in Yggdrasil's public network, reaches nothing.
	var reached error
	if len(st.Services) != 1 || st.Services[0].Layer != "none" {
		reached = fmt.Errorf("veilor status: %+v", st.Services)
	}
	if err := s.check(report.Held("boot.stranger", "a laptop that has not joined reaches no service", reached)); err != nil {
		return err
	}
	return s.check(report.Held("boot.status", "veilor status says image, version, signature, encryption, not joined", errors.Join(wrong...)))
}

// unitsHold waits until the system is up and checks that no unit has failed.
func (s *Stage) unitsHold(ctx context.Context, id, title string) error {
	failed, err := s.machine.Must(ctx, "systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend --plain")
	if err != nil {
		return err
	}
	var units error
	if failed = strings.TrimSpace(failed); failed != "" {
		units = errors.New(failed)
	}
	return s.check(report.Held(id, title, units))
}

// autopsy saves what the machine's journal says of a failure, if there is a
// machine that still answers.
func (s *Stage) autopsy(ctx context.Context) {
	if s.machine == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, autopsyTime)
	defer cancel()
	out, err := s.machine.Must(ctx, "systemctl stop lab-browser; journalctl -b --no-pager -o short-monotonic -n 400; top -b -n 1 2>/dev/null | head -20; cat /proc/loadavg")
	if err != nil {
		out = err.Error()
	}
	if err := os.WriteFile(s.logs("vm-journal.log"), []byte(out+"\n"), 0o644); err != nil {
		fmt.Fprintln(s.log, err)
	}
}
