package act

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/lab/floors"
	"github.com/veilor/veilor-os/lab/program"
	"github.com/veilor/veilor-os/lab/report"
)

// standIns are the parts of this run that take the place of others.
var standIns = []report.StandIn{
	{Part: "lab base", For: "secureblue's Kinoite", Why: "a Debian 13 root, committed and encapsulated by ostree; it carries secureblue's own settings where our recipe has to undo them"},
	{Part: "lab/bootc", For: "bootc", Why: "no package of it exists for Debian; same command line and JSON, over the ostree-ext library that bootc is made of"},
	{Part: "lab/disk", For: "Anaconda", Why: "partitions, deploys and encrypts as ostreecontainer does, but without its screens"},
	{Part: "GRUB that reads boot entries itself", For: "Fedora's shim, GRUB and bootupd", Why: "Debian's GRUB has no blscfg"},
	{Part: "encryption in user space before the first boot", For: "dm-crypt in the installer", Why: "so that it also works where the kernel has no device mapper"},
	{Part: "registry on loopback", For: "ghcr.io", Why: "there is no Internet in the lab; names and signatures are the real ones"},
	{Part: "lab web CA", For: "the public web's authorities", Why: "for hs.lab.test, edge.lab.test and peer.lab.test"},
	{Part: "a unit of the base that runs its certificate update at boot", For: "update-ca-trust in the image build", Why: "modules that run programs of the base are not applied on a desk"},
	{Part: "a processor that QEMU emulates, with the kernel's mitigations off", For: "a real one", Why: "where the machine cannot virtualise; the image keeps secureblue's kernel arguments, the lab appends its own"},
	{Part: "systemd-resolved", For: "dnsconfd with Unbound", Why: "dnsconfd is not in Debian"},
	{Part: "systemd-networkd", For: "NetworkManager", Why: "the lab base has no desktop"},
}

// untried is what no lab shows.
var untried = []string{
	"secureblue's real image: SELinux, Trivalent, the desktop",
	"real hardware: Secure Boot, TPM, Wi-Fi, suspend",
	"a real censor, and a network with real distance in it",
	"Fedora's installer on its own media",
}

// writeReport puts down what was found, whatever came of the run.
func (s *Stage) writeReport(began time.Time) error {
	path := filepath.Join(s.Out, "report.json")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the report: %w", err)
	}
	took := time.Since(began)
	s.checks = append(s.checks, report.Fact("demo.time", "the whole run", report.Seconds(took), "s"))
	err := report.Append(path, s.checks...)
	if err != nil {
		return err
	}
	p := &s.page
	p.Title = "One laptop, one town, one censor"
	p.Made, p.Took = began, took
	p.Machine = fmt.Sprintf("%d cores%s", runtime.NumCPU(), p.Machine)
	for _, c := range s.checks {
		if !strings.HasPrefix(c.ID, "act.") { // shown as acts
			p.Checks = append(p.Checks, c)
		}
	}
	p.StandIns, p.Untried = standIns, untried
	if s.browser != nil {
		p.Samples, _ = s.browser.all()
	}
	if p.Tiers, err = s.tiers(); err != nil {
		return err
	}
	if p.Floors, err = s.floors(); err != nil {
		return err
	}
	p.Commit = program.Commit(s.Source)
	p.Versions = s.versions()
	return p.Write(filepath.Join(s.Out, "report.html"))
}

// tiers is what was last measured of who reaches what, with a date of its own;
// nil if nothing was.
func (s *Stage) tiers() (*matrix.Record, error) {
	f, err := os.Open(filepath.Join(s.Source, "docs/evidence/tiers.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was measured of the tiers: %w", err)
	}
	defer f.Close()
	return matrix.Read(f)
}

// floors is the same of the conditions of the network.
func (s *Stage) floors() (template.HTML, error) {
	f, err := os.Open(filepath.Join(s.Source, "docs/evidence/floors.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading what was measured of the floors: %w", err)
	}
	defer f.Close()
	r, err := floors.Read(f)
	if err != nil {
		return "", err
	}
	var svg strings.Builder
	if err := r.SVG(&svg); err != nil {
		return "", fmt.Errorf("drawing the floors: %w", err)
	}
	return template.HTML(svg.String()), nil
}

// versions of what took part: of our Go programs' modules, and of the tools.
func (s *Stage) versions() []report.Version {
	all := []report.Version{{Name: "veilor-os image", Version: s.Version}}
	built, err := program.Versions(s.programs)
	if err != nil { // a run that failed early has none; its report has the rest
		fmt.Fprintln(s.log, err)
	}
	for _, name := range slices.Sorted(maps.Keys(built)) {
		all = append(all, report.Version{Name: name, Version: built[name]})
	}
	if s.tools == nil {
		return all
	}
	for _, t := range []struct{ name, program, argument string }{
		{"ostree", "ostree", "--version"}, {"skopeo", "skopeo", "--version"},
		{"cryptsetup", "cryptsetup", "--version"}, {"QEMU", "qemu-system-x86_64", "--version"}, {"dnsmasq", "dnsmasq", "--version"},
	} {
		out, err := s.tools.Output(context.Background(), s.log, t.program, t.argument)
		if err == nil {
			all = append(all, report.Version{Name: t.name, Version: firstNumber(out)})
		}
	}
	return all
}

// firstNumber is the first word of a program's answer that begins with a digit,
// with or without quotes around it.
func firstNumber(text string) string {
	for _, w := range strings.Fields(text) {
		w = strings.Trim(w, `'",`)
		if w != "" && w[0] >= '0' && w[0] <= '9' {
			return w
		}
	}
	return "unknown"
}
