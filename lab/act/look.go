package act

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/look"
	"github.com/veilor/veilor-os/lab/report"
)

// takePictures shows what a person in front of the laptop sees before there is a
// mesh: the overlay of the run, laid over the programs that draw it.
func (s *Stage) takePictures(ctx context.Context, a *console.Act) (string, error) {
	if s.Short && !look.Root.Built(s.cache) {
		return "", notPlayed("its programs, 940 MB of Debian packages, are not in the cache; `make demo` and `make test` put them there")
	}
	a.Step("rendering the overlay")
	tree, err := overlay.Render(os.DirFS(filepath.Join(s.Source, "overlay")), s.site.Site)
	if err != nil {
		return "", err
	}
	scratch := filepath.Join(s.Cache, "run", "look")
	if err := os.RemoveAll(scratch); err != nil {
		return "", fmt.Errorf("clearing a directory for pictures: %w", err)
	}
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return "", fmt.Errorf("making a directory for pictures: %w", err)
	}
	a.Step("Plymouth, Konsole and a dialogue, on a screen in memory")
	pictures, err := look.Take(ctx, s.cache, tree, scratch, s.log)
	if err := s.check(report.Held("look.pictures", "boot screen, wallpaper, terminal and dialogue are drawn", err)); err != nil {
		return "", err
	}
	s.page.Screens = append(s.page.Screens, look.Screens(pictures)...)
	if _, err := look.Save(filepath.Join(s.Out, "pictures"), pictures); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d pictures of boot screen, wallpaper, terminal and dialogue", len(pictures)), nil
}
