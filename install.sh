#!/bin/sh
# Puts the helpers of the dispatch skill in place, and takes them away. Only a person runs this.
#
# The helpers are outside the skill's folder, because an update of the skill replaces that folder.
set -eu

usage() {
    cat <<'EOF'
usage: sh install.sh [--build | --dev] [--allow] [--demo [--answer TEXT]]
                     [--yes] [--dry-run]
       sh install.sh --disallow | --uninstall [--yes] [--dry-run]

Puts the helpers of exactly these sources into
${DISPATCH_HOME:-${XDG_DATA_HOME:-~/.local/share}/dispatch}/<version>: keeps
those that are there and unchanged, else downloads those that were published for
these sources and checks their SHA-256, else builds them with Rust's cargo, on
Linux for musl if rustup has or fetches its library: then they run on any Linux.
Versions that no copy of the skill and no running worker needs are removed.

  --build         build them, whatever is there or could be downloaded
  --dev           for contributors: build them fast, without optimisation
  --allow         then show the permission rules that let Claude Code call the
                  helpers, and add them to your Claude settings if you agree
  --demo          then run one task with a demo worker, from plan to report
  --answer TEXT   answer the demo's question with TEXT if there is no terminal
  --disallow      show the rules that --allow added, and take out exactly those
                  if you agree
  --uninstall     take out the rules and remove the helpers of all versions if
                  you agree; your config, tasks and worktrees stay
  --yes           agree without being asked
  --dry-run       say what would be done, and do nothing
  --help          show this

DISPATCH_DOWNLOADS names another https address to download from.
example: sh install.sh --demo
EOF
}

# fail CODE LINE...: prints the lines to standard error and exits.
fail() {
    code=$1
    shift
    printf '%s\n' "$@" >&2
    exit "$code"
}

say() {
    printf '%s\n' "$@"
}

job=install build=no profile=release allow=no tour=no answer='' yes=no dry=no
while [ $# -gt 0 ]; do
    case $1 in
        --build) build=yes ;;
        --dev) build=yes profile=dev ;;
        --allow) allow=yes ;;
        --demo) tour=yes ;;
        --answer)
            [ $# -gt 1 ] || fail 64 "install.sh: --answer needs a text"
            answer=$2
            shift
            ;;
        --disallow) job=disallow ;;
        --uninstall) job=uninstall ;;
        --yes) yes=yes ;;
        --dry-run) dry=yes ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) fail 64 "install.sh: unknown option '$1'" "  next: sh install.sh --help" ;;
    esac
    shift
done
[ $job = install ] || [ $build$allow$tour = nonono ] ||
    fail 64 "install.sh: --$job goes with no other job" "  next: sh install.sh --help"
if [ $job$allow != installno ] && [ $yes$dry = nono ] && ! [ -t 0 ]; then
    fail 64 "install.sh: this asks for your consent, and there is no terminal to ask in" \
        "  next: add --yes to agree; nothing was changed"
fi

