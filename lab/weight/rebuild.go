package weight

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/veilor/veilor-os/internal/image"
)

const (
	// RebuildGoal is what a person waits who changed one file, at most, on a
	// machine with nothing else to do.
	RebuildGoal = 2 * time.Second
	// RebuildLimit is what fails: ten times that. A machine that tests run on has
	// other things to do, and what this is to find (all layers made anew, the base
	// read again) takes longer still with a real base.
	RebuildLimit = 10 * RebuildGoal
)

// Rebuild is how long building an image takes.
type Rebuild struct {
	// First is the build with nothing in the cache but the compiled programs, Again
	// the one after a change, with what the first left there.
	First time.Duration `json:"first_ns"`
	Again time.Duration `json:"again_ns"`
	// Layers is how many layers of ours the image has, New those that the second
	// build made.
	Layers int `json:"layers"`
	New    int `json:"new_layers"`
}

func (r Rebuild) String() string {
	return fmt.Sprintf("built in %.2f s, after a change again in %.2f s (%.0f%%; the goal is %s), %d of %d layers made anew",
		r.First.Seconds(), r.Again.Seconds(), 100*r.Again.Seconds()/r.First.Seconds(), RebuildGoal, r.New, r.Layers)
}

// Check returns an error if the second build took far too long, or made layers
// that had not changed.
func (r Rebuild) Check() error {
	if r.Again > RebuildLimit {
		return fmt.Errorf("%s; more than %s is too long on any machine", r, RebuildLimit)
	}
	if r.New == 0 || r.New > changedLayers {
		return fmt.Errorf("%s; want one, or the site's as well", r)
	}
	return nil
}

// changedLayers are those that one changed file may change: its own, and the site's,
// where the version is.
const changedLayers = 2

// MeasureRebuild builds the image of o, which must have an empty cache, and again
// after the change c, into the same place, as a person at a desk does.
func MeasureRebuild(ctx context.Context, o image.Options, source, scratch string, c Change) (Rebuild, error) {
	dir := filepath.Join(scratch, "rebuild-overlay")
	if err := copyFiles(source, dir); err != nil {
		return Rebuild{}, fmt.Errorf("copying the overlay: %w", err)
	}
	o.Overlay, o.Out = os.DirFS(dir), image.Dir{Path: filepath.Join(scratch, "rebuild")}
	build := func(version string) (map[string]bool, time.Duration, error) {
		o.Version = version
		began := time.Now()
		res, err := image.Build(ctx, o)
		took := time.Since(began)
		if err != nil {
			return nil, 0, err
		}
		layers := map[string]bool{}
		for _, l := range res.Layers {
			layers[l.Digest] = true
		}
		return layers, took, nil
	}
	had, first, err := build("44.first")
	if err != nil {
		return Rebuild{}, err
	}
	if err := c.Overlay(dir); err != nil {
		return Rebuild{}, fmt.Errorf("making the change %q: %w", c.Name, err)
	}
	has, again, err := build("44.again")
	if err != nil {
		return Rebuild{}, err
	}
	r := Rebuild{First: first, Again: again, Layers: len(has)}
	for digest := range has {
		if !had[digest] {
			r.New++
		}
	}
	return r, nil
}
