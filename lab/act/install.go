package act

import (
	"context"
	"fmt"

	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/disk"
	"github.com/veilor/veilor-os/lab/report"
)

// What the person who installs would choose.
const (
	diskPassphrase = "correct horse battery staple"
	hostname       = "laptop"
	rootPassword   = "veilor"
	// rootHash is rootPassword: openssl passwd -6 -salt veilorlab.
	rootHash = "$6$veilorlab$FdvG3zLSvzEWw.JAR111i/zI6XJNjonKKN8z8e37zxBM4osD0B55hV4YrmLdCnBM8nD6FRQcKc.OL/2ZsLa40."
)

// install puts the signed image onto an encrypted disk.
func (s *Stage) install(ctx context.Context, a *console.Act) (string, error) {
	reused := true
	var err error
	s.disk, err = disk.Install(ctx, s.cache, disk.Spec{
		Tools: s.toolsRoot, Bootc: s.stub,
		Imgref:     fmt.Sprintf("ostree-image-signed:docker://%s:%d", s.site.Image.Ref, s.site.OS.Release),
		Digest:     s.image.Digest,
		Config:     s.trust,
		Passphrase: diskPassphrase, RootHash: rootHash, Hostname: hostname,
		Kargs: []string{"console=ttyS0"},
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