case $0 in
    */*) folder=${0%/*}/ ;;
    *) folder=. ;;
esac
folder=$(CDPATH='' cd -- "$folder" && pwd)
version=
# shellcheck source=/dev/null
. "$folder/helpers/VERSION"
helpers='dispatch-config dispatch-spawn dispatch-monitor dispatch-reconcile dispatch-worker'

home=${DISPATCH_HOME:-${XDG_DATA_HOME:-${HOME:+$HOME/.local/share}}}
[ -n "$home" ] || fail 73 "install.sh: HOME is not set, so there is no place for the helpers" \
    "  next: set HOME or DISPATCH_HOME"
[ -n "${DISPATCH_HOME:-}" ] || home=$home/dispatch
[ ! -d "$home" ] || home=$(CDPATH='' cd -- "$home" && pwd)
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

# --- The helpers ---

in_place() {
    for name in dispatch $helpers; do
        [ -x "$place/$name" ] || return 1
    done
}

# Succeeds if the installed helpers are the optimised ones, byte by byte as installed.
intact() {
    in_place && [ "$(cat "$place/BUILD" 2>/dev/null)" = "$(build_record "$place/dispatch")" ]
}

# Prints the entry of a program in the file BUILD beside it.
build_record() {
    if [ $profile = dev ]; then
        say development
    else
        say "release $(sha256 <"$1")"
    fi
}

# The name of this system in the names of published programs.
system() {
    kernel=$(uname -s) machine=$(uname -m)
    case $kernel in
        Linux) kernel=linux ;;
        Darwin) kernel=macos ;;
    esac
    case $machine in
        amd64) machine=x86_64 ;;
        arm64) machine=aarch64 ;;
    esac
    say "$kernel-$machine"
}

# Finds the program that was published of exactly these sources for this system, and its hash.
published() {
    name=dispatch-$version-$(system) base='' hash=''
    [ -f "$folder/helpers/RELEASE" ] || return 1
    while read -r first second; do
        case "$first $second" in
            from\ *) base=${DISPATCH_DOWNLOADS:-$second} ;;
            *\ "$name") hash=$first ;;
        esac
    done <"$folder/helpers/RELEASE"
    [ -n "$hash" ] && [ -n "$base" ]
}

sha256() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum
    else
        shasum -a 256
    fi | cut -d ' ' -f 1
}

# Downloads the program, and checks its hash before any use.
download() {
    server=${base#*://}
    case ${server%%/*} in
        *@*) fail 64 "install.sh: $base names a user" "  next: set DISPATCH_DOWNLOADS to an address without @" ;;
    esac
    case $base in
        https://*) ;;
        http://127.0.0.1:*) ;; # a server of the tests
        *) fail 64 "install.sh: $base is no https address" "  next: set DISPATCH_DOWNLOADS to one" ;;
    esac
    say "Downloading $base/$name ..."
    if command -v curl >/dev/null 2>&1; then
        curl --fail --silent --show-error --location --proto "=${base%%:*}" --connect-timeout 15 \
            --max-time 600 --output "$stage/dispatch" "$base/$name" || return 1
    else
        wget -q -O "$stage/dispatch" "$base/$name" || return 1
    fi
    found=$(sha256 <"$stage/dispatch")
    [ "$found" = "$hash" ] ||
        fail 1 "install.sh: $base/$name is not what was published; nothing was installed" \
            "  its SHA-256 is $found, not $hash" "  next: sh \"$folder/install.sh\" --build"
    built=$stage
}

# Prints the target of static programs, which run on any Linux of this machine's kind, if Rust has its
# library or rustup can fetch it.
static_target() {
    static=$(rustc -vV 2>/dev/null | sed -n '/-linux-gnu/s/^host: \(.*-linux-\)gnu/\1musl/p')
    [ -n "$static" ] || return 1
    if ! [ -d "$(rustc --print target-libdir --target "$static" 2>/dev/null)" ]; then
        command -v rustup >/dev/null 2>&1 || return 1
        say "Fetching Rust's library for $static (220 MB on disk) with rustup ..." >&2
        rustup --quiet target add "$static" >&2 || return 1
    fi
    say "$static"
}

build_helpers() {
    target=$home/build output=release static=
    [ $profile = release ] || target=$folder/target output=debug
    target=${CARGO_TARGET_DIR:-$target}
    case $target in
        /*) ;;
        *) target=$PWD/$target ;;
    esac
    quiet=--quiet
    [ ! -t 2 ] || quiet=
    say "Building dispatch $version (a minute or two the first time) ..."
    [ $profile = dev ] || ! static=$(cd -- "$folder" && static_target) || output=$static/$output
    # Build in the folder, so that no cargo configuration of the current directory applies.
    (
        cd -- "$folder"
        unset CARGO_BUILD_TARGET
        # shellcheck disable=SC2086 # no word if there is no option
        cargo build --profile $profile --locked $quiet ${static:+--target $static} --target-dir "$target"
    ) || fail 1 "install.sh: the build failed; nothing was installed"
    built=$target/$output
}

# Installs a program and five links to it, whole at every moment: a rename publishes a new version, and
# renames replace each name of an existing version, so that running workers never miss a helper.
put_in_place() {
    mkdir "$stage/new"
    cp -- "$built/dispatch" "$stage/new/dispatch" || fail 1 "install.sh: nothing was installed"
    chmod 755 "$stage/new/dispatch"
    for helper in $helpers; do
        ln -s dispatch "$stage/new/$helper"
    done
    "$stage/new/dispatch-config" --version >/dev/null ||
        fail 1 "install.sh: the helpers do not run from $home; nothing was installed"
    build_record "$stage/new/dispatch" >"$stage/new/BUILD"
    if [ -d "$place" ]; then
        for name in dispatch $helpers BUILD; do
            mv -f -- "$stage/new/$name" "$place/$name"
        done
    else
        mv -- "$stage/new" "$place"
        # Another install of this version may have been faster; replace its files.
        rm -rf -- "$place/new"
    fi
    clean_up
    say "The helpers of dispatch $version are in $place"
}

# Lists this copy of the skill in the file COPIES of the helpers that its launchers call, and nowhere else.
list_copy() {
    for list in "$home"/[0-9]*/COPIES; do
        [ -f "$list" ] || continue
        COPY=$folder awk '$0 != ENVIRON["COPY"]' "$list" >"$list.new"
        mv -f -- "$list.new" "$list"
    done
    printf '%s\n' "$folder" >>"$place/COPIES"
}

