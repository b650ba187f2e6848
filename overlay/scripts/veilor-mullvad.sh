#!/bin/sh
# Installs Mullvad Browser from its makers' repository. The base ships that
# repository, switched off, and its key; which key it must be stands here, so that
# another one in the base stops the build.
set -eu

# Mullvad (code signing) <admin@mullvad.net>, RSA 4096, 2016-10-27.
want=A1198702FC3E0A09A9AE5B75D5A1D4F266DE8DDF
root=${VEILOR_ROOT-}
key=$root/usr/share/pki/rpm-gpg/mullvad-keyring.asc

fail() {
    echo "veilor-mullvad: $1" >&2
    exit 1
}

if [ "$(uname -m)" != x86_64 ]; then
    echo "veilor-mullvad: Mullvad Browser is made for x86_64 only; not installed here" >&2
    exit 0
fi
[ -f "$key" ] || fail "$key is not there; put the key with the fingerprint $want there, from https://repository.mullvad.net/rpm/mullvad-keyring.asc"
home=$(mktemp -d)
trap 'rm -rf -- "$home"' EXIT
# All primary keys in the file: one more than expected would sign packages too.
got=$(gpg --homedir "$home" --show-keys --with-colons "$key" | awk -F: '$1 == "pub" { p = 1 } $1 == "fpr" && p { print $10; p = 0 }')
[ "$got" = "$want" ] || fail "$key holds the key $got instead of $want; look why before changing either"

dnf -y --enable-repo=mullvad-stable --setopt=mullvad-stable.gpgcheck=1 install mullvad-browser
# /opt is a link into /var here, which an image cannot ship.
if rpm -ql mullvad-browser | grep -q '^/opt/'; then
    fail "mullvad-browser now installs below /opt, which would be lost in the image"
fi
