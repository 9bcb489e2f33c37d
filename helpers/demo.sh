#!/bin/sh
# The demo of `install.sh --demo`: the main job with a scripted worker, in a folder of its own.
# Arguments: the skill's folder, the home of the helpers, and the answer if no person is present.
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

# Prints text as a block: indented and no wider than a terminal, except for long words such as paths.
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
    # The demo's task belongs to no host or worker around this script.
    unset DISPATCH_TASK_DIR CLAUDECODE CLAUDE_PID CLAUDE_CODE_SESSION_ID
    # Remove only files of an earlier demo.
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
    # The empty .git makes this folder the project, even if the home directory is a repository.
    mkdir -- "$demo"
    : >"$demo/.dispatch-demo"
    mkdir -p -- "$project/.git"
    : >"$project/.git/HEAD"

    # Quote the path for the shell, inside a double-quoted YAML string.
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

# Prints newly ticked items of the plan, and counts the ticked ones.
show_ticks() {
    ticks=$(sed -n 's/^- \[x\] //p' "$directory/plan.md")
    [ -n "$ticks" ] || return 0
    say "$ticks" | tail -n "+$((shown + 1))" | sed 's/^/    [x] /'
    shown=$(say "$ticks" | wc -l)
}

# Prints the oldest question without an answer.
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
    # The person's thinking time does not count as the worker's.
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
            sleep 1 # no news and no wait, so pause before the next call
        fi
        last=$news
        # The monitor prints a question first; otherwise the next round finds it.
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
