#!/bin/sh
# Rebuilds the initramfs, where the passphrase is asked for, so that it has veilor's
# boot screen.
set -eu

# The base keeps its hardened allocator out of the initramfs, which has no copy
# of the library that this file names.
preload=/usr/lib/systemd/system.conf.d/40-hardened_malloc.conf
release=/usr/lib/os-release
aside=$(mktemp -d)
cp -p "$release" "$aside/release"
restore() {
	cp -p "$aside/release" "$release"
	[ ! -e "$aside/preload" ] || mv "$aside/preload" "$preload"
}
trap restore EXIT
[ ! -e "$preload" ] || mv "$preload" "$aside/preload"

# dracut copies os-release. With the version in it the initramfs, the largest
# file of an update, would change every day.
sed -i -E '/^(OSTREE_|IMAGE_)?VERSION=/d' "$release"

set -- /usr/lib/modules/*
if [ $# -ne 1 ] || [ ! -d "$1" ]; then
	echo "rebuilding the initramfs: want one kernel in /usr/lib/modules, have: $*" >&2
	exit 1
fi
dracut --force --no-hostonly --reproducible --add "ostree plymouth" --kver "${1##*/}" "$1/initramfs.img"
chmod 0600 "$1/initramfs.img"

# A theme that did not get in would leave a prompt nobody sees.
lsinitrd "$1/initramfs.img" | grep -q usr/share/plymouth/themes/veilor/veilor.script ||
	{ echo "rebuilding the initramfs: the boot screen is not in it; is plymouth-plugin-script installed?" >&2; exit 1; }
