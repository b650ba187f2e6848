package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// Relationships of SPDX 2.3, clause 11.
const (
	describes      = "DESCRIBES"
	contains       = "CONTAINS"
	dependsOn      = "DEPENDS_ON"
	descendantOf   = "DESCENDANT_OF"
	generatedFrom  = "GENERATED_FROM"
	noAssertion    = "NOASSERTION"
	packageManager = "PACKAGE-MANAGER"
)

// maxProgram bounds a program whose build information is read; ours have 30 MB.
const maxProgram = 256 << 20

// BillOfMaterials writes what is in the image as an SPDX 2.3 document in JSON: our
// files with their hashes, the Go modules of our programs, the base by its digest,
// and the base's packages if it has a package database. The same image gives the
// same document.
func BillOfMaterials(ctx context.Context, img v1.Image, ref, cache string, w io.Writer) error {
	b, err := index(ctx, img, ref, cache)
	if err != nil {
		return err
	}
	d := newDocument(b)
	if err := d.base(ctx, b); err != nil {
		return fmt.Errorf("listing what is in %s: %w", ref, err)
	}
	layers, err := layersOf(img)
	if err != nil {
		return fmt.Errorf("opening %s: %w", ref, err)
	}
	ours := false
	for i, l := range layers {
		if !l.ours {
			continue
		}
		ours = true
		if err := d.layer(ctx, b, i, l); err != nil {
			return fmt.Errorf("listing what is in %s: layer %s: %w", ref, l.Name, err)
		}
	}
	if !ours {
		return fmt.Errorf("listing what is in %s: no layer of it was made by veilor-forge; an image that BlueBuild made has its list attached by the workflow", ref)
	}
	if err := spdxjson.Write(d.finish(), w, spdxjson.Indent("  ")); err != nil {
		return fmt.Errorf("writing the list: %w", err)
	}
	return nil
}

// document is a bill of materials under way.
type document struct {
	spdx.Document
	image    common.ElementID
	packages map[common.ElementID]*spdx.Package
	files    map[common.ElementID]*spdx.File
	related  map[spdx.Relationship]bool
}

func newDocument(b *Base) *document {
	labels := b.Config.Config.Labels
	name := cmp.Or(labels["org.opencontainers.image.title"], "image")
	version := labels["org.opencontainers.image.version"]
	d := &document{image: "Image", packages: map[common.ElementID]*spdx.Package{}, files: map[common.ElementID]*spdx.File{}, related: map[spdx.Relationship]bool{}}
	d.Document = spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: name + "-" + version,
		// Unique for the content, as clause 6.5 wants it, and so the image's digest.
		DocumentNamespace: strings.TrimSuffix(cmp.Or(labels["org.opencontainers.image.url"], "https://spdx.org/spdxdocs"), "/") + "/spdx/" + name + "-" + b.Digest.Hex,
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: createdBy}},
			Created:  b.Config.Created.UTC().Format(time.RFC3339),
		},
	}
	d.add(&spdx.Package{
		PackageSPDXIdentifier: d.image, PackageName: name, PackageVersion: version, PrimaryPackagePurpose: "CONTAINER",
		PackageExternalReferences: []*spdx.PackageExternalReference{purl("pkg:oci/" + name + "@" + escapeDigest(b.Digest.String()) + "?arch=" + b.Config.Architecture)},
		PackageChecksums:          []common.Checksum{{Algorithm: common.SHA256, Value: b.Digest.Hex}},
	})
	d.relate("DOCUMENT", describes, d.image)
	return d
}

func escapeDigest(s string) string { return strings.Replace(s, ":", "%3A", 1) }

func purl(s string) *spdx.PackageExternalReference {
	return &spdx.PackageExternalReference{Category: packageManager, RefType: "purl", Locator: s}
}

// add puts a package into the document, with what SPDX 2.3 demands of each.
func (d *document) add(p *spdx.Package) {
	p.PackageDownloadLocation = cmp.Or(p.PackageDownloadLocation, noAssertion)
	p.PackageLicenseConcluded = noAssertion
	p.PackageLicenseDeclared = cmp.Or(p.PackageLicenseDeclared, noAssertion)
	p.PackageCopyrightText = noAssertion
	d.packages[p.PackageSPDXIdentifier] = p
}

func (d *document) relate(a common.ElementID, how string, b common.ElementID) {
	d.related[spdx.Relationship{RefA: common.MakeDocElementID("", string(a)), RefB: common.MakeDocElementID("", string(b)), Relationship: how}] = true
}

// element is an identifier of SPDX, which has letters, digits, dots and dashes
// only, that is as different as what it is made of.
func element(kind, name string) common.ElementID {
	sum := sha256.Sum256([]byte(name))
	safe := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, name)
	return common.ElementID(kind + "-" + strings.Trim(safe, "-") + "-" + hex.EncodeToString(sum[:4]))
}

