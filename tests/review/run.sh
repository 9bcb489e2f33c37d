#!/bin/sh
# Runs the spelling check, the tools that people use to judge a skill before they install it, and the
# check of the dependencies; each tool is pinned: sh tests/review/run.sh TARGET. The tools go into
# TARGET/review. In CI a tool that
# cannot be installed fails this; elsewhere it is a skip.
set -eu
cd "$(dirname "$0")/../.."
if [ $# -ne 1 ]; then
    echo 'usage: sh tests/review/run.sh TARGET' >&2
    exit 64
fi
mkdir -p "$1/review"
target=$(cd "$1" && pwd)
dir=$target/review

fail() {
    printf 'tests/review/run.sh: %s\n' "$@" >&2
    exit 1
}

skip() {
    [ "${CI:-}" != true ] || fail "$1: $2"
    echo "SKIPPED: $1: $2"
}

# Copy the committed files of the skill, as its installers do, into a folder of its name.
copy_skill() {
    skill=$dir/dispatch
    rm -rf "$skill"
    git clone --quiet "$PWD" "$skill"
    rm -rf "$skill/.git"
}

install_python() {
    pins=tests/review/requirements.txt
    cmp -s "$pins" "$dir/python/pins" && return
    rm -rf "$dir/python"
    # Debian has a separate package for venv.
    if ! python3 -m venv "$dir/python" >"$dir/log" 2>&1 && [ "$(id -u)" = 0 ]; then
        { apt-get update -qq && apt-get install -y -qq python3-venv; } >"$dir/log" 2>&1 &&
            python3 -m venv "$dir/python" >"$dir/log" 2>&1
    fi
    # Leave out the dependencies for asking models.
    "$dir/python/bin/pip" install --quiet --no-deps --no-compile --disable-pip-version-check \
        --root-user-action ignore -r "$pins" >"$dir/log" 2>&1 &&
        cp "$pins" "$dir/python/pins"
}

# Run the open specification's validator, which does not know three keys of Claude Code.
skills_ref() {
    keys='  - Unexpected fields in frontmatter: argument-hint, hooks, user-invocable. Only '
    said=$("$dir/python/bin/agentskills" validate "$skill" 2>&1) &&
        fail 'skills-ref takes the keys of Claude Code now'
    case $said in
        *"
$keys"*) ;;
        *) fail 'skills-ref says something else than what is known:' "$said" ;;
    esac
    [ "$(printf '%s\n' "$said" | wc -l)" = 2 ] || fail 'skills-ref does not take SKILL.md:' "$said"
}

# Cisco's scanner with its balanced policy has one false finding above LOW: it compares allowed tools
# as whole words, so Bash for the helpers alone is not Bash to it.
skill_scanner() {
    HOME=$dir "$dir/python/bin/skill-scanner" scan "$skill" --policy balanced --format json \
        --output-json "$dir/scan.json" >"$dir/log" 2>&1 || fail "$(cat "$dir/log")"
    found=$("$dir/python/bin/python" -c '
import json, sys
for found in json.load(open(sys.argv[1]))["findings"]:
    if found["severity"] not in ("LOW", "INFO"):
        print(found["severity"], found["rule_id"], found["file_path"])
' "$dir/scan.json" | LC_ALL=C sort)
    known='HIGH ALLOWED_TOOLS_BASH_VIOLATION SKILL.md'
    [ "$found" = "$known" ] || fail 'the skill scanner finds something else than what is known:' "$found"
}

# The words that are no errors stand in Cargo.toml.
spelling() {
    found=$("$dir/python/bin/typos" --hidden --no-ignore --format brief "$skill") || fail 'the spelling:' "$found"
}

skill_tools() {
    "$target/hosts/node_modules/.bin/skill-tools" lint --fail-on warning "$skill" >"$dir/log" 2>&1 ||
        fail "$(cat "$dir/log")"
}

# Build without optimizing: that would take longer than the check.
install_cargo_deny() {
    version=0.20.2
    [ -x "$dir/cargo-deny-$version/bin/cargo-deny" ] && return
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=$dir/build \
        cargo install --quiet --locked --no-default-features --no-track \
        --root "$dir/cargo-deny-$version" "cargo-deny@$version" >"$dir/log" 2>&1 || return
    rm -rf "$dir/build"
}

cargo_deny() {
    cat >"$dir/deny.toml" <<'EOF'
# What the helpers may be made of.
[graph]
all-features = true

[bans]
multiple-versions = "deny"
wildcards = "deny"

[licenses]
allow = ["MIT", "Apache-2.0", "Unicode-3.0"]

[sources]
unknown-registry = "deny"
unknown-git = "deny"
EOF
    deny() {
        GIT_TERMINAL_PROMPT=0 "$dir/cargo-deny-$version/bin/cargo-deny" --locked \
            --config "$dir/deny.toml" "$@" >"$dir/log" 2>&1
    }
    deny check bans licenses sources || fail "$(cat "$dir/log")"
    if deny fetch db; then
        deny check advisories || fail "$(cat "$dir/log")"
    else
        # Skip in CI too: the database is not in any package registry.
        echo "SKIPPED: cargo deny check advisories: their database cannot be reached"
    fi
}

copy_skill
if install_python; then
    spelling
    skills_ref
    skill_scanner
else
    skip 'the spelling, skills-ref and the skill scanner' "$(cat "$dir/log")"
fi
if command -v npm >/dev/null 2>&1 && sh tests/host/fetch.sh "$target/hosts"; then
    skill_tools
else
    skip 'skill-tools' 'npm is missing or cannot install it'
fi
if install_cargo_deny; then
    cargo_deny
else
    skip 'cargo deny' "$(cat "$dir/log")"
fi
