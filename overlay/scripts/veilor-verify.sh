#!/bin/sh
# Looks at the finished image for what must not ship. The base strips setuid bits
# at the end of its own build; what was installed since is seen by nobody else.
set -eu

root=${VEILOR_ROOT-}
bad=0

rpm -V sudo || {
    echo "veilor-verify: the files of sudo are not as its package says" >&2
    bad=1
}

found=$(mktemp)
trap 'rm -f -- "$found"' EXIT
find "$root/usr" -xdev -type f -perm /6000 >"$found"
while read -r file; do
    case "${file#"$root"}" in
        # sudo is back on purpose; the others are the base's own exceptions
        # (secureblue, files/scripts/removesuid.sh).
        /usr/bin/sudo | /usr/bin/nvidia-modprobe | /usr/lib64/libno_rlimit_as.so) ;;
        /usr/lib64/libhardened_malloc*.so | /usr/lib64/glibc-hwcaps/*/libhardened_malloc*.so) ;;
        *)
            echo "veilor-verify: ${file#"$root"} is setuid or setgid; remove the bit (chmod ug-s) where it is installed" >&2
            bad=1
            ;;
    esac
done <"$found"

[ "$bad" = 0 ]
