#!/bin/sh
# Builds the helpers of the dispatch skill and puts them in place. Only a person runs this.
#
# The binaries live outside the skill's folder, because an update of the skill wipes that folder.
set -eu

usage() {
    cat <<'EOF'
usage: sh install.sh [--build] [--allow [--yes]] [--demo [--answer TEXT]]

Builds the helpers from this folder's sources (needs Rust's cargo) and puts
them into ${DISPATCH_HOME:-${XDG_DATA_HOME:-~/.local/share}/dispatch}/<version>.

  --build         build or fail: without cargo, do not make do with helpers of
                  this version that are in place already
  --allow         then show the permission rules that let Claude Code call the
                  helpers, and add them to your Claude settings if you agree
  --yes           agree to --allow without being asked
  --demo          then run one task with a demo worker, from plan to report
  --answer TEXT   answer the demo's question with TEXT if there is no terminal
  --help          show this

example: sh install.sh --demo
EOF
}

# fail CODE LINE...: the lines on standard error, and the end.
fail() {
    code=$1
    shift
    printf '%s\n' "$@" >&2
    exit "$code"
}

say() {
    printf '%s\n' "$@"
}

# Text as a block: indented and no wider than a terminal, but for a long word, which may be a path.
block() {
    awk '{
        while (length($0) > 74) {
            space = match(substr($0, 1, 75), / [^ ]*$/) ? RSTART : index($0, " ")
            if (space < 2) break
            print "    " substr($0, 1, space - 1)
            $0 = substr($0, space + 1)
        }
        print ($0 == "" ? "" : "    " $0)
    }'
}

build=no allow=no yes=no tour=no answer=
while [ $# -gt 0 ]; do
    case $1 in
        --build) build=yes ;;
        --allow) allow=yes ;;
        --yes) yes=yes ;;
        --demo) tour=yes ;;
        --answer)
            [ $# -gt 1 ] || fail 64 "install.sh: --answer needs a text"
            answer=$2
            shift
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) fail 64 "install.sh: unknown option '$1'" "  next: sh install.sh --help" ;;
    esac
    shift
done
if [ $allow = yes ] && [ $yes = no ] && ! [ -t 0 ]; then
    fail 64 "install.sh: --allow asks for your consent, and there is no terminal to ask in" \
        "  next: add --yes to agree; nothing was changed"
fi

