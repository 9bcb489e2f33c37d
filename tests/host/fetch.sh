#!/bin/sh
# Installs the CLIs pinned beside it into DIR: sh tests/host/fetch.sh DIR [newest]
# With `newest`, their newest versions. Prints nothing but errors; does nothing when the pinned versions
# are there already.
set -eu

if [ $# -lt 1 ] || [ "${2:-newest}" != newest ]; then
  echo 'usage: sh tests/host/fetch.sh DIR [newest]' >&2
  exit 64
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p -- "$1"
dir=$(CDPATH='' cd -- "$1" && pwd)

# ready ROOT: the lock is this one, and both CLIs start and tell the pinned version. (Claude's
# package holds a stub in the place of its binary until install.cjs has run.)
ready() {
  cmp -s "$here/package-lock.json" "$1/package-lock.json" || return 1
  mkdir -p -- "$1/node_modules/.home"
  for pin in @anthropic-ai/claude-code:claude @openai/codex:codex; do
    version=$(sed -n "s|^ *\"${pin%:*}\": \"\\([^\"]*\\)\".*|\\1|p" "$here/package.json")
    told=$(HOME="$1/node_modules/.home" "$1/node_modules/.bin/${pin#*:}" --version 2>/dev/null </dev/null) || return 1
    case " $told " in
    *" $version "*) ;;
    *) return 1 ;;
    esac
  done
}

for tool in node npm; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    echo "fetch.sh: $tool is not there, and installs the CLIs of the host tests: install Node.js 20 or newer" >&2
    exit 69
  fi
done

# Whatever is installed is installed aside and moved into place, so that an interrupted run leaves
# nothing half-made.
new=
trap 'rm -rf -- "$new"' EXIT
trap 'exit 1' HUP INT TERM
quiet='--no-audit --no-fund --no-update-notifier --loglevel=error'

if [ "${2:-}" = newest ]; then
  rm -rf -- "$dir/newest"
  mkdir -- "$dir/newest"
  pins='const p = require(process.argv[1]), npm = require("child_process").execFileSync;
    for (const list of [p.dependencies, p.others]) for (const name in list)
      list[name] = String(npm("npm", ["view", name, "version"])).trim();
    console.log(JSON.stringify(p, null, 2))'
  node -e "$pins" "$here/package.json" >"$dir/newest/package.json"
  here=$dir/newest
  # shellcheck disable=SC2086 # several words
  (cd -- "$here" && npm install --package-lock-only --ignore-scripts $quiet </dev/null >/dev/null)
fi

if ! ready "$dir"; then
  new=$(mktemp -d "$dir/.new.XXXXXX")
  cp "$here/package.json" "$here/package-lock.json" "$new/"
  # Install scripts are never left to npm, which may be set to block them, nor run twice.
  # shellcheck disable=SC2086 # several words
  (cd -- "$new" && npm ci --ignore-scripts --include=optional $quiet </dev/null >/dev/null)
  (cd -- "$new/node_modules/@anthropic-ai/claude-code" && node install.cjs </dev/null >/dev/null)
  if ! ready "$new"; then
    echo "fetch.sh: the CLIs were installed in $dir but do not start with the pinned versions" >&2
    exit 1
  fi
  if [ -e "$dir/node_modules" ]; then
    mv -- "$dir/node_modules" "$new/old"
  fi
  mv -- "$new/node_modules" "$new/package.json" "$new/package-lock.json" "$dir/"
  rm -rf -- "$new"
fi

# These stand apart, pinned by their versions: npm leaves their packages for other systems out of a lock,
# and then refuses that lock.
pins=$(node -p 'Object.entries(require(process.argv[1]).others).map((pin) => pin.join("@")).join(" ")' "$here/package.json")
if [ "$(cat "$dir/others/pins" 2>/dev/null)" != "$pins" ]; then
  new=$(mktemp -d "$dir/.new.XXXXXX")
  # shellcheck disable=SC2086 # several words
  npm install --prefix "$new" --no-package-lock --ignore-scripts $quiet $pins </dev/null >/dev/null
  (cd -- "$new/node_modules/opencode-ai" && node postinstall.mjs </dev/null >/dev/null)
  echo "$pins" >"$new/pins"
  rm -rf -- "$dir/others"
  mv -- "$new" "$dir/others"
fi

# `skills` wants a newer Node than the CLIs do: the machine's, or else npm's package of one.
if ! [ -x "$dir/node" ]; then
  old='const [a, b] = process.versions.node.split("."); process.exit(a > 22 || (a == 22 && b >= 20) ? 1 : 0)'
  if ! node -e "$old"; then
    node=$(command -v node)
  elif [ "$(uname -s)" = Linux ]; then
    package=node-linux-$(node -p process.arch)
    new=$(mktemp -d "$dir/.new.XXXXXX")
    # shellcheck disable=SC2086 # several words
    npm install --prefix "$new" --no-package-lock --ignore-scripts $quiet "$package@22.23.3" </dev/null >/dev/null
    rm -rf -- "$dir/node-22.23.3"
    mv -- "$new" "$dir/node-22.23.3"
    node=$dir/node-22.23.3/node_modules/$package/bin/node
  else
    echo 'fetch.sh: node is older than 22.20, which installs skills: install a newer Node.js' >&2
    exit 69
  fi
  ln -sf -- "$node" "$dir/node"
fi

# The tests read the versions here.
[ "$here" = "$dir" ] || cp "$here/package.json" "$dir/"
