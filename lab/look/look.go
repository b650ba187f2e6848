// Package look takes pictures of what veilor-os shows: the boot screen by the real
// Plymouth, the desktop's colours by real KDE programs and the wallpaper by Qt, all
// on a screen that exists in memory only.
//
// Debian's packages stand in for Fedora's. There is no compositor and no Plasma
// shell: windows have no frames, and what the session draws is not in the
// picture.
package look

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	_ "image/png" // Xvfb's screen is read as PNG
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// Root is where the programs of the pictures live.
var Root = debian.Spec{
	Name: "look",
	Packages: []string{
		"xvfb", "xdotool", "imagemagick", // screen, keyboard, camera
		"plymouth", "plymouth-x11", "plymouth-label", // boot
		"konsole", "kdialog", "kde-style-breeze", "breeze-icon-theme", "plasma-integration", "dbus", // desktop
		"qml-qt6", "qt6-svg-plugins", // wallpaper
		"fonts-noto-core", "fonts-noto-mono",
	},
	Slim: true,
}

const (
	// Width and Height are a small laptop's, in pixels.
	Width, Height = 1366, 768

	display = ":7"

	// settle is between two looks at the screen: what is drawn is taken as done
	// when it did not change meanwhile.
	settle = 250 * time.Millisecond
	// drawLimit is how long a program may take to draw. Konsole starts in 2 s
	// on a free core; tests run on busy ones.
	drawLimit = time.Minute
)

// Picture is one screen.
type Picture struct {
	// Name is good for a file: "boot-prompt".
	Name string
	// When says the moment, for a person.
	When string
	PNG  []byte
}

// stage is a root with our look in it, and its screen.
type stage struct {
	root *sandbox.Root
	log  io.Writer
	last [sha256.Size]byte // what the screen showed when it was last taken
	took []Picture
}

// Take takes all pictures of tree, the rendered overlay. scratch is an empty
// directory on a disk. It runs only inside the sandbox.
func Take(ctx context.Context, c *cache.Cache, tree overlay.Tree, scratch string, log io.Writer) (pictures []Picture, err error) {
	dir, err := Root.Build(ctx, c, log)
	if err != nil {
		return nil, err
	}
	root, err := sandbox.Overlay(dir, scratch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := lay(root, tree); err != nil {
		return nil, err
	}
	s := &stage{root: root, log: log}
	ctx, cancel := context.WithCancel(ctx)
	stop, err := s.screen(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	defer stop()
	defer cancel() // before stop: the programs go before their screen
	if err := errors.Join(s.boot(ctx), s.desktop(ctx)); err != nil {
		return nil, fmt.Errorf("taking pictures: %w", err)
	}
	return s.took, nil
}

// shown are the parts of the overlay that have to do with the look; the rest
// would change how Debian's programs run.
var shown = []string{"etc/xdg/", "etc/plymouth/", "usr/share/"}

func lay(root *sandbox.Root, tree overlay.Tree) error {
	var ours overlay.Tree
	for _, e := range tree {
		for _, p := range shown {
			if strings.HasPrefix(e.Path, p) {
				ours = append(ours, e)
			}
		}
	}
	for _, e := range ours {
		if err := os.RemoveAll(root.Path(e.Path)); err != nil {
			return fmt.Errorf("laying the overlay over a root: %w", err)
		}
	}
	return ours.Write(root.Dir())
}

// start runs a program of the root until ctx ends or the returned function is
// called, which waits for it.
func (s *stage) start(ctx context.Context, name string, args ...string) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := s.command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return func() error {
		cancel()
		return <-done
	}, nil
}

func (s *stage) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := s.root.Command(ctx, name, args...)
	cmd.Env = append(cmd.Env,
		"DISPLAY="+display, "XDG_RUNTIME_DIR=/run/look", "XDG_CURRENT_DESKTOP=KDE", "KDE_SESSION_VERSION=6",
		"XDG_CONFIG_DIRS=/usr/share/kde-settings/kde-profile/default/xdg:/etc/xdg",
		"QT_QPA_PLATFORM=xcb", "QT_QPA_PLATFORMTHEME=kde", "QT_QUICK_BACKEND=software", "LIBGL_ALWAYS_SOFTWARE=1", "GTK_A11Y=none", "NO_AT_BRIDGE=1")
	return cmd
}

