package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/veilor/veilor-os/internal/overlay"
	"github.com/veilor/veilor-os/internal/recipe"
	"github.com/veilor/veilor-os/internal/site"
)

// ModulesLabel says, as a JSON list of [Outcome], what became of the parts of the
// recipe that veilor-forge cannot apply itself. An image without it was built by
// BlueBuild, which applies all.
const ModulesLabel = "io.veilor.modules"

// finalDiffID is the label by which ostree's importer finds the end of the
// encapsulated base; it stays the base's own (ostree-ext, encapsulate.rs).
const finalDiffID = "ostree.final-diffid"

// createdBy marks our layers in an image's history.
const createdBy = "veilor-forge"

// versionRe is what may be a version and thus a tag (OCI distribution-spec).
var versionRe = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// Options say what to build.
type Options struct {
	Site    *site.Site
	Recipe  *recipe.Recipe
	Overlay fs.FS // the overlay directory
	Base    Dir
	Out     Dir
	Version string
	// Revision is the commit of the sources; may be empty.
	Revision    string
	Arch        string      // as Go names it
	Compression Compression // of our layers; empty is gzip
	// StandIns say what takes the place of parts of the recipe that neither
	// veilor-forge nor the base can do.
	StandIns []Replacement
	Cache    string // a directory that outlives builds
	// Programs returns the programs of the image.
	Programs func(context.Context) (overlay.Tree, error)
	// Created dates the image and everything in its layers; zero means the
	// base's own date.
	Created time.Time
	// Step, if set, is called at the beginning of each step and returns what
	// ends it.
	Step func(name string) (end func(detail string))

	// beforeExchange, if set, is called when the image is whole beside its place.
	beforeExchange func()
}

// Layer is one layer that a build added. Its name is the group of what is in it,
// and for what has a layer of its own also which: "programs/veilor",
// "branding/wallpapers"; "trust" has the bundles of authorities.
type Layer struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // compressed, in bytes
}

// Result says what was built.
type Result struct {
	Image      string    `json:"image"`
	Digest     string    `json:"digest"`
	Version    string    `json:"version"`
	BaseDigest string    `json:"base_digest"`
	Layers     []Layer   `json:"layers"`
	Undone     []string  `json:"undone"`
	Modules    []Outcome `json:"modules"` // as in [ModulesLabel]
}

