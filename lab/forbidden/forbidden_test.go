package forbidden

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/outfit"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/sandbox"
	labsite "github.com/veilor/veilor-os/lab/site"
)

var evidence = flag.String("evidence", "", "write what was measured to this `file` (docs/evidence/tiers.json)")

func TestMain(m *testing.M) { os.Exit(sandbox.RunTests(m)) }

// tryLimit is for all of it on a busy machine, where half a minute is enough for a
// quiet one; evidenceLimit for every condition of the matrix.
const (
	tryLimit      = 8 * time.Minute
	evidenceLimit = 50 * time.Minute
)

func prepare(t *testing.T) Config {
	t.Helper()
	gate.Root(t, "what is forbidden to a guest")
	store := gate.Cache(t, "what is forbidden to a guest")
	f, err := outfit.Make(t.Context(), outfit.Options{Source: "../..", Cache: store, Wide: true, Log: t.Output(), Progress: func(what string) { t.Log(what) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, f.World.Logs)
		}
	})
	return Config{
		Authority: f.Authority, Conditions: Conditions(), Now: time.Now,
		Commit: program.Commit("../.."), Versions: versions(t, f.Programs), World: f.World,
	}
}

func showLogs(t *testing.T, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if len(data) > 2000 {
			data = data[len(data)-2000:]
		}
		t.Logf("%s ends:\n%s", filepath.Base(f), data)
	}
}

// versions are those of every program that took part, and of the kernel, which filters.
func versions(t *testing.T, p program.Set) map[string]string {
	t.Helper()
	all, err := program.Versions(p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	all["Linux"] = strings.TrimSpace(string(out))
	return all
}

// Every condition of the mesh's matrix is tried or has its reason not to be.
func TestConditions(t *testing.T) {
	have := map[string]bool{}
	for _, c := range floors.Conditions() {
		have[c.ID] = true
		if _, ok := elsewhere[c.ID]; !ok && c.Begin != nil && c.End == nil {
			t.Errorf("%s begins and does not end", c.ID)
		}
	}
	for id := range elsewhere {
		if !have[id] {
			t.Errorf("the matrix has no %s any more", id)
		}
	}
	if n := len(MoreConditions()) + len(elsewhere); n != len(have) {
		t.Errorf("%d conditions tried or left out, of %d", n, len(have))
	}
}

// leastTried is how many forbidden targets a guest tries on each layer.
const leastTried = 20

// A guest reaches nothing that is forbidden to it, on no layer and whatever the
// ISP does, and everything that is allowed wherever a layer is left.
func TestForbidden(t *testing.T) {
	cfg := prepare(t)
	limit := tryLimit
	if *evidence != "" {
		cfg.Conditions = append(cfg.Conditions, MoreConditions()...)
		limit = evidenceLimit
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Holds(); err != nil {
		t.Error(err)
	}
	if err := reached(cfg.Conditions, r); err != nil {
		t.Error(err)
	}
	for _, c := range cfg.Conditions {
		for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
			refused, open := 0, 0
			silent := false
			for _, cell := range r.Cells {
				if cell.Condition == c.Name && cell.Layer == l.String() && cell.Source.Name == guest {
					refused += cell.Refused
					open += len(cell.Open)
					silent = cell.Silent
				}
			}
			t.Logf("%-16s %-10s refused %3d, open %d, silent %t", c.Name, l, refused, open, silent)
			if refused < leastTried {
				t.Errorf("%s, %s: only %d forbidden targets were tried", c.Name, l, refused)
			}
			if !c.Find && silent == slices.Contains(c.Layers, l) {
				t.Errorf("%s, %s: silent: %t", c.Name, l, silent)
			}
		}
	}
	t.Logf("control: %d of %d packets seen with every door open; %d are never carried", r.Control.Seen, r.Control.Sent, r.Control.Impossible)
	for _, c := range r.Cells {
		if c.Source.Name != guest {
			if len(c.Shut) > 0 || c.Silent {
				t.Errorf("%s, %s: %s does not open %v of %s, though it may", c.Condition, c.Layer, c.Source.Name, c.Shut, c.Destination.Name)
			}
			t.Logf("%-10s %-9s -> %-9s open %v shut %v refused %d", c.Layer, c.Source.Name, c.Destination.Name, c.Open, c.Shut, c.Refused)
		}
	}
	if *evidence != "" && !t.Failed() {
		f, err := renameio.NewPendingFile(*evidence, renameio.WithPermissions(0o644))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Cleanup()
		if _, err := r.WriteTo(f); err != nil {
			t.Fatal(err)
		}
		if err := f.CloseAtomicallyReplace(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is allowed and was not reached is seen under every condition, whoever knew
// before which layers are left.
func TestReached(t *testing.T) {
	known := Condition{Name: "known", Layers: []tier.Layer{tier.Tailnet, tier.Yggdrasil}}
	promised := Condition{Name: "promised", Find: true, Some: true}
	published := Condition{Name: "published", Find: true}
	for name, c := range map[string]struct {
		condition Condition
		layers    []string
		open      []string
		shut      []string
		good      bool
	}{
		"known, reached":           {known, []string{"yggdrasil"}, []string{"443/tcp"}, nil, true},
		"known, one not reached":   {known, []string{"tailnet", "yggdrasil"}, []string{"443/tcp"}, nil, false},
		"known, carried by none":   {known, nil, nil, nil, false},
		"found, one not reached":   {promised, []string{"tailnet", "yggdrasil"}, []string{"443/tcp"}, nil, true},
		"found, reached":           {promised, []string{"yggdrasil"}, []string{"443/tcp"}, nil, true},
		"found, in part":           {promised, []string{"yggdrasil"}, []string{"443/tcp"}, []string{"icmp"}, false},
		"found, not reached":       {promised, []string{"yggdrasil"}, nil, nil, false},
		"found on another":         {promised, []string{"tailnet"}, []string{"443/tcp"}, nil, false},
		"promised, found on none":  {promised, nil, nil, nil, false},
		"published, found on none": {published, nil, nil, nil, true},
		"published, not reached":   {published, []string{"yggdrasil"}, nil, []string{"443/tcp"}, false},
	} {
		r := &matrix.Record{
			Conditions: []matrix.Condition{{Name: "open"}, {Name: c.condition.Name, Layers: c.layers}},
			Cells: []matrix.Cell{
				{Condition: c.condition.Name, Layer: "yggdrasil", Source: matrix.End{Name: guest}, Open: c.open, Shut: c.shut},
				// Nobody else's reaching is the guest's.
				{Condition: c.condition.Name, Layer: "yggdrasil", Source: matrix.End{Name: onyx}, Open: []string{"443/tcp"}},
				{Condition: "open", Layer: "yggdrasil", Source: matrix.End{Name: guest}, Open: []string{"443/tcp"}},
			},
		}
		if err := reached([]Condition{c.condition}, r); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The site of the town is one that the product takes.
func TestWithoutAttic(t *testing.T) {
	wide, err := labsite.MakeWide(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := withoutAttic(wide.Site)
	if len(s.Hosts) != 1 || len(s.Services) != 1 || len(s.Yggdrasil.Edges) != 2 || len(s.Yggdrasil.Public) != 2 {
		t.Errorf("hosts %v, services %v, %+v", s.Hosts, s.Services, s.Yggdrasil)
	}
	if len(wide.Hosts) != 2 || len(wide.Services) != 2 {
		t.Error("the lab's own site was changed")
	}
	text, err := s.Inline()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	back, err := site.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tier.New(back); err != nil {
		t.Error(err)
	}
}
