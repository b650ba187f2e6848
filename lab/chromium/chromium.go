// Package chromium runs Debian's Chromium, which reads the managed policy that
// veilor-os writes for Trivalent: both are built from the same source.
package chromium

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/veilor/veilor-os/lab/debian"
	"github.com/veilor/veilor-os/lab/namespace"
	"github.com/veilor/veilor-os/lab/sandbox"
)

// Root is where the browser lives, with the resolver that the laptop has.
var Root = debian.Spec{Name: "chromium", Packages: []string{"chromium", "unbound", "ca-certificates"}, Slim: true}

// policies is where Debian's build looks; Trivalent looks in
// /etc/trivalent/policies/managed.
const policies = "/etc/chromium/policies/managed"

// flags keep it from asking its vendor's servers, which are not there, and from
// what a container has not got.
var flags = []string{
	"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
	"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
	"--disable-features=HttpsFirstBalancedModeAutoEnable,OptimizationHints",
}

// Browser is Chromium in a root of its own.
type Browser struct {
	root *sandbox.Root
	home int
}

// In prepares the browser in root.
func In(root *sandbox.Root) *Browser { return &Browser{root: root} }

// Policy gives it the managed policy in text, or none.
func (b *Browser) Policy(text []byte) error {
	dir := b.root.Path(policies)
	if text == nil {
		return os.RemoveAll(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the browser's policy: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "veilor.json"), text, 0o644); err != nil {
		return fmt.Errorf("writing the browser's policy: %w", err)
	}
	return nil
}

// Open opens url in ns with a profile that is new, and returns the page's
// elements as they are once it has loaded.
func (b *Browser) Open(ctx context.Context, ns *namespace.Namespace, url string, more ...string) (string, error) {
	b.home++
	args := append(append([]string{}, flags...), fmt.Sprintf("--user-data-dir=/var/tmp/profile-%d", b.home), "--dump-dom")
	cmd := b.root.Command(ctx, "chromium", append(append(args, more...), url)...)
	var out page
	cmd.Stdout = &out
	if err := ns.Run(cmd); err != nil {
		return string(out), fmt.Errorf("opening %s: %w", url, err)
	}
	return string(out), nil
}

type page []byte

func (p *page) Write(b []byte) (int, error) { *p = append(*p, b...); return len(b), nil }
