#!/bin/sh
# Runs the demo in a real terminal: waits for the question on the screen, types the answer as a
# person does, and waits for the end. The directory holds a clone and a home that tests/run.sh made.
set -eu
fresh=$1
export TMUX_TMPDIR="$fresh"
unset TMUX
screen() {
    tmux -L demo capture-pane -p -J
}
cleanup() {
    tmux -L demo kill-server 2>/dev/null || true
}
trap cleanup EXIT

# await TEXT: waits until the screen shows it, for at most 300 s, as the helpers may be built first.
await() {
    limit=$(($(date +%s) + 300))
    until screen | grep -q "$1"; do
        if [ "$(date +%s)" -ge "$limit" ]; then
            echo "the demo never showed '$1'; its screen:" >&2
            screen >&2
            exit 1
        fi
        sleep 0.1 # between two looks
    done
}

tmux -L demo -f /dev/null new-session -d -x 80 -y 60 -c "$fresh/clone" sh
tmux -L demo send-keys 'clear; sh install.sh --demo; echo "ended with $?"' Enter
await 'Your answer:'
tmux -L demo send-keys 'a person at a terminal' Enter
await 'ended with 0'
screen | grep -q 'Hello, a person at a terminal!'
