#!/bin/sh
# Says in one line what this machine lacks and the command that installs it.
# Only Go is looked for here; with Go, cmd/need looks for the rest and, as root,
# installs the Debian packages itself.
set -eu

go_min=1.26.6

lacks() { echo "veilor: $1" >&2; exit 1; }

command -v dpkg-query >/dev/null || lacks "the lab needs Debian 12 or newer (dpkg is missing)"
command -v go >/dev/null || lacks "Go $go_min or newer is missing: see https://go.dev/doc/install"
have=$(go env GOVERSION | sed 's/^go//; s/ .*//')
[ "$(printf '%s\n%s\n' "$go_min" "$have" | sort -V | head -n 1)" = "$go_min" ] ||
	lacks "Go is $have, $go_min or newer is needed: see https://go.dev/doc/install"
cd "$(dirname "$0")"
exec go run ./cmd/need --cache "$1"
