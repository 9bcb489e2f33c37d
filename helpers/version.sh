#!/bin/sh
# Prints the text of helpers/VERSION for the current sources. A shell that reads that file
# gets `version`: Cargo.toml's version and the XOR of one hash for each source file. Launchers find
# helpers of exactly their own sources by it. Use: sh helpers/version.sh >helpers/VERSION
#
# The XOR does not depend on the order of the lines, and blank lines keep changes of neighbours
# apart, so git merges two branches without a conflict and the merged sources have the right version.
# Of the forms that need no process, a single arithmetic expression is the fastest to read.
set -eu
case $0 in
    */*) cd -- "${0%/*}/.." ;;
    *) cd .. ;;
esac
if command -v sha256sum >/dev/null 2>&1; then
    sha=sha256sum
elif command -v shasum >/dev/null 2>&1; then
    sha='shasum -a 256'
else
    echo 'helpers/version.sh: there is neither sha256sum nor shasum' >&2
    exit 69
fi
cat <<EOT
# Made by helpers/version.sh: one hash for each source file, in the order of their paths.
version=$(sed -n '/^version = "/{s///;s/".*//;p;q;}' Cargo.toml)-\$((0

EOT
find Cargo.toml Cargo.lock install.sh bin helpers -type f \
    \( -name 'Cargo.*' -o -name '*.rs' -o -name '*.sh' -o -path 'helpers/worker/*.txt' -o \
    -path 'bin/dispatch-*' \) |
    LC_ALL=C sort | while read -r file; do
    # The hash includes the path, so that exchanged files change the version.
    hash=$({ printf '%s\n' "$file" && cat "$file"; } | $sha)
    printf '^0x%.12s\n\n' "$hash"
done
echo '))'
