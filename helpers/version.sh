#!/bin/sh
# Prints which version these sources are: the one of Cargo.toml and a hash of all that the helpers
# are built from. The file VERSION beside this one holds it, so that a launcher finds helpers of
# exactly its own sources without reading them. After a change: sh helpers/version.sh >helpers/VERSION
set -eu
case $0 in
    */*) cd -- "${0%/*}/.." ;;
    *) cd .. ;;
esac
version=$(sed -n '/^version = "/{s///;s/".*//;p;q;}' Cargo.toml)
if command -v sha256sum >/dev/null 2>&1; then
    sha=sha256sum
elif command -v shasum >/dev/null 2>&1; then
    sha='shasum -a 256'
else
    echo 'helpers/version.sh: there is neither sha256sum nor shasum' >&2
    exit 69
fi
hash=$(
    find Cargo.toml Cargo.lock helpers -type f \( -name '*.rs' -o -name 'Cargo.*' \) |
        LC_ALL=C sort | while read -r file; do
        printf '%s\n' "$file"
        cat "$file"
    done | $sha | cut -c 1-8
)
printf '%s\n' "$version-$hash"
