package act

import (
	"context"
	"fmt"

	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/disk"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/vm"
)

// What the person who installs would choose.
const (
	diskPassphrase = "correct horse battery staple"
	hostname       = "laptop"
	rootPassword   = "veilor"
	// rootHash is rootPassword: openssl passwd -6 -salt veilorlab.
	rootHash = "$6$veilorlab$FdvG3zLSvzEWw.JAR111i/zI6XJNjonKKN8z8e37zxBM4osD0B55hV4YrmLdCnBM8nD6FRQcKc.OL/2ZsLa40."
)

// emulated are kernel arguments for a processor that is not real: they take back
// what the image's own list costs most under emulation and what protects
// nothing there. The image keeps its list; the last word on a line wins.
var emulated = []string{
	"mitigations=off", "spectre_v2=off", "spec_store_bypass_disable=off", "l1tf=off", "l1d_flush=off",
	"init_on_alloc=0", "init_on_free=0", "slab_debug=-", "page_alloc.shuffle=0", "randomize_kstack_offset=off",
}

// kargs are the machine's own kernel arguments.
func (s *Stage) kargs() []string {
	all := []string{"console=ttyS0"}
	if s.accel.Accel == vm.TCG {
		all = append(all, emulated...)
	}
	return all
}

// install puts the signed image onto an encrypted disk.
func (s *Stage) install(ctx context.Context, a *console.Act) (string, error) {
	a.Step("looking whether this machine can virtualise")
	var err error
	if s.accel, err = vm.Probe(ctx, s.cache, s.tools, s.kernel, s.log); err != nil {
		return "", err
	}
	s.page.Machine = fmt.Sprintf(", %s", s.accel.Accel)
	reused := true
	s.disk, err = disk.Install(ctx, s.cache, disk.Spec{
		Tools: s.toolsRoot, Bootc: s.stub,
		Imgref:     fmt.Sprintf("ostree-image-signed:docker://%s:%d", s.site.Image.Ref, s.site.OS.Release),
		Digest:     s.image.Digest,
		Config:     s.trust,
		Passphrase: diskPassphrase, RootHash: rootHash, Hostname: hostname,
		Kargs: s.kargs(),
		Progress: func(stage disk.Stage) {
			reused = false
			a.Step("%s", stage)
		},
	}, s.log)
	if err != nil {
		return "", err
	}
	size := report.Number(float64(disk.MinSize) / 1e9)
	if reused {
		return fmt.Sprintf("LUKS2 + ostree on a %s GB disk, as installed before", size), nil
	}
	return fmt.Sprintf("LUKS2 + ostree onto a %s GB disk", size), nil
}
