// Package disk installs an image onto a disk as Anaconda's ostreecontainer
// does: GPT with ESP, /boot and a LUKS2 root, the image deployed by ostree's own
// container code under the image's own policy.
//
// Two things differ because of where it runs. The machine may lack dm-crypt, so
// the root is deployed in the clear to a file and encrypted there afterwards, in
// user space. And Debian's GRUB has no blscfg, so a small one on the ESP reads
// ostree's boot entries itself; it proves the entries and ostree's switch of
// boot versions, not Fedora's shim, GRUB or bootupd.
package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/bootc"
	"github.com/veilor/veilor-os/lab/cache"
	"github.com/veilor/veilor-os/lab/sandbox"
)

const (
	// version of what Install makes; raise it when the code changes that.
	version = "2"

	// Stateroot is ostree's name for the installed system.
	Stateroot = "veilor"

	mib = 1 << 20

	// espSize is just over the 32 MiB below which there is no FAT32, which the
	// UEFI specification (13.3) asks of an ESP.
	espSize = 34 * mib

	// bootSize holds kernel and initramfs (36 MB in the lab base) of three
	// deployments: running, rollback and the one being finalised.
	bootSize = 160 * mib

	// rootMin holds the tree (0.4 GB in the lab base with our programs), the
	// objects of a second one that shares nothing with it, and some state.
	rootMin = 1216 * mib

	// luksHead is what the encryption of a full device needs in front of it:
	// twice the 16 MiB of a LUKS2 header (cryptsetup-reencrypt(8)).
	luksHead = 32 * mib

	// margin at each end: the first partition is aligned to 1 MiB, the second
	// GPT is at the end.
	margin = 1 * mib

	// MinSize is the smallest disk that Install accepts, in bytes. It is also
	// what the lab uses: encryption and copying cost time by size.
	MinSize = margin + espSize + bootSize + rootMin + margin

	// diskName and metaName are the files of an artefact.
	diskName = "disk.img"
	metaName = "disk.json"
)

// Spec says what to install.
type Spec struct {
	Tools string // root of debian.Tools
	Bootc string // binary of bootc.Build

	// Imgref is what to deploy and to follow from then on, in ostree's form:
	// "ostree-image-signed:docker://ghcr.io/veilor/veilor-os:44".
	Imgref string
	// Digest is the manifest that Imgref must lead to, sha256:...
	Digest string
	// Config is a directory that is laid over the installer's root, as
	// product.img is in Anaconda: etc/containers/policy.json, registries.d,
	// registries.conf, usr/share/pki/containers. It decides which image is
	// accepted. Empty: Debian's default, which takes anything.
	Config string
	// Share are directories that Imgref names, for images that come from one.
	Share []string

	// Passphrase of the root, at least one character, none of them a newline.
	Passphrase string
	// RootHash is the password of root as crypt(5) has it; empty leaves the
	// account locked, as the image has it.
	RootHash string
	Hostname string
	// Kargs are the machine's own kernel arguments. Those of the image's
	// kargs.d, and what finds the root, are added.
	Kargs []string

	// Size of the disk in bytes; 0 is MinSize.
	Size int64

	// Progress, if set, hears each stage as it begins.
	Progress func(Stage)
}

// Stage is a step of an installation, as a person is told of it.
type Stage string

// The stages, in order.
const (
	Partition Stage = "making file systems"
	Deploy    Stage = "deploying the image"
	Configure Stage = "configuring the system"
	Encrypt   Stage = "encrypting the root"
	Assemble  Stage = "writing the disk"
)

// Disk is an installed disk in the cache. It is read-only: run it with an
// overlay.
type Disk struct {
	Path string `json:"-"` // raw image
	// LUKS is the UUID of the encrypted root.
	LUKS string `json:"luks"`
	// Digest of the image that is on it.
	Digest string `json:"digest"`
	// Kargs as the boot entry has them, without ostree='s own.
	Kargs []string `json:"kargs"`
	// Took is how long each stage took, in seconds.
	Took map[Stage]float64 `json:"took"`
}

// TooSmallError says how much a disk lacks.
type TooSmallError struct{ Have, Need int64 }

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("the disk has %d MiB, the system needs %d MiB: give it a larger one", e.Have/mib, (e.Need+mib-1)/mib)
}

