#!/usr/bin/bash
# Checks where the newest image was built, before an update is staged. Replaces
# secureblue's script of the same name, which knows secureblue's own images only,
# so that every automatic update of a derivative would fail. The callers are the
# base's: rpm-ostreed-automatic.service, upgrade-on-boot, `ujust update-system`.
#
# The check is the same: the tag's digest by crane, its SLSA provenance by
# slsa-verifier. Which image may come from which source and branch is in
# /usr/share/veilor/provenance.conf; an image that it does not name is refused.

set -euo pipefail

# slsa-verifier keeps its trust root below HOME, which system services lack.
export HOME=${HOME:-/root}

conf=${VEILOR_PROVENANCE_CONF:-/usr/share/veilor/provenance.conf}

fail() {
    echo "verify-provenance: $1" >&2
    exit 1
}

[[ -r "$conf" ]] || fail "cannot read $conf"
image_repository='' source_uri='' source_branch='' tags=''
while IFS='=' read -r key value; do
    case "$key" in
        '' | '#'*) ;;
        image) image_repository=$value ;;
        source) source_uri=$value ;;
        branch) source_branch=$value ;;
        tags) tags=$value ;;
        *) fail "$conf: unknown key '$key'" ;;
    esac
done <"$conf"
[[ -n "$image_repository" && -n "$source_uri" && -n "$source_branch" && -n "$tags" ]] ||
    fail "$conf: image, source, branch and tags must all be set"

reference=$(rpm-ostree status --booted --json | jq -cr '.deployments[0]."container-image-reference"')
reference=${reference#*:docker://}
reference=${reference%@*}
repository=${reference%:*}
tag=${reference##*:}

[[ "$repository" == "$image_repository" && "$repository" != "$reference" ]] ||
    fail "unknown image reference '$reference' (want $image_repository:TAG); unable to check provenance"
case " $tags " in
    *" $tag "*) ;;
    *) fail "unknown image tag '$tag' (want one of: $tags); unable to check provenance" ;;
esac

echo "Verifying build provenance for $reference..."
echo "Source: $source_uri:$source_branch"
full_reference=$(crane digest --full-ref "$reference")
echo "Image reference: $full_reference"
slsa-verifier verify-image --source-uri "$source_uri" --source-branch "$source_branch" "$full_reference"
