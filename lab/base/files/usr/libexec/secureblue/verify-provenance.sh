#!/bin/bash
# Stand-in for secureblue's check of build provenance, true to what a derivative
# trips over: images of secureblue's own registry pass, every other reference
# ends in failure, and with it every automatic update.
set -euo pipefail

ref="${1:-$(bootc status --format=json | sed -n 's/.*"booted":{"image":{"image":{"image":"\([^"]*\)".*/\1/p')}"
case "${ref}" in
  ghcr.io/secureblue/*:latest | ghcr.io/secureblue/*:br-*)
    echo "Provenance of ${ref} is secureblue's."
    ;;
  *)
    echo "WARNING: Unknown image reference ${ref}; unable to check provenance." >&2
    exit 1
    ;;
esac