// base lists the base and its packages.
func (d *document) base(ctx context.Context, b *Base) error {
	const id = common.ElementID("Base")
	digest := b.Config.Config.Labels["org.opencontainers.image.base.digest"]
	if digest == "" {
		return nil
	}
	p := &spdx.Package{PackageSPDXIdentifier: id, PackageName: "base", PackageVersion: digest, PrimaryPackagePurpose: "CONTAINER"}
	if h, err := v1.NewHash(digest); err == nil {
		p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: h.Hex}}
	}
	d.add(p)
	d.relate(d.image, descendantOf, id)
	packages, from, err := b.Packages(ctx)
	if errors.Is(err, errNoDatabase) {
		p.PackageComment = "It has no RPM database; what is in it is not listed."
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range packages {
		rpm := &spdx.Package{
			PackageSPDXIdentifier: element("RPM", r.String()), PackageName: r.Name, PackageVersion: r.EVR(),
			PackageSourceInfo:         "acquired from the RPM database " + from,
			PackageExternalReferences: []*spdx.PackageExternalReference{purl(fmt.Sprintf("pkg:rpm/fedora/%s@%s-%s?arch=%s", r.Name, r.Version, r.Release, r.Arch))},
		}
		if r.License != "" {
			rpm.PackageComment = "The package says of its licence: " + r.License
		}
		d.add(rpm)
		d.relate(id, contains, rpm.PackageSPDXIdentifier)
	}
	return nil
}

// layer lists the files of one of our layers and the modules of its programs.
func (d *document) layer(ctx context.Context, b *Base, i int, l imageLayer) error {
	return b.walk(ctx, i, func(h *tar.Header, r io.Reader) error {
		name := clean(h.Name)
		if h.Typeflag != tar.TypeReg || strings.HasPrefix(path.Base(name), whiteout) || b.files[name].layer != i {
			return nil
		}
		if h.Size > maxProgram {
			return fmt.Errorf("/%s has %d bytes, more than the %d that are read", name, h.Size, maxProgram)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		old, sum := sha1.Sum(data), sha256.Sum256(data) // clause 8.4 demands SHA-1
		f := &spdx.File{
			FileName: "./" + name, FileSPDXIdentifier: element("File", name),
			Checksums:        []common.Checksum{{Algorithm: common.SHA1, Value: hex.EncodeToString(old[:])}, {Algorithm: common.SHA256, Value: hex.EncodeToString(sum[:])}},
			LicenseConcluded: noAssertion, LicenseInfoInFiles: []string{noAssertion}, FileCopyrightText: noAssertion,
			FileComment: "layer " + l.Name,
		}
		d.files[f.FileSPDXIdentifier] = f
		d.relate(d.image, contains, f.FileSPDXIdentifier)
		if info, err := buildinfo.Read(bytes.NewReader(data)); err == nil {
			d.program(f, info)
		}
		return nil
	})
}

// program lists the Go modules that a program was built of.
func (d *document) program(f *spdx.File, info *buildinfo.BuildInfo) {
	f.FileTypes = []string{"BINARY"}
	module := func(name, version, sum string) common.ElementID {
		id := element("Go", name+"@"+version)
		p := &spdx.Package{PackageSPDXIdentifier: id, PackageName: name, PackageVersion: version}
		p.PackageExternalReferences = []*spdx.PackageExternalReference{purl("pkg:golang/" + name + "@" + version)}
		if sum != "" {
			p.PackageComment = "go.sum: " + sum
		}
		d.add(p)
		return id
	}
	main := module(info.Main.Path, strings.Trim(info.Main.Version, "()"), "")
	d.relate(f.FileSPDXIdentifier, generatedFrom, main)
	d.relate(f.FileSPDXIdentifier, dependsOn, module("stdlib", strings.TrimPrefix(info.GoVersion, "go"), ""))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		d.relate(f.FileSPDXIdentifier, dependsOn, module(m.Path, m.Version, m.Sum))
	}
}

// finish sorts everything, so that the document does not depend on the order of a
// map.
func (d *document) finish() *spdx.Document {
	for _, id := range slices.Sorted(maps.Keys(d.packages)) {
		d.Packages = append(d.Packages, d.packages[id])
	}
	for _, id := range slices.Sorted(maps.Keys(d.files)) {
		d.Files = append(d.Files, d.files[id])
	}
	order := func(r spdx.Relationship) string {
		return common.RenderDocElementID(r.RefA) + " " + r.Relationship + " " + common.RenderDocElementID(r.RefB)
	}
	related := slices.SortedFunc(maps.Keys(d.related), func(a, b spdx.Relationship) int { return strings.Compare(order(a), order(b)) })
	for _, r := range related {
		d.Relationships = append(d.Relationships, &r)
	}
	return &d.Document
}
