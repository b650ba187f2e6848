package look

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/veilor/veilor-os/lab/sandbox"
)

// prompt is what systemd-cryptsetup asks on a machine that Anaconda installed.
const prompt = "Please enter passphrase for disk SAMSUNG MZVL2512 (luks-6f0c1a52):"

// boot goes through what a person sees until the disk is open.
func (s *stage) boot(ctx context.Context) (err error) {
	terminal, hangUp, err := s.terminal()
	if err != nil {
		return err
	}
	defer hangUp()
	stop, err := s.start(ctx, "plymouthd", "--no-daemon", "--no-boot-log", "--mode=boot", "--tty="+terminal, "--kernel-command-line=splash plymouth.ignore-serial-consoles", "--pid-file=/run/look/plymouth.pid")
	if err != nil {
		return err
	}
	defer func() {
		quit := s.command(ctx, "plymouth", "quit")
		err = errors.Join(err, sandbox.RunLogged(ctx, quit, s.log))
		stop()
	}()
	if err := s.await(ctx, func() error { return s.plymouth(ctx, "--ping") }); err != nil {
		return err
	}
	for _, args := range [][]string{{"show-splash"}, {"update", "--status=looking for the disk"}} {
		if err := s.plymouth(ctx, args...); err != nil {
			return err
		}
	}
	if err := s.take(ctx, "boot-start", "the first second", true); err != nil {
		return err
	}
	ask := func() (func() error, error) {
		return s.start(ctx, "plymouth", "ask-for-password", "--prompt="+prompt)
	}
	first, err := ask()
	if err != nil {
		return err
	}
	defer first()
	if err := s.take(ctx, "boot-prompt", "the disk wants its passphrase", false); err != nil {
		return err
	}
	if err := s.keys(ctx, "h", "u", "n", "t", "e", "r", "2"); err != nil {
		return err
	}
	if err := s.take(ctx, "boot-typed", "seven characters typed", false); err != nil {
		return err
	}
	if err := s.keys(ctx, "Return"); err != nil {
		return err
	}
	second, err := ask()
	if err != nil {
		return err
	}
	defer second()
	return s.take(ctx, "boot-retry", "it was the wrong one", false)
}

// await tries until it succeeds.
func (s *stage) await(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, drawLimit)
	defer cancel()
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (s *stage) plymouth(ctx context.Context, args ...string) error {
	return sandbox.RunLogged(ctx, s.command(ctx, "plymouth", args...), s.log)
}

// wallpaper shows the picture as Plasma's image plugin does: by Qt, cropped.
const wallpaper = `import QtQuick
import QtQuick.Window

Window {
    visible: true
    x: 0; y: 0; width: %d; height: %d
    flags: Qt.FramelessWindowHint | Qt.BypassWindowManagerHint
    Image {
        anchors.fill: parent
        source: "file:///usr/share/wallpapers/Veilor/contents/images/3840x2160.svg"
        sourceSize: Qt.size(width, height)
        fillMode: Image.PreserveAspectCrop
    }
}
`

// terminal is what Konsole shows: words, and all sixteen colours.
const terminal = `clear
printf '\033[1mveilor status\033[0m\n'
printf 'x.veilor     \033[32mreachable over yggdrasil\033[0m (via edge-2, 44 ms), since 10:42\n'
printf '             tailnet: no answer since 10:42   \033[33m[tailnet-blocked]\033[0m\n'
printf '             Nothing to do: veilor goes back by itself.\n'
printf 'system       veilor-os 44, signature enforced, disk encrypted\n\n'
for c in 1 2 3 4 5 6 7; do printf "\033[3${c}mcolour $c\033[0m  \033[9${c}mintense $c\033[0m   "; [ $((c % 3)) = 0 ] && echo; done
printf '\n\033[90m# a comment\033[0m  \033[40m on black \033[0m\n'
exec sleep 600
`

// desktop shows the wallpaper, and over it programs in our colours.
func (s *stage) desktop(ctx context.Context) (err error) {
	for name, text := range map[string]string{"wallpaper.qml": fmt.Sprintf(wallpaper, Width, Height), "terminal.sh": terminal} {
		if err := os.WriteFile(s.root.Path("run/look/"+name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("preparing the desktop: %w", err)
		}
	}
	var stops []func() error
	defer func() {
		for _, stop := range stops {
			stop() // they are killed: their status says nothing
		}
	}()
	start := func(program string, args ...string) error {
		// Each has a session bus of its own: KDE's programs end without one.
		stop, err := s.start(ctx, "dbus-run-session", append([]string{"--", program}, args...)...)
		if err == nil {
			stops = append(stops, stop)
		}
		return err
	}
	// Plymouth is gone and left the screen black, which is no picture.
	if err := s.ignore(ctx); err != nil {
		return err
	}
	if err := start("qml6", "/run/look/wallpaper.qml"); err != nil {
		return err
	}
	if err := s.take(ctx, "wallpaper", "the wallpaper", false); err != nil {
		return err
	}
	// Without the hint that says its size for a moment.
	if err := start("konsole", "--hide-menubar", "--hide-tabbar", "-p", "ShowTerminalSizeHint=false", "-e", "sh", "/run/look/terminal.sh"); err != nil {
		return err
	}
	if err := s.place(ctx, "konsole", 60, 330, 760, 360); err != nil {
		return err
	}
	if err := s.take(ctx, "terminal", "the terminal", false); err != nil {
		return err
	}
	if err := start("kdialog", "--title", "Veilor", "--checklist", "What may reach this laptop from the mesh?",
		"ssh", "Remote shell (ssh)", "off", "files", "Shared files", "on", "print", "Printer", "off", "seed", "Seeding of x.veilor's files", "on"); err != nil {
		return err
	}
	if err := s.place(ctx, "kdialog", 850, 340, 460, 350); err != nil {
		return err
	}
	return s.take(ctx, "desktop", "a dialogue, a list, a choice", false)
}
