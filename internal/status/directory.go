package status

import (
	"time"

	"github.com/veilor/veilor-os/internal/directory"
)

// Directory says whose word this laptop takes for names, keys and addresses.
type Directory struct {
	// Origin is "signed", or "image" if the image has no signed directory; empty
	// if unknown.
	Origin string `json:"origin,omitempty"`
	// Version counts changes of names and keys, Moves those of addresses.
	Version int64 `json:"version,omitempty"`
	Moves   int64 `json:"addresses_version,omitempty"`
	// Made is when the newest signature was made, Expires when the first ends.
	Made    *time.Time `json:"made,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`

	clock func(now time.Time) directory.Freshness
}

// DirectoryOf turns the directory in force into the report's form.
func DirectoryOf(d directory.Directory) Directory {
	return Directory{string(d.Origin), d.Version, d.Moves, when(d.Made), when(d.Expires), d.Freshness}
}

func (d *Directory) is(f directory.Freshness, now time.Time) bool {
	return d.clock != nil && d.Made != nil && d.Expires != nil && d.clock(now) == f
}

// Codes of what `veilor mesh import` refuses. Nothing is changed then.
const (
	DirectoryUnsigned  = "directory-unsigned"
	DirectoryOlder     = "directory-older"
	DirectoryExpired   = "directory-expired"
	DirectoryOversized = "directory-oversized"
	DirectoryDamaged   = "directory-damaged"
	ReserveStranger    = "reserve-stranger"
	// DirectoryUnsignedImage is also said by `veilor status`.
	DirectoryUnsignedImage = "directory-unsigned-image"
)

// refusals are never so of a report: a command says them as it refuses.
func refusals(*Report, *Service) string { return "" }

// directoryTable has the conditions of the directory. None of them closes
// anything: a laptop routes by the last copy that it verified, for ever.
var directoryTable = []kind{
	{"clock-behind", aboutMesh, Warning,
		"The directory was signed later than it is by this laptop's clock.",
		"Set the clock: timedatectl set-ntp true",
		func(r *Report, _ *Service) string {
			if !r.Directory.is(directory.FromTheFuture, r.now) {
				return ""
			}
			return r.say("the clock says %s, and the directory was signed on %s", day(r.now), day(*r.Directory.Made))
		}},
	{"directory-stale", aboutMesh, Warning,
		"The signatures of the directory in force have expired, or the clock is ahead. Everything goes on; a change of names or addresses needs newer signatures.",
		"If that is not today's date, set the clock: timedatectl set-ntp true. If it is, ask the operator for a newer directory, and take it with `run0 veilor mesh import FILE`.",
		func(r *Report, _ *Service) string {
			if !r.Directory.is(directory.Expired, r.now) {
				return ""
			}
			return r.say("the directory expired on %s, and the clock says %s; it is used as before", day(*r.Directory.Expires), day(r.now))
		}},
	{"directory-lost", aboutMesh, Warning,
		"The directory that this laptop had kept cannot be used. The one in the image is in force, which may be older.",
		"Ask the operator for the present directory, and take it with `run0 veilor mesh import FILE`: it replaces what is damaged.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Directory == nil || r.Directory.Origin != string(directory.Signed) {
				return ""
			}
			return r.say("the directory that was kept cannot be used: %v", r.Unknown.Directory)
		}},
	{"directory-ignored", aboutMesh, Warning,
		"The signed directory cannot be used, neither the one that was kept nor the one in the image. What the image's site file says is in force.",
		"An update of the image brings another. Tell the operator if it stays so.",
		func(r *Report, _ *Service) string {
			if r.Unknown.Directory == nil || r.Directory.Origin == string(directory.Signed) {
				return ""
			}
			return r.say("the signed directory cannot be used, so the image's site file is: %v", r.Unknown.Directory)
		}},
	{DirectoryUnsignedImage, aboutMesh, Note,
		"The image carries no signed directory, so this laptop has no key by which to know a newer one.",
		"Nothing to do: what the image says is used, and an update of the image changes it.",
		func(r *Report, _ *Service) string {
			if r.Directory.Origin != string(directory.Image) || r.Unknown.Directory != nil {
				return ""
			}
			return r.say("names and addresses are those of the image, without a signature of their own")
		}},
	{DirectoryUnsigned, aboutMesh, Warning,
		"What was to be imported is not signed by enough of the maintainers' keys.",
		"Nothing was changed. If it came from the operator, tell him this line; if not, forget it.",
		refusals},
	{DirectoryOlder, aboutMesh, Warning,
		"The directory that was to be imported is older than the one in force.",
		"Nothing was changed. Ask for a newer one. An old one may be true and still hide a change.",
		refusals},
	{DirectoryExpired, aboutMesh, Warning,
		"The signatures of what was to be imported have expired, or the clock is ahead.",
		"Nothing was changed. If that is not today's date, set the clock: timedatectl set-ntp true. If it is, ask for a newer one; what is in force goes on.",
		refusals},
	{DirectoryOversized, aboutMesh, Warning,
		"What was to be imported is too large to be a directory.",
		getAgain, refusals},
	{DirectoryDamaged, aboutMesh, Warning,
		"What was to be imported is damaged, or something else.",
		getAgain, refusals},
	{ReserveStranger, aboutMesh, Warning,
		"The reserve edges that were to be imported are for another laptop.",
		"Nothing was changed. Give the operator this laptop's key, which `veilor status --json` prints.",
		refusals},
}

const getAgain = "Nothing was changed. Get it again, from the operator or from somebody whom you know."

// day is t's date where the person is.
func day(t time.Time) string { return t.Local().Format(time.DateOnly) }
