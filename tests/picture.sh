#!/bin/sh
# Renews the README's picture from a real run of `dispatch-reconcile watch` in a terminal.
# `cargo test` fails if the picture differs from the screen.
set -eu
cd "$(dirname "$0")/.."
SNAPSHOTS=overwrite cargo test --quiet --locked --test promises -- readme_picture
ls -l .github/watch.svg
