#!/bin/sh
# WordNet 3.0's nouns into .wordnet, without root: Debian's package wordnet-base, by apt-get and dpkg-deb.
set -eu
cd "$(dirname "$0")/.."
[ ! -f .wordnet/usr/share/wordnet/data.noun ] || exit 0
rm -rf .wordnet .wordnet.new
mkdir -p .wordnet.new/lists/partial .wordnet.new/archives/partial
cd .wordnet.new
set -- -q -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30
apt-get "$@" download wordnet-base || {
    # the system has no lists of packages, or old ones: fetch lists of our own
    set -- "$@" -o Dir::State="$PWD" -o Dir::State::lists="$PWD/lists" -o Dir::Cache="$PWD" \
        -o Dir::Cache::archives="$PWD/archives"
    apt-get "$@" update || true # another source may fail
    apt-get "$@" download wordnet-base
}
dpkg-deb -x wordnet-base_*.deb unpacked
[ -s unpacked/usr/share/wordnet/data.noun ]
cd ..
mv .wordnet.new/unpacked .wordnet
rm -rf .wordnet.new
