#!/bin/sh
# Says in one line what this machine lacks and the command that installs it, and
# installs the Debian packages itself where it may (as root).
set -eu

go_min=1.26.6
disk_gb=12
packages="git gcc libc6-dev pkg-config libostree-dev libssl-dev libzstd-dev zlib1g-dev mmdebstrap iproute2 ca-certificates"

lacks() { echo "veilor: $1" >&2; exit 1; }
newer() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; } # newer MIN HAVE

command -v dpkg-query >/dev/null || lacks "the lab needs Debian 12 or newer (apt and dpkg are missing)"
command -v go >/dev/null || lacks "Go $go_min or newer is missing: see https://go.dev/doc/install"
have=$(go env GOVERSION | sed 's/^go//; s/ .*//')
newer "$go_min" "$have" || lacks "Go is $have, $go_min or newer is needed: see https://go.dev/doc/install"
command -v cargo >/dev/null || lacks "Rust is missing: see https://rustup.rs, then: rustup toolchain install stable"

missing=
for p in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
	install="apt-get install -y --no-install-recommends$missing"
	[ "$(id -u)" = 0 ] || lacks "Debian packages are missing: sudo $install"
	echo "veilor: installing Debian packages:$missing" >&2
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install; } >/dev/null 2>&1 ||
		lacks "Debian packages could not be installed; try: apt-get update && $install"
fi

free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge "$disk_gb" ] || lacks "$free GB free here, the lab needs $disk_gb: free some or set OUT=/another/disk"
