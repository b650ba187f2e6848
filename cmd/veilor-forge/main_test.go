package main

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/veilor/veilor-os/internal/image/imagetest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"veilor-forge": main})
}

func TestScripts(t *testing.T) {
	repo, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("REPO", repo)
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("COSIGN_PASSWORD", "secret")
			for name, data := range map[string][]byte{"recipe.yml": imagetest.Recipe, "undo.yaml": imagetest.Undo, "stand-ins.yaml": []byte(imagetest.StandIns)} {
				if err := imagetest.WriteFile(e.WorkDir, name, string(data)); err != nil {
					return err
				}
			}
			return source(e.WorkDir, repo)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// mkbase DIR ARCH [PATH=TEXT]... makes a base image.
			"mkbase": func(ts *testscript.TestScript, _ bool, args []string) {
				more := imagetest.Files{}
				for _, a := range args[2:] {
					p, text, _ := strings.Cut(a, "=")
					more[p] = text
				}
				ts.Check(imagetest.Base().With(more).Write(ts.MkAbs(args[0]), args[1]))
			},
			// registry runs a registry on loopback and sets $REGISTRY.
			"registry": func(ts *testscript.TestScript, _ bool, _ []string) {
				s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
				ts.Defer(s.Close)
				ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "http://"))
			},
			// headscale runs a small Headscale on loopback and sets $HEADSCALE.
			"headscale": fakeHeadscale,
			// fleet runs a Headscale and an edge that can revoke, and sets $HEADSCALE
			// and $EDGE.
			"fleet": fakeFleet,
			// exits N PROGRAM ARGS... wants this exit code.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				code := "0"
				if err != nil {
					code = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if code != args[0] {
					ts.Fatalf("exit code %s, want %s", code, args[0])
				}
			},
		},
	})
}

// source makes a directory of sources with the real recipe and undo list, a
// small overlay, and a site whose keys and authority are still to be made.
func source(dir, repo string) error {
	for name, text := range map[string]string{
		"src/go.mod": "module example\n",
		"src/overlay/usr/libexec/secureblue/verify-provenance.sh":               "#!/bin/sh\n",
		"src/overlay/usr/lib/systemd/system/veilor-mesh.service":                "[Service]\n[Install]\nWantedBy=multi-user.target\n",
		"src/overlay/usr/lib/systemd/system/veilor-ygg.service":                 "[Service]\n[Install]\nWantedBy=multi-user.target\n",
		"src/overlay/etc/zone.tmpl":                                             "{{ .Zone }}\n",
		"src/overlay/etc/xdg/kdeglobals":                                        "[KDE]\n",
		"src/overlay/usr/share/kde-settings/kde-profile/default/xdg/kdeglobals": "[KDE]\n",
		"programs/veilor":     "veilor",
		"programs/veilor-ygg": "veilor-ygg",
		"src/site/veilor.yaml": `zone: veilor
os: {name: veilor-os, release: 44, home: "https://github.com/veilor/veilor-os"}
image:
  ref: ghcr.io/veilor/veilor-os
  base: ghcr.io/secureblue/kinoite-main-hardened
  signatures:
    - {name: ci, keys: [keys/ci.pub]}
    - {name: release, keys: [keys/release.pub]}
control: {url: "https://hs.example.org"}
authority: keys/authority.pem
tiers: [{name: guest, tag: "tag:guest", reach: ["x.veilor:443"]}, {name: infra, tag: "tag:infra", reach: []}]
hosts: [{name: nullstone, tier: infra, tailnet: 100.64.0.1, yggdrasil: "` + strings.Repeat("ab", 32) + `"}]
services: [{name: x.veilor, host: nullstone, ports: [443], loopback: 127.83.0.1}]
yggdrasil:
  edges: [{name: edge-1, url: "wss://edge.example.org/", address: "192.0.2.1:443", key: "` + strings.Repeat("cd", 32) + `"}]
  public: []
`,
	} {
		name = filepath.Join(dir, name)
		if err := imagetest.WriteFile(filepath.Dir(name), filepath.Base(name), text); err != nil {
			return err
		}
	}
	for _, name := range []string{"bluebuild/recipes/recipe.yml", "overlay/undo.yaml"} {
		data, err := os.ReadFile(filepath.Join(repo, name))
		if err != nil {
			return err
		}
		to := filepath.Join(dir, "src", name)
		if err := imagetest.WriteFile(filepath.Dir(to), filepath.Base(to), string(data)); err != nil {
			return err
		}
	}
	return nil
}

// Every command explains itself, with an example that names it.
func TestHelp(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" || !strings.Contains(c.Example, "veilor-forge ") {
			t.Errorf("%s: no help, or no example", c.CommandPath())
		}
		if !c.HasSubCommands() && (c.Long == "" || !strings.Contains(c.Example, c.CommandPath())) {
			t.Errorf("%s: no long help, or an example of something else", c.CommandPath())
		}
		for _, s := range c.Commands() {
			check(s)
		}
	}
	check(newRoot())
}