// screen starts the X server and waits until it answers.
func (s *stage) screen(ctx context.Context) (stop func(), err error) {
	if err := os.MkdirAll(s.root.Path("run/look"), 0o700); err != nil {
		return nil, err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	// Its own context: it must outlive the programs on it.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := s.command(own, "Xvfb", display, "-displayfd", "3", "-screen", "0", fmt.Sprintf("%dx%dx24", Width, Height), "-nolisten", "tcp", "-noreset")
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Stdout, cmd.Stderr = s.log, s.log
	err = cmd.Start()
	tell.Close()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("starting the screen: %w", err)
	}
	stop = func() {
		cancel()
		cmd.Wait()
	}
	// It writes its number when it takes clients, and closes the pipe then or
	// when it dies.
	if number, err := io.ReadAll(ready); err != nil || len(number) == 0 {
		stop()
		return nil, errors.Join(errors.New("starting the screen: it ended before it was ready"), err)
	}
	// What is there before anything is drawn is no picture.
	if err := s.ignore(ctx); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// look returns what the screen shows.
func (s *stage) look(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	cmd := s.command(ctx, "import", "-window", "root", "-depth", "8", "png:-")
	cmd.Stdout, cmd.Stderr = &out, s.log
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("reading the screen: %w", err)
	}
	return out.Bytes(), nil
}

// ignore makes the next picture be of something other than what the screen shows
// now.
func (s *stage) ignore(ctx context.Context) error {
	png, err := s.look(ctx)
	if err == nil {
		s.last, err = pixels(png)
	}
	return err
}

// pixels is a picture's content: two files of one screen differ by their dates.
func pixels(png []byte) ([sha256.Size]byte, error) {
	img, _, err := image.Decode(bytes.NewReader(png))
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("reading the screen: %w", err)
	}
	h := sha256.New()
	b := img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			r, g, bl, _ := img.At(x, y).RGBA()
			h.Write([]byte{byte(r >> 8), byte(g >> 8), byte(bl >> 8)})
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// take waits until the screen shows something other than in the last picture, and
// keeps it: when it does not change any more, or, where something moves on it all
// the time, at the second look.
func (s *stage) take(ctx context.Context, name, when string, moves bool) error {
	ctx, cancel := context.WithTimeout(ctx, drawLimit)
	defer cancel()
	before := s.last
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		png, err := s.look(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		now, err := pixels(png)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if now != s.last && before != s.last && (moves || now == before) {
			s.last = now
			s.took = append(s.took, Picture{name, when, png})
			return nil
		}
		before = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: the screen did not settle on anything new in %v", name, drawLimit)
		}
	}
}

// keys types text as a person would.
func (s *stage) keys(ctx context.Context, keys ...string) error {
	return sandbox.RunLogged(ctx, s.command(ctx, "xdotool", append([]string{"key", "--delay", "30"}, keys...)...), s.log)
}

// place moves the window of a program, which must be there or come.
func (s *stage) place(ctx context.Context, class string, x, y, w, h int) error {
	ctx, cancel := context.WithTimeout(ctx, drawLimit)
	defer cancel()
	return sandbox.RunLogged(ctx, s.command(ctx, "xdotool", "search", "--sync", "--onlyvisible", "--class", class,
		"windowsize", fmt.Sprint(w), fmt.Sprint(h), "windowmove", fmt.Sprint(x), fmt.Sprint(y)), s.log)
}

// terminal opens a terminal of no program, and returns its name. Plymouth wants
// one, and the machine's own must not be touched.
func (s *stage) terminal() (name string, close func() error, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening a terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("opening a terminal: %w", err), master.Close())
	}
	return fmt.Sprintf("/dev/pts/%d", n), master.Close, nil
}

// Screens are the pictures as the report shows them.
func Screens(pictures []Picture) []report.Screen {
	var screens []report.Screen
	for _, p := range pictures {
		screens = append(screens, report.Screen{When: p.When, Command: p.Name, PNG: p.PNG})
	}
	return screens
}

// Save writes the pictures below dir, and returns their paths.
func Save(dir string, pictures []Picture) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("saving pictures: %w", err)
	}
	var paths []string
	for _, p := range pictures {
		file := filepath.Join(dir, p.Name+".png")
		if err := os.WriteFile(file, p.PNG, 0o644); err != nil {
			return nil, fmt.Errorf("saving pictures: %w", err)
		}
		paths = append(paths, file)
	}
	return paths, nil
}
