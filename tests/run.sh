#!/bin/sh
# Runs all tests, as CI does. Installs its tools; needs git, a C compiler, Rust and
# Node. In CI (CI=true) nothing is skipped; elsewhere a skip says what and why.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
export CARGO_TERM_COLOR=never
target=${CARGO_TARGET_DIR:-$root/target}
started=$(date +%s)

step() {
    printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - started))"
}

# tool NAME [PACKAGE]: succeeds if the tool exists; installs Debian's package if possible.
tool() {
    command -v "$1" >/dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get update -qq && apt-get install -y -qq "${2:-$1}"; } >/dev/null 2>&1 || true
    fi
    command -v "$1" >/dev/null 2>&1 && return
    if [ "${CI:-}" = true ]; then
        echo "tests/run.sh: $1 is missing and cannot be installed" >&2
        exit 1
    fi
    echo "SKIPPED: $1 is not installed (your system's package '${2:-$1}')"
    return 1
}

step 'form: rustfmt, clippy, shellcheck'
cargo fmt --check
cargo clippy --quiet --locked --all-targets --features host-tests -- -D warnings
if tool shellcheck; then
    shellcheck bin/* install.sh helpers/*.sh tests/*.sh tests/*/*.sh
fi
if ! sh helpers/version.sh | cmp -s - helpers/VERSION; then
    echo 'tests/run.sh: helpers/VERSION is of other sources; run: sh helpers/version.sh >helpers/VERSION' >&2
    exit 1
fi

step 'type check for macOS and musl'
sh tests/macos.sh "$target"

step 'the helpers'
tool git-lfs || true # without Git LFS, its test tests nothing
tool tmux || true # without tmux, its tests say that they are skipped
tool bwrap bubblewrap || true # so do those of the sandbox
tool sshd openssh-server || true # and those of a place behind ssh
tool ip iproute2 || true # and that of a network that goes down
tool sbatch slurm-wlm || true # and those of places that are queues; it brings munge
# Most tests wait for processes and files, so two for each core keep it busy.
RUST_TEST_THREADS=$(($(getconf _NPROCESSORS_ONLN) * 2)) cargo test --quiet --locked
PLACE_TASKS=40 cargo test --quiet --locked --test promises places::many_tasks

step 'install and demo: a fresh clone, a fresh home, the first command of the README'
fresh=$target/fresh
rm -rf "$fresh"
mkdir -p "$fresh/home"
git clone --quiet "$root" "$fresh/clone"
# Use the machine's toolchain and a fresh home for everything else.
demo() {
    env -i HOME="$fresh/home" PATH="$PATH" TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" \
        CARGO_TARGET_DIR="$target" "$@"
}
demo sh "$fresh/clone/install.sh" --demo --answer 'the fresh clone' </dev/null >"$fresh/demo.txt"
grep -q 'Hello, the fresh clone!' "$fresh/demo.txt"
program=$(echo "$fresh"/home/.local/share/dispatch/*/dispatch)
if grep -q DISPATCH_CRASH_AT "$program"; then
    echo 'tests/run.sh: the release program reads the crash points of the tests' >&2
    exit 1
fi
# List the calls of the system library, of a build that still has their names: SECURITY.md says that the
# program opens no connection, as a lookup in the user database may.
calls=$(nm -u "$target/debug/dispatch" | sed 's/@.*//; s/.* _*//' |
    grep -x -E 'write|socket|connect|getaddrinfo|getpwuid_r')
if [ "$calls" != write ]; then
    echo "tests/run.sh: the program can open connections: $calls" >&2
    exit 1
fi
bytes=$(wc -c <"$program")
if [ "$bytes" -gt 3000000 ]; then
    echo "tests/run.sh: the release program has $bytes bytes, more than 3 MB" >&2
    exit 1
fi

# The same in a real terminal: the answer is typed as a person does. The helpers may be built first, so
# a text on the screen has 300 s.
terminal() {
    env -u TMUX TMUX_TMPDIR="$fresh" tmux -L demo "$@"
}
await() {
    limit=$(($(date +%s) + 300))
    until terminal capture-pane -p -J | grep -q "$1"; do
        if [ "$(date +%s)" -ge "$limit" ]; then
            echo "tests/run.sh: the demo never showed '$1'; its screen:" >&2
            terminal capture-pane -p -J >&2
            exit 1
        fi
        sleep 0.1 # between two looks
    done
}
if tool tmux; then
    trap 'terminal kill-server 2>/dev/null || true' EXIT
    demo env TMUX_TMPDIR="$fresh" tmux -L demo -f /dev/null new-session -d -x 80 -y 60 -c "$fresh/clone" sh
    terminal send-keys 'clear; sh install.sh --demo; echo "ended with $?"' Enter
    await 'Your answer:'
    terminal send-keys 'a person at a terminal' Enter
    await 'ended with 0'
    await 'Hello, a person at a terminal!'
    terminal kill-server
    trap - EXIT
fi

step 'review: spelling, skills-ref, the skill scanner, skill-tools, cargo-deny'
sh tests/review/run.sh "$target"

step 'real hosts and workers against a scripted model'
if command -v npm >/dev/null 2>&1; then
    # Claude Code's sandbox needs these.
    if tool bwrap bubblewrap && tool socat; then
        sh tests/host/fetch.sh "$target/hosts"
        DISPATCH_HOSTS="$target/hosts" cargo test --quiet --locked --features host-tests --test host
    fi
elif [ "${CI:-}" = true ]; then
    echo 'tests/run.sh: npm is missing, so the real CLIs cannot be fetched' >&2
    exit 1
else
    echo 'SKIPPED: npm is not installed, so the real CLIs cannot be fetched'
fi

step 'all passed'
