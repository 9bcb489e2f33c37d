#!/bin/sh
# Type-checks the library, the program, the tests and the benchmark for macOS and for musl: sh
# tests/macos.sh TARGET. Nothing is linked, so no SDK and no C compiler for those systems is needed.
# Debian's compiler brings the sources of the standard library; it is unpacked into TARGET/macos,
# because the package conflicts with rustup. In CI a missing package fails this; elsewhere it is a
# skip.
set -eu
cd "$(dirname "$0")/.."
if [ $# -ne 1 ]; then
    echo 'usage: sh tests/macos.sh TARGET' >&2
    exit 64
fi
mkdir -p "$1/macos"
own=$(cd "$1/macos" && pwd)
# Debian keeps only the newest builds; if this version is gone, use the offered one.
wanted=1.96
rust=$own/rust-$wanted

missing() {
    if [ "${CI:-}" = true ]; then
        echo "tests/macos.sh: $1" >&2
        exit 1
    fi
    echo "SKIPPED: type check for macOS and musl: $1"
    exit 0
}

# fetch DIRECTORY: unpacks the compiler, and those of its libraries that this machine lacks.
fetch() {
    version=$(apt-cache madison rustc-web | awk -v wanted="$wanted." '
        NR == 1 { version = $3 }
        index($3, wanted) == 1 { version = $3; exit }
        END { print version }')
    [ -n "$version" ] || return 1
    series=$(echo "$version" | cut -d . -f 1,2)
    [ "$series" = "$wanted" ] || echo "tests/macos.sh: Debian has no Rust $wanted, using $version"
    # The simulation lists the packages of an installation.
    packages=$(apt-get install --simulate --reinstall --no-install-recommends -qq \
        "rustc-web=$version" "libstd-rust-web-$series=$version" "libstd-rust-web-dev=$version" \
        "rust-web-src=$version" | sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p')
    [ -n "$packages" ] || return 1
    rm -rf "$1"
    mkdir -p "$1/packages"
    # shellcheck disable=SC2086 # a word is a package
    (cd "$1/packages" && apt-get download -qq -o APT::Sandbox::User=root $packages) || return 1
    for package in "$1"/packages/*.deb; do
        case $package in
        # Unpack only the standard library of Rust's sources, and the link to it.
        */rust-web-src_*)
            dpkg-deb --fsys-tarfile "$package" |
                tar -x -C "$1" --wildcards './usr/lib/*' './usr/src/*/library/*' || return 1
            ;;
        *) dpkg-deb -x "$package" "$1" || return 1 ;;
        esac
    done
    rm -r "$1/packages"
}

if [ ! -d "$rust" ]; then
    command -v apt-get >/dev/null 2>&1 || missing "it needs Debian's packages rustc-web and rust-web-src"
    [ "$(id -u)" != 0 ] || apt-get update -qq || true
    fetch "$own/new" || missing "apt cannot fetch rustc-web and rust-web-src; run 'apt-get update'"
    rm -rf "$own"/rust-*
    mv "$own/new" "$rust"
fi

libraries=$(echo "$rust"/usr/lib/*-linux-gnu)
# -Zbuild-std is unstable, which RUSTC_BOOTSTRAP=1 lets a stable compiler do.
LD_LIBRARY_PATH=$libraries:$rust/lib/${libraries##*/} RUSTC=$rust/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS='-D warnings' CARGO_TARGET_DIR=$own \
    cargo check --quiet --locked -Zbuild-std=std,test --all-targets --features host-tests \
    --target aarch64-apple-darwin --target x86_64-unknown-linux-musl
