package tiers

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veilor/veilor-os/internal/firewalld"
	"github.com/veilor/veilor-os/internal/packetfilter"
	"github.com/veilor/veilor-os/internal/tier"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/gate"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// readers is a root with firewalld and NetworkManager in it, and a scratch
// directory that both sides see under one name.
type readers struct {
	root    *sandbox.Root
	scratch string
}

func openReaders(t *testing.T) *readers {
	t.Helper()
	needRoot(t)
	dir := gate.Cache(t, "firewalld's and NetworkManager's reading")
	tree, err := debian.Readers.Build(t.Context(), &cache.Cache{Dir: dir}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	r := &readers{scratch: t.TempDir()}
	// An overlay, since firewalld writes into its own directories.
	if r.root, err = sandbox.Overlay(tree, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.root.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.root.Share(r.scratch); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *readers) command(name string, args ...string) *exec.Cmd {
	return r.root.Command(context.Background(), name, args...)
}

// checkConfig asks firewalld about zone files, by name.
func (r *readers) checkConfig(t *testing.T, zones map[string][]byte) (string, error) {
	t.Helper()
	dir, err := os.MkdirTemp(r.scratch, "firewalld")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "zones"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range zones {
		if err := os.WriteFile(filepath.Join(dir, "zones", name+".xml"), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := r.command("firewall-offline-cmd", "--system-config", dir, "--check-config").CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// firewalld itself reads the zones of every machine of a town, and refuses each
// way to break them: what its check lets pass proves something only then.
func TestFirewalldTakesTheZones(t *testing.T) {
	r := openReaders(t)
	town := testTown(t)
	version, err := r.command("firewall-offline-cmd", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("firewalld %s", bytes.TrimSpace(version))
	var server map[string][]byte
	asked := 0
	for _, name := range []string{"nullstone", "office", "failsafe", "laptop-1", "cousin-1"} {
		self, ok := town.Fleet.ByName(name)
		if !ok {
			t.Fatalf("no %s in this town", name)
		}
		zones := map[string][]byte{}
		for _, l := range []tier.Layer{tier.Tailnet, tier.Yggdrasil} {
			z, err := firewalld.Render(town.Fleet, self, l)
			if err != nil {
				t.Fatal(err)
			}
			zones[z.Name] = z.XML()
		}
		if name == "nullstone" {
			server = zones
		}
		asked++
		if out, err := r.checkConfig(t, zones); err != nil {
			t.Errorf("firewalld refuses the zones of %s: %v\n%s", name, err, out)
		}
	}
	broken := func(what string, change func(zones map[string][]byte)) {
		zones := map[string][]byte{}
		for name, text := range server {
			zones[name] = bytes.Clone(text)
		}
		change(zones)
		asked++
		out, err := r.checkConfig(t, zones)
		if err == nil {
			t.Errorf("%s: firewalld takes it: %s", what, out)
			return
		}
		t.Logf("%s: %v: %s", what, err, lastLine(out))
	}
	replace := func(old, new string) {
		broken(fmt.Sprintf("%s for %s", new, old), func(zones map[string][]byte) {
			changed := false
			for name, text := range zones {
				changed = changed || bytes.Contains(text, []byte(old))
				zones[name] = bytes.ReplaceAll(text, []byte(old), []byte(new))
			}
			if !changed {
				t.Fatalf("no zone has %s", old)
			}
		})
	}
	replace(`target="DROP"`, `target="DORP"`)
	replace(`"`+packetfilter.YggdrasilInterface+`"`, `"`+packetfilter.TailnetInterface+`"`)
	replace(`protocol="tcp"`, `protocol="tpc"`)
	replace(`port="443"`, `port="443000"`)
	replace(`family="ipv6"`, `family="ipv4"`)
	replace(`</zone>`, ``)
	broken("a name of 18 letters", func(zones map[string][]byte) {
		zones["veilor-yggdrasil-0"] = zones["veilor-ygg"]
		delete(zones, "veilor-ygg")
	})
	t.Logf("firewalld was asked %d times", asked)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// NetworkManager reads the file that the image carries, and would leave both
// interfaces alone.
func TestNetworkManagerLeavesTheOverlaysAlone(t *testing.T) {
	r := openReaders(t)
	const file = "90-veilor.conf"
	text, err := os.ReadFile(filepath.Join("../../overlay/usr/lib/NetworkManager/conf.d", file))
	if err != nil {
		t.Fatal(err)
	}
	show := func(text []byte) string {
		t.Helper()
		dir, err := os.MkdirTemp(r.scratch, "nm")
		if err != nil {
			t.Fatal(err)
		}
		main := filepath.Join(dir, "main.conf")
		conf := filepath.Join(dir, "conf.d")
		for _, d := range []string{conf, filepath.Join(dir, "system.d")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for path, b := range map[string][]byte{main: nil, filepath.Join(conf, file): text} {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, err := r.command("NetworkManager", "--print-config", "--config", main, "--config-dir", conf,
			"--system-config-dir", filepath.Join(dir, "system.d"), "--intern-config", filepath.Join(dir, "intern.conf")).CombinedOutput()
		if err != nil {
			t.Fatalf("NetworkManager: %v: %s", err, out)
		}
		return string(out)
	}
	out := show(text)
	for _, want := range []string{
		"[device-veilor]", "managed=0",
		"interface-name:" + packetfilter.TailnetInterface, "interface-name:" + packetfilter.YggdrasilInterface,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("NetworkManager does not read %s of our file:\n%s", want, out)
		}
	}
	if strings.Contains(show(nil), "device-veilor") {
		t.Error("NetworkManager has the section without our file; this test proves nothing")
	}
}
