#!/bin/sh
# Makes the README's picture anew, from a real run of `dispatch-reconcile watch` in a terminal.
# `cargo test` fails while the picture shows something else.
set -eu
cd "$(dirname "$0")/.."
SNAPSHOTS=overwrite cargo test --quiet --locked --test promises -- the_picture_in_the_readme
ls -l .github/watch.svg
