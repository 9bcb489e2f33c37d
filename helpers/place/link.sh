#!/bin/sh
# Read by `sh -s` at a place, after its variables (link.rs). Says what it finds after a sentinel, takes the
# program if it is missing, and becomes the far end of the connection.
# shellcheck disable=SC2154
say() { printf '\n%s %s\n' "$mark" "$*"; }
stop() { say fail "$*"; exit 0; }
umask 077
cd "${HOME:?}" 2>/dev/null || stop 'HOME is not set, or is no directory'
# A shell without its rc files misses the directories in which worker CLIs are installed.
for d in ~/.local/bin ~/bin ~/.cargo/bin ~/.bun/bin ~/.npm-global/bin ~/.volta/bin \
    ~/.nvm/versions/node/*/bin /usr/local/bin /opt/homebrew/bin /snap/bin; do
    case :$PATH: in *":$d:"*) ;; *) [ ! -d "$d" ] || PATH=$PATH:$d ;; esac
done
export PATH
if [ "$runs" != serve ]; then
    cd "$places/$key.git" || stop "$places/$key.git is missing"
    say ready
    git "${runs#git-}" .
    # Tells the end of the call from that of the connection.
    printf '\n%s done\n' "$mark" >&2
    exit
fi
works() { [ -s "$1/dispatch" ] && [ "$("$1/dispatch-spawn" --sources 2>/dev/null)" = "$version" ]; }
share=${DISPATCH_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/dispatch}
dir=$HOME/.dispatch/helpers/$version
works "$dir" || dir=$share/$version
if ! works "$dir"; then
    say absent "$(uname -s) $(uname -m)"
    read -r size hash || exit 0
    new=$dir.new.$$
    trap 'rm -rf "$new"' EXIT
    trap 'exit 0' HUP INT PIPE TERM
    # A machine that went down meanwhile left such a directory.
    for old in "$share"/*.new.*; do
        [ -z "$(find "$old" -prune -mmin +60 2>/dev/null)" ] || rm -rf "$old"
    done
    made=$(mkdir -p "$new" 2>&1) || stop "$made ## end the place's 'reach' with: env DISPATCH_HOME=DIR, a directory there that can be written"
    head -c "$size" >"$new/dispatch" 2>/dev/null
    got=$(wc -c <"$new/dispatch" | tr -d ' ')
    [ "$got" = "$size" ] || stop "only $got of $size bytes fit into $share: $(df -k "$share" | tail -n 1) ## free some space there, and call again"
    for sum in sha256sum 'shasum -a 256' 'openssl dgst -r -sha256'; do
        command -v "${sum%% *}" >/dev/null 2>&1 && break
    done
    sum=$($sum <"$new/dispatch" | cut -c1-64)
    [ "$sum" = "$hash" ] || stop "the program arrived damaged (SHA-256 $sum) ## call again"
    chmod 700 "$new/dispatch"
    for name in $helpers; do ln -s dispatch "$new/$name"; done
    if ! works "$new"; then
        said=$("$new/dispatch-spawn" --sources 2>&1)
        [ $? != 126 ] || stop "programs may not run in $share, which may be mounted noexec ## end the place's 'reach' with: env DISPATCH_HOME=DIR, a directory there where they may"
        stop "the program of $(uname -s) $(uname -m) does not run there: $said"
    fi
    rm -rf "$dir" && mv "$new" "$dir"
    works "$dir" || stop "cannot put the helpers into $dir"
    trap - EXIT HUP INT PIPE TERM
fi
say ready
exec "$dir/dispatch-spawn" --serve "$places"
