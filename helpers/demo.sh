#!/bin/sh
# The demo of `install.sh --demo`: the main job with a scripted worker, in a folder of its own.
# It is given the skill's folder, the home of the helpers, and the answer for a person who is not there.
set -eu
folder=$1 home=$2 answer=$3
version=
# shellcheck source=/dev/null
. "$folder/helpers/VERSION"

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
    quoted=$(say "$home/$version/dispatch-worker" | sed "s/'/'\\\\''/g; s/[\\\\\"]/\\\\&/g")
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