case $0 in
    */*) folder=${0%/*}/ ;;
    *) folder=. ;;
esac
folder=$(CDPATH='' cd -- "$folder" && pwd)
version=$(cat "$folder/helpers/VERSION")

home=${DISPATCH_HOME:-${XDG_DATA_HOME:-${HOME:+$HOME/.local/share}}}
[ -n "$home" ] || fail 73 "install.sh: HOME is not set, so there is no place for the helpers" \
    "  next: set HOME or DISPATCH_HOME"
[ -n "${DISPATCH_HOME:-}" ] || home=$home/dispatch
if ! { mkdir -p -- "$home" && [ -w "$home" ]; } 2>/dev/null; then
    fail 73 "install.sh: cannot write to $home" "  next: set DISPATCH_HOME to a folder of yours"
fi
home=$(CDPATH='' cd -- "$home" && pwd)
place=$home/$version
export DISPATCH_HOME="$home"

stage=
clean_up() {
    [ -z "$stage" ] || rm -rf -- "$stage"
    stage=
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

helpers='dispatch-config dispatch-spawn dispatch-monitor dispatch-reconcile dispatch-worker'

in_place() {
    [ -x "$place/dispatch" ]
}

build_helpers() {
    target=${CARGO_TARGET_DIR:-$home/build}
    case $target in
        /*) ;;
        *) target=$PWD/$target ;;
    esac
    quiet=--quiet
    [ ! -t 2 ] || quiet=
    say "Building dispatch $version (a minute or two the first time) ..."
    # From the folder, so that no cargo configuration of the current directory takes part.
    (
        cd -- "$folder"
        unset CARGO_BUILD_TARGET
        # shellcheck disable=SC2086 # no word when there is nothing to say
        cargo build --release --locked $quiet --target-dir "$target"
    ) || fail 1 "install.sh: the build failed; nothing was installed"
    built=$target/release
}

# One program and five links to it. It is whole at every moment: a new version appears by one rename,
# and in a version that is there the program is replaced by one, so that running workers never miss it.
put_in_place() {
    stage=$(mktemp -d "$home/.install.XXXXXX")
    mkdir "$stage/new"
    cp -- "$built/dispatch" "$stage/new/dispatch" ||
        fail 1 "install.sh: the build left no $built/dispatch; nothing was installed"
    chmod 755 "$stage/new/dispatch"
    for helper in $helpers; do
        ln -s dispatch "$stage/new/$helper"
    done
    if [ -d "$place" ]; then
        for name in dispatch $helpers; do
            mv -f -- "$stage/new/$name" "$place/$name"
        done
    else
        mv -- "$stage/new" "$place"
        # Into it, where another install of this version was faster.
        rm -rf -- "$place/new"
    fi
    clean_up
}

if command -v cargo >/dev/null 2>&1; then
    build_helpers
    put_in_place
elif [ $build = no ] && in_place; then
    say "There is no cargo here; keeping the helpers that are in place."
else
    fail 69 "install.sh: building the helpers needs Rust, and there is no cargo on the PATH" \
        "  next: install Rust (your system's package 'cargo' or 'rustup'), then run this again"
fi
say "The helpers of dispatch $version are in $place"

# Claude Code keeps the path of a symlinked skill, and its rules compare paths as they are typed.
allow_helpers() {
    set -- --bin "$folder/bin"
    linked=${CLAUDE_CONFIG_DIR:-${HOME:-}/.claude}/skills/dispatch
    if [ "$linked" != "$folder" ] && [ -d "$linked" ] &&
        [ "$(cd -P -- "$linked" && pwd -P)" = "$(cd -P -- "$folder" && pwd -P)" ]; then
        set -- "$@" --bin "$linked/bin"
    fi
    [ $yes = no ] || set -- "$@" --yes
    say ""
    sh "$folder/bin/dispatch-config" allow "$@"
}

[ $allow = no ] || allow_helpers
[ $tour = yes ] || exit 0

# --- The demo: the main job with a scripted worker, in a folder of its own ---

task=hello-tour
demo=$home/demo
project=$demo/project
directory=$project/.dispatch/tasks/$task

helper() {
    name=$1
    shift
    sh "$folder/bin/dispatch-$name" "$@"
}

stop_worker() {
    helper reconcile stop $task >/dev/null 2>&1 || true
}

demo_failed() {
    stop_worker
    fail 1 "install.sh: the demo did not end well: $1" "  see $directory"
}

fresh_demo() {
    export DISPATCH_CONFIG="$demo/config.yaml"
    # It is not the task of a host or a worker that this may be running in.
    unset DISPATCH_TASK_DIR CLAUDECODE CLAUDE_PID CLAUDE_CODE_SESSION_ID
    # Only what an earlier demo made is wiped.
    if [ -L "$demo" ] || { [ -e "$demo" ] && ! [ -f "$demo/.dispatch-demo" ]; }; then
        fail 73 "install.sh: $demo is not from an earlier demo, so it stays" \
            "  next: move it away and run this again"
    fi
    if [ -d "$directory" ]; then
        cd -- "$project"
        stop_worker
        cd -- "$home"
    fi
    rm -rf -- "$demo"
    # The bare .git says that the project begins here, should the home directory be a repository.
    mkdir -- "$demo"
    : >"$demo/.dispatch-demo"
    mkdir -p -- "$project/.git"
    : >"$project/.git/HEAD"

    # The path as a word of the shell, in a double-quoted string of YAML.
    quoted=$(say "$place/dispatch-worker" | sed "s/'/'\\\\''/g; s/[\\\\\"]/\\\\&/g")
    cat >"$demo/config.yaml" <<EOF
default: demo
backends:
  demo:
    command: "'$quoted' demo"
models:
  demo: { backend: demo }
EOF
    cd -- "$project"
}

# The plan's ticked items that were not shown yet, and how many are ticked now.
show_ticks() {
    ticks=$(sed -n 's/^- \[x\] //p' "$directory/plan.md")
    [ -n "$ticks" ] || return 0
    say "$ticks" | tail -n "+$((shown + 1))" | sed 's/^/    [x] /'
    shown=$(say "$ticks" | wc -l)
}

# The oldest question without an answer, or nothing.
open_question() {
    for question in "$directory"/ipc/*.question; do
        if [ -f "$question" ] && [ ! -e "${question%.question}.answer" ]; then
            say "$question"
            return
        fi
    done
}

answer_question() {
    say "" "    The worker asks:"
    block <"$1"
    text=$answer
    if [ -t 0 ]; then
        printf '    Your answer: '
        read -r text || say ""
    fi
    if [ -z "$text" ]; then
        text='Your choice; keep it short.'
        say "    No answer given, so the demo gives its own: $text"
    elif ! [ -t 0 ]; then
        say "    Your answer, from --answer: $text"
    fi
    say ""
    helper monitor --answer "$task" - >/dev/null <<EOF || demo_failed "the answer was not taken"
$text
EOF
    # The time that a person thinks is not the worker's.
    deadline=$(($(date +%s) + 60))
}

follow() {
    deadline=$(($(date +%s) + 60))
    shown=0
    last='' asked=''
    while :; do
        ended=no
        [ ! -e "$directory/ipc/.done" ] || ended=yes
        code=0
        news=$(helper monitor "$task" --timeout 1s) || code=$?
        [ $code = 0 ] || [ $code = 3 ] || demo_failed "dispatch-monitor ended with $code"
        show_ticks
        if [ "$news" != "$last" ] && [ -n "$news" ]; then
            say "$news" | block
        elif [ $code = 0 ]; then
            sleep 1 # it said nothing new and did not wait, so do not ask again at once
        fi
        last=$news
        # The monitor speaks of a question first; if it does not, the next round asks all the same.
        question=$(open_question)
        if [ -n "$question" ] && { [ $code = 0 ] || [ "$question" = "$asked" ]; }; then
            answer_question "$question"
        fi
        asked=$question
        if [ -e "$directory/ipc/.done" ]; then
            case $ended$news in
                yes* | *done*) return ;;
            esac
        fi
        [ "$(date +%s)" -lt $deadline ] || demo_failed "60 seconds are over"
    done
}

run_demo() {
    say "" "The demo: one task, one background worker, one question. No account needed."
    fresh_demo
    trap 'stop_worker; say "" "Stopped."; exit 130' INT
    trap 'stop_worker; exit 143' TERM HUP

    plan=$(
        cat <<'EOF'
# Hello tour

- [ ] Read the plan and its context
- [ ] Ask how to greet
- [ ] Write the greeting
- [ ] Write a summary of the tour to .dispatch/tasks/hello-tour/output.md

## Context

This is the demo. Work only in this folder; ask once, use the answer, and
finish with a summary of one line.
EOF
    )
    say "" "1. You ask for something, and the session writes a plan:"
    say "$plan" | block
    say "" "2. A worker in the background takes it, and the session is free again:"
    started=$(say "$plan" | helper spawn $task --plan -) ||
        demo_failed "dispatch-spawn ended with $?"
    say "$started" | block
    say "" "3. News comes by itself, a line each; a question waits for your answer:"
    follow
    [ -f "$directory/output.md" ] || demo_failed "there is no report"
    say "" "4. Done. The worker's report, .dispatch/tasks/$task/output.md:"
    block <"$directory/output.md"
    say "" "Everything of the demo is in" "    $demo"
}

run_demo