# Removes the helpers of other versions, except those of running workers and of other copies of the skill.
remove_old_versions() {
    for earlier in "$home"/[0-9]*; do
        if [ "$earlier" != "$place" ] && [ -x "$earlier/dispatch-config" ] &&
            ! has_copy "$earlier/COPIES" && tasks=$(running "$earlier") && [ -z "$tasks" ]; then
            rm -rf -- "$earlier"
        fi
    done
}

# Succeeds if a copy of the skill in this list still exists, or if there is no list, as while another
# copy installs its helpers.
has_copy() {
    [ -f "$1" ] || return 0
    while IFS= read -r copy; do
        [ ! -f "$copy/helpers/VERSION" ] || return 0
    done <"$1"
    return 1
}

# Installs the helpers of the current sources, and only then points the launchers there.
install_helpers() {
    sources=$(sh "$folder/helpers/version.sh")
    eval "$sources"
    place=$home/$version
    put_helpers
    if [ $dry = no ] && [ "$sources" != "$(cat "$folder/helpers/VERSION")" ]; then
        printf '%s\n' "$sources" >"$folder/helpers/VERSION.new"
        mv -f -- "$folder/helpers/VERSION.new" "$folder/helpers/VERSION"
        say "The sources have changed, so helpers/VERSION now names these helpers"
    fi
    if [ $dry = no ]; then
        list_copy
        remove_old_versions
    fi
}

put_helpers() {
    if [ $build = no ] && intact; then
        say "The helpers of dispatch $version are in $place already"
        return
    fi
    if [ $build = no ] && in_place; then
        say "The helpers in $place are a development build, or damaged: replacing them"
    fi
    if [ $dry = no ]; then
        stage=$({ mkdir -p -- "$home" && mktemp -d "$home/.install.XXXXXX"; } 2>/dev/null) ||
            fail 73 "install.sh: cannot write to $home" "  next: set DISPATCH_HOME to a folder of yours"
    fi
    why="dispatch $version is to be built"
    if [ $build = no ] && published; then
        if [ $dry = yes ]; then
            say "Would download $base/$name" "  check that its SHA-256 is $hash" \
                "  and put the helpers into $place"
            return
        elif download; then
            put_in_place
            return
        fi
        why="$base/$name could not be downloaded"
        say "install.sh: $why" >&2
    elif [ $build = no ]; then
        why="there is no download of dispatch $version for $(system)"
    fi
    command -v cargo >/dev/null 2>&1 || fail 69 "install.sh: $why, and there is no cargo on the PATH" \
        "  next: install Rust (your system's package 'cargo' or 'rustup'), then: sh \"$folder/install.sh\""
    if [ $dry = yes ]; then
        say "Would build dispatch $version with cargo" "  and put the helpers into $place"
    else
        build_helpers
        put_in_place
    fi
}

