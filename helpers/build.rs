//! The build script: leaves the tables for unwinding out of a release program for Linux.
//!
//! Such a program aborts at a panic, so nothing reads them, and they are a seventh of it. Rust's own
//! option (`force-unwind-tables`) has no effect with link-time optimisation.

use std::path::Path;

/// Takes effect in addition to the linker's own script.
const SCRIPT: &str =
    "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table*) } } INSERT AFTER .text;";

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
    }
    Ok(())
}
