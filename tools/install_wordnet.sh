#!/bin/sh
# Install WordNet 3.0's nouns into .wordnet, without root, from Debian's package wordnet-base, with apt-get and dpkg-deb.
set -eu
cd "$(dirname "$0")/.."
[ ! -f .wordnet/usr/share/wordnet/data.noun ] || exit 0
root=$PWD

fail() {
    echo "make wordnet: error: $1; or unpack WordNet 3.0 yourself and set WORDNET=FOLDER" >&2
    exit 2
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "needs apt-get and dpkg-deb (Debian, Ubuntu)"
rm -rf .wordnet .wordnet.new
trap 'rm -rf "$root/.wordnet.new"' EXIT
mkdir -p .wordnet.new/lists/partial .wordnet.new/archives/partial
cd .wordnet.new
set -- -q -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30
apt-get "$@" download wordnet-base >log 2>&1 || {
    # the system's package lists are missing or old: download separate lists
    set -- "$@" -o Dir::State="$PWD" -o Dir::State::lists="$PWD/lists" -o Dir::Cache="$PWD" \
        -o Dir::Cache::archives="$PWD/archives"
    apt-get "$@" update >>log 2>&1 || true # another source may fail
    apt-get "$@" download wordnet-base >>log 2>&1 ||
        fail "cannot download Debian's wordnet-base ($(grep '^[EW]:' log | head -n 1)); connect to a mirror and try again"
}
dpkg-deb -x wordnet-base_*.deb unpacked
[ -s unpacked/usr/share/wordnet/data.noun ]
mv unpacked "$root/.wordnet"