# --- Permission rules ---

allow_helpers() {
    say ""
    if [ $dry = yes ] && ! in_place; then
        say "Would then show the permission rules, and add them to your Claude settings if you agree"
    else
        rules
    fi
}

rules() {
    [ "$yes" = no ] || set -- "$@" --yes
    [ "$dry" = no ] || set -- "$@" --dry-run
    sh "$folder/bin/dispatch-config" allow "$@"
}

# --- The end ---

# Lists what --uninstall removes, one per line: only files of this script and the helpers.
ours() {
    for entry in "$home"/[0-9]*; do
        [ ! -x "$entry/dispatch-config" ] || say "$entry"
    done
    [ ! -e "$home/build/CACHEDIR.TAG" ] || say "$home/build"
    [ ! -e "$home/demo/.dispatch-demo" ] || say "$home/demo"
    for entry in "$home"/.install.?????? "$own/models.json" "$own/queue"; do
        [ ! -e "$entry" ] || say "$entry"
    done
}

# The tasks of the supervisors that run helpers below a directory. Their command lines begin with its
# real path.
running() {
    [ -d "$1" ] || return 0
    processes=$(ps -A -ww -o args= 2>/dev/null || ps -o args 2>/dev/null) ||
        fail 69 "install.sh: without ps it is not seen whether workers run; nothing was removed"
    say "$processes" | HELPERS="$(cd -P -- "$1" && pwd -P)/" awk '
        index($0, ENVIRON["HELPERS"]) == 1 && sub(/^.*[/]dispatch-spawn --supervise /, "")' |
        while read -r state; do
            printf '  %s\n' "$(sed -n 's/^task_directory: //p' "$state/record.yaml")"
        done
}

uninstall() {
    own=${HOME:-}/.dispatch
    tasks=$(running "$home")
    [ -z "$tasks" ] || fail 75 "install.sh: workers still run and need the helpers; nothing was removed" \
        "$tasks" "  next: wait, or end each in its project: dispatch-reconcile stop TASK"
    if [ -e "$own/allowed.json" ]; then
        in_place || fail 69 "install.sh: the permission rules cannot be taken out without helpers" \
            "  next: sh \"$folder/install.sh\", then this again; nothing was removed"
        shown=$(dry=yes rules --remove)
        say "$shown" | sed '/^Nothing was changed\.$/d'
    fi
    all=$(ours)
    if [ -z "$all" ] && [ ! -e "$own/allowed.json" ]; then
        say "There is nothing to remove."
        return
    fi
    say "These will be removed:" "$all" | sed '2,$s/^/  /'
    if [ $yes$dry = nono ]; then
        printf 'Go on? [y/N] '
        read -r reply || say ""
        case $reply in
            y | Y | yes) yes=yes ;;
            *) dry=yes ;;
        esac
    fi
    if [ $dry = yes ]; then
        say "Nothing was removed."
        return
    fi
    [ ! -e "$own/allowed.json" ] || rules --remove >/dev/null
    say "$all" | while read -r entry; do
        [ -z "$entry" ] || rm -rf -- "$entry"
    done
    rmdir -- "$home" "$own" 2>/dev/null || true
    say "Removed. This stays:"
    for entry in "$folder" "$own"/* "$home"; do
        [ ! -e "$entry" ] || say "  $entry"
    done
    say "  .dispatch in each project that had tasks"
}

case $job in
    disallow) rules --remove ;;
    uninstall) uninstall ;;
    install)
        install_helpers
        [ $allow = no ] || allow_helpers
        if [ $tour$dry = yesyes ]; then
            say "Would then run the demo in $home/demo"
        elif [ $tour = yes ]; then
            sh "$folder/helpers/demo.sh" "$folder" "$home" "$answer"
        fi
        ;;
esac
