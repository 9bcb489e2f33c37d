#!/bin/sh
# Builds and tests the program to publish for this system, with its SHA-256 beside it:
# sh tests/release.sh [DIRECTORY]. The workflow calls this on each system. Needs python3 too.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
export CARGO_TERM_COLOR=never
target=${CARGO_TARGET_DIR:-$root/target}
out=${1:-$target/publish}
mkdir -p "$out"
out=$(cd "$out" && pwd)
server=
work=$(mktemp -d)
clean_up() {
    [ -z "$server" ] || kill "$server"
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

fail() {
    printf 'tests/release.sh: %s\n' "$1" >&2
    exit 1
}

sh helpers/version.sh | cmp -s - helpers/VERSION || fail 'helpers/VERSION is of other sources'
version=
# shellcheck source=/dev/null
. helpers/VERSION
triple=$(rustc -vV | sed -n 's/^host: //p')
case $triple in
    *-apple-darwin) system=macos ;;
    *-linux-gnu)
        # The program is static.
        system=linux triple=${triple%gnu}musl
        rustup --quiet target add "$triple"
        ;;
    *) fail "$triple is not released" ;;
esac
name=dispatch-$version-$system-${triple%%-*}

# Leave out this machine's paths; on macOS build for old systems too.
RUSTFLAGS="--remap-path-prefix=$root=dispatch --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
export RUSTFLAGS MACOSX_DEPLOYMENT_TARGET=11.0
cargo build --quiet --release --locked --target "$triple" --target-dir "$target"
program=$target/$triple/release/dispatch
if [ $system = linux ] && ! ldd "$program" 2>&1 | grep -q 'statically linked\|not a dynamic'; then
    fail "$program is not static"
fi
if grep -q DISPATCH_CRASH_AT "$program"; then
    fail 'the program reads the crash points of the tests'
fi
# An error that read the stack would abort a static program, which has no tables for unwinding.
ln -s "$program" "$work/dispatch-config"
code=0
HOME=$work RUST_BACKTRACE=1 "$work/dispatch-config" places none 2>/dev/null || code=$?
[ "$code" -lt 128 ] || fail "an error ends the program with code $code"

# Test a second build with the crash points. The promises need /proc.
if [ $system = linux ]; then
    cargo test --quiet --locked --target "$triple" --target-dir "$target"
else
    cargo test --quiet --locked --lib --target "$triple" --target-dir "$target"
fi

cp "$program" "$out/$name"
(
    cd "$out"
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum "$name"
    else
        shasum -a 256 "$name"
    fi >"$name.sha256"
)

# Use the program as a person does: a fresh clone downloads it and does a task from plan to report.
git clone --quiet "$root" "$work/clone"
{ echo 'from nowhere' && cat "$out/$name.sha256"; } >"$work/clone/helpers/RELEASE"
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$out" >"$work/server" 2>&1 &
server=$!
until port=$(sed -n 's/^Serving .* port \([0-9]*\) .*/\1/p' "$work/server") && [ -n "$port" ]; do
    kill -0 "$server" || fail 'the server did not start'
    sleep 0.1 # until it says its port
done
mkdir "$work/home"
env -i HOME="$work/home" PATH=/usr/bin:/bin:/usr/sbin:/sbin LANG=C DISPATCH_DOWNLOADS="http://127.0.0.1:$port" \
    sh "$work/clone/install.sh" --demo --answer 'the release' </dev/null >"$work/demo.txt"
grep -q "^Downloading .*/$name " "$work/demo.txt" || fail 'the demo did not download it'
grep -q 'Hello, the release!' "$work/demo.txt" || fail 'the demo did not end well'

printf '%s bytes: %s\n' "$(wc -c <"$program")" "$(cat "$out/$name.sha256")"
