//! The build script: makes a release program for Linux smaller.
//!
//! The tables for unwinding are left out. Such a program aborts at a panic, so nothing reads them, and they
//! are a seventh of it. Rust's own option (`force-unwind-tables`) has no effect with link-time optimisation.
//! The relocations of a static program are packed, which is a thirtieth, and its segments not padded.

use std::path::Path;
use std::process::Command;

/// Takes effect in addition to the linker's own script. musl's first and last objects refer to their tables.
const SCRIPT: &str = "SECTIONS { /DISCARD/ : { \
    *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame) *(.gcc_except_table*) } } INSERT AFTER .text;";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=helpers/build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let is_released =
        variable("PROFILE") == "release" && variable("CARGO_CFG_TARGET_OS") == "linux";
    // A linker that the person chose may not read such a script: gold and mold do not.
    if is_released && !variable("CARGO_ENCODED_RUSTFLAGS").contains("fuse-ld") {
        let directory = std::env::var_os("OUT_DIR").unwrap_or_default();
        let script = Path::new(&directory).join("no-unwinding.ld");
        std::fs::write(&script, SCRIPT)?;
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        if variable("CARGO_CFG_TARGET_ENV") == "musl" {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,noseparate-code");
            if musl_reads_packed_relocations()? {
                println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
            }
        }
    }
    Ok(())
}

/// Returns true if Rust brings musl 1.2.4 or later. Programs with packed relocations do not start with an
/// earlier one.
fn musl_reads_packed_relocations() -> std::io::Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_default();
    let version = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout);
    let version = version.unwrap_or_default();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    Ok(minor.is_some_and(|minor| minor >= 93))
}