func (s *Spec) check() error {
	if s.Size == 0 {
		s.Size = MinSize
	}
	s.Size = s.Size / mib * mib
	switch {
	case s.Size < MinSize:
		return &TooSmallError{Have: s.Size, Need: MinSize}
	case s.Passphrase == "":
		return errors.New("the passphrase is empty: choose one")
	case strings.ContainsAny(s.Passphrase, "\r\n"):
		return errors.New("the passphrase has a line break, which cannot be typed at the prompt: choose another")
	case s.Hostname == "" || strings.ContainsAny(s.Hostname, " \t\n/"):
		return fmt.Errorf("%q is no host name", s.Hostname)
	case strings.ContainsAny(s.RootHash, ":\n"):
		return errors.New("the password hash of root has a colon or a line break: give what mkpasswd(1) prints")
	case s.Digest == "":
		return errors.New("the image's digest is missing: resolve the reference first")
	}
	return nil
}

func (s *Spec) inputs() *cache.Inputs {
	in := cache.NewInputs(version).
		String(filepath.Base(filepath.Dir(s.Tools)), s.Imgref, s.Digest, s.Passphrase, s.RootHash, s.Hostname, fmt.Sprint(s.Size)).
		String(s.Kargs...).File(s.Bootc)
	if s.Config != "" {
		in.Tree(s.Config)
	}
	return in
}

// Install returns the installed disk, making it if the cache has none. Nothing
// is written for a Spec that cannot work.
func Install(ctx context.Context, c *cache.Cache, s Spec, log io.Writer) (*Disk, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("installing: %w", err)
	}
	dir, err := c.Get(ctx, "disk", s.inputs(), func(ctx context.Context, dir string) error {
		return install(ctx, dir, &s, log)
	})
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return nil, fmt.Errorf("reading about the disk: %w", err)
	}
	d := &Disk{Path: filepath.Join(dir, diskName)}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("reading about the disk: %w", err)
	}
	return d, nil
}

// installer is one installation under way.
type installer struct {
	*Spec
	log     io.Writer
	root    *sandbox.Root // where the tools run
	scratch string        // the same path inside and outside of root
	disk    Disk
}

func install(ctx context.Context, dir string, s *Spec, log io.Writer) (err error) {
	in := &installer{Spec: s, log: log, scratch: filepath.Join(dir, "scratch"), disk: Disk{Took: map[Stage]float64{}}}
	if err := os.MkdirAll(filepath.Join(in.scratch, "tools"), 0o755); err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	defer func() {
		if err == nil {
			err = cache.RemoveTree(in.scratch)
		}
	}()
	if in.root, err = sandbox.Overlay(s.Tools, filepath.Join(in.scratch, "tools")); err != nil {
		return err
	}
	defer in.root.Close()
	if err := bootc.Install(in.root, s.Bootc); err != nil {
		return err
	}
	for _, d := range append([]string{dir}, s.Share...) {
		if err := in.root.Share(d); err != nil {
			return err
		}
	}
	if s.Config != "" {
		if err := in.root.Lay(s.Config); err != nil {
			return err
		}
	}
	if in.disk.LUKS, err = newUUID(); err != nil {
		return err
	}
	for _, step := range []struct {
		name Stage
		run  func(context.Context) error
	}{
		{Partition, in.makeFilesystems},
		{Deploy, in.deploy},
		{Configure, in.configure},
		{Encrypt, in.encrypt},
		{Assemble, func(ctx context.Context) error { return in.assemble(ctx, filepath.Join(dir, diskName)) }},
	} {
		if s.Progress != nil {
			s.Progress(step.name)
		}
		start := time.Now()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		in.disk.Took[step.name] = time.Since(start).Seconds()
	}
	in.disk.Digest = s.Digest
	b, err := json.MarshalIndent(in.disk, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, metaName), b, 0o644)
}

// run runs a tool with nothing on its standard input.
func (in *installer) run(ctx context.Context, name string, args ...string) error {
	return in.root.Run(ctx, in.log, nil, name, args...)
}

// path of a file of this installation, the same for the tools and for us.
func (in *installer) path(name string) string { return filepath.Join(in.scratch, name) }

func (in *installer) rootSize() int64 { return in.Size - margin - espSize - bootSize - margin }

// encrypt turns the file with the root into a LUKS2 device of the same size.
// The passphrase goes in by standard input.
func (in *installer) encrypt(ctx context.Context) error {
	stdin := bytes.NewBufferString(in.Passphrase + "\n")
	return in.root.Run(ctx, in.log, stdin, "cryptsetup", "reencrypt", "--encrypt", "--type=luks2", "--batch-mode",
		"--uuid="+in.disk.LUKS, fmt.Sprintf("--reduce-device-size=%dM", luksHead/mib),
		// The default takes 1 GiB and as long as it can; under emulation the
		// unlocking of that is minutes. This is still argon2id.
		"--pbkdf=argon2id", "--pbkdf-memory=65536", "--pbkdf-force-iterations=4", "--pbkdf-parallel=1",
		in.path("root.img"))
}