// Build makes the image and writes it to o.Out, whole or not at all.
func Build(ctx context.Context, o Options) (*Result, error) {
	if !versionRe.MatchString(o.Version) {
		return nil, fmt.Errorf("building the image: %q is no version; write for example %d.20261123.0", o.Version, o.Site.OS.Release)
	}
	if err := o.Recipe.Agree(o.Site); err != nil {
		return nil, err
	}
	if o.Compression == "" {
		o.Compression = Gzip
	}
	if err := replaceable(o.Out.Path); err != nil {
		return nil, err
	}
	unlock, err := lock(o.Cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	step := func(name string) func(string) {
		if o.Step == nil {
			return func(string) {}
		}
		return o.Step(name)
	}

	end := step("overlay")
	tree, err := overlay.Render(o.Overlay, o.Site)
	if err != nil {
		return nil, err
	}
	undo, err := overlay.LoadUndo(o.Overlay)
	if err != nil {
		return nil, err
	}
	end(fmt.Sprintf("%d files", len(tree)))

	end = step("base")
	base, err := OpenBase(ctx, o.Base, o.Arch, o.Cache)
	if err != nil {
		return nil, err
	}
	if err := base.Prefetch(ctx, wanted(o.Recipe, undo)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", o.Base, err)
	}
	end(fmt.Sprintf("%d layers, %d files", len(base.layers), len(base.files)))

	end = step("programs")
	programs, err := o.Programs(ctx)
	if err != nil {
		return nil, err
	}
	if tree, err = tree.Join(programs...); err != nil {
		return nil, err
	}
	end(fmt.Sprintf("%d", len(programs)))

	end = step("modules")
	if err := tree.Check(base.Has); err != nil {
		return nil, err
	}
	b := &builder{stage: newStage(base), tree: tree, undo: undo, version: o.Version, authority: o.Site.Authority.Data, standIns: o.StandIns}
	if b.derived, err = base.derived(ctx, o.Recipe); err != nil {
		return nil, err
	}
	if err := b.apply(ctx, o.Recipe); err != nil {
		return nil, err
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	end(tally(o.Recipe, b.outcomes))

	end = step("layers")
	created := o.Created
	if created.IsZero() {
		created = base.Config.Created.Time
	}
	created = created.UTC().Truncate(time.Second)
	img, layers, err := b.assemble(o, created)
	if err != nil {
		return nil, err
	}
	var size int64
	for _, l := range layers {
		size += l.Size
	}
	end(fmt.Sprintf("%d, %.1f MB over the base", len(layers), float64(size)/1e6))

	end = step("write")
	digest, err := img.Digest()
	if err != nil {
		return nil, fmt.Errorf("building the image: %w", err)
	}
	if err := write(ctx, o, img); err != nil {
		return nil, err
	}
	end(o.Out.String())
	return &Result{
		Image: o.Out.String(), Digest: digest.String(), Version: o.Version, BaseDigest: base.Digest.String(),
		Layers: layers, Undone: b.undone, Modules: b.outcomes,
	}, nil
}

// tally says in a line how many modules there were and what became of the parts
// that the base had to bring.
func tally(r *recipe.Recipe, outcomes []Outcome) string {
	n := map[How]int{}
	for _, o := range outcomes {
		n[o.How]++
	}
	text := fmt.Sprintf("%d", len(r.Modules))
	if n[Satisfied] > 0 {
		text += fmt.Sprintf(", %d parts from the base", n[Satisfied])
	}
	if n[StandIn] > 0 {
		text += fmt.Sprintf(", %d by a stand-in", n[StandIn])
	}
	return text
}

// derived says whether the base is an image of this recipe already.
func (b *Base) derived(ctx context.Context, r *recipe.Recipe) (bool, error) {
	data, err := b.Read(ctx, osReleasePath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the module os-release says it better
	}
	if err != nil {
		return false, fmt.Errorf("reading /%s of the base: %w", osReleasePath, err)
	}
	for l := range strings.Lines(string(data)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(l), "IMAGE_ID="); ok {
			return strings.Trim(id, `"'`) == r.Name, nil
		}
	}
	return false, nil
}

// wanted lists the files of the base that a build will look into.
func wanted(r *recipe.Recipe, undo []overlay.Undo) []string {
	paths := append([]string{osReleasePath}, bundles...)
	for _, u := range undo {
		paths = append(append(paths, u.Path), u.Also...)
	}
	for _, m := range r.Modules {
		if s, ok := m.Spec.(*recipe.Systemd); ok {
			for _, n := range append(append([]string(nil), s.System.Enabled...), s.System.Disabled...) {
				paths = append(paths, "usr/lib/systemd/system/"+n, "etc/systemd/system/"+n)
			}
		}
	}
	return paths
}

// assemble puts the layers on the base and describes the whole.
func (b *builder) assemble(o Options, created time.Time) (v1.Image, []Layer, error) {
	fail := func(err error) (v1.Image, []Layer, error) {
		return nil, nil, fmt.Errorf("building the image: %w", err)
	}
	img := b.base.Image
	var layers []Layer
	for _, p := range b.parts() {
		l, err := b.layer(o.Cache, o.Compression, p, created)
		if err != nil {
			return fail(err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: l,
			// ostree's importer wants a history entry for every layer.
			History:   v1.History{Created: v1.Time{Time: created}, CreatedBy: createdBy, Comment: "veilor " + p.name},
			MediaType: o.Compression.mediaType(),
		})
		if err != nil {
			return fail(err)
		}
		layers = append(layers, Layer{p.name, l.digest.String(), l.size})
	}

	config, err := img.ConfigFile()
	if err != nil {
		return fail(err)
	}
	config = config.DeepCopy()
	config.Created = v1.Time{Time: created}
	date := created.Format(time.RFC3339)
	describe := map[string]string{
		"org.opencontainers.image.created":     date,
		"org.opencontainers.image.version":     o.Version,
		"org.opencontainers.image.title":       path.Base(o.Site.Image.Ref),
		"org.opencontainers.image.description": o.Recipe.Description,
		"org.opencontainers.image.url":         o.Site.OS.Home,
		"org.opencontainers.image.source":      o.Site.OS.Home,
		"org.opencontainers.image.vendor":      o.Site.OS.Name,
		"org.opencontainers.image.base.digest": b.base.Digest.String(),
	}
	if o.Revision != "" {
		describe["org.opencontainers.image.revision"] = o.Revision
	}
	labels := map[string]string{}
	for k, v := range config.Config.Labels {
		// What the base says about itself would be untrue of us.
		if !strings.HasPrefix(k, "org.opencontainers.image.") && !strings.HasPrefix(k, "org.blue-build.") {
			labels[k] = v
		}
	}
	for k, v := range describe {
		labels[k] = v
	}
	// ostree's own name for the version, which its importer prefers.
	if _, ok := labels["version"]; ok {
		labels["version"] = o.Version
	}
	for k, v := range o.Recipe.Labels {
		labels[k] = v
	}
	labels["containers.bootc"] = "1"
	if labels[finalDiffID] != "" && labels["ostree.bootable"] == "" {
		labels["ostree.bootable"] = "1"
	}
	text, err := json.Marshal(append([]Outcome{}, b.outcomes...))
	if err != nil {
		return fail(err)
	}
	labels[ModulesLabel] = string(text)
	config.Config.Labels = labels
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return fail(err)
	}
	annotated, ok := mutate.Annotations(img, describe).(v1.Image)
	if !ok {
		return fail(errors.New("annotating gave no image"))
	}
	return annotated, layers, nil
}

// lock makes builds that share a cache wait for each other: they would compile
// into the same directory.
func lock(cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("opening the cache: %w; give another one with --cache", err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the cache: %w; give another one with --cache", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	return func() { f.Close() }, nil
}

// GoArch is the Go name of an architecture as people write it.
func GoArch(s string) (string, error) {
	switch strings.ToLower(s) {
	case "amd64", "x86_64":
		return "amd64", nil
	case "arm64", "aarch64":
		return "arm64", nil
	}
	return "", fmt.Errorf("%q is no architecture of veilor; write amd64 or arm64", s)
}
