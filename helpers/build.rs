//! The build script: makes a release program for Linux smaller.
//!
//! The tables for unwinding are left out. Such a program aborts at a panic, so nothing reads them, and they
//! are a seventh of it. Rust's own option (`force-unwind-tables`) has no effect with link-time optimisation.
//! Relocations are packed where the C library can read them, which is a thirtieth.

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
        if variable("HOST") == variable("TARGET") && reads_packed_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Returns true if this machine's C library is glibc 2.36 or later. Programs with packed relocations do
/// not start with an earlier one, and some linkers do not know that.
#[cfg(target_env = "gnu")]
fn reads_packed_relocations() -> bool {
    use std::ffi::{CStr, c_char};
    unsafe extern "C" {
        safe fn gnu_get_libc_version() -> *const c_char;
    }
    // SAFETY: the C library returns a constant that ends with a zero.
    let version = unsafe { CStr::from_ptr(gnu_get_libc_version()) }.to_str().unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let numbers: [u32; 2] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    numbers >= [2, 36]
}

#[cfg(not(target_env = "gnu"))]
fn reads_packed_relocations() -> bool {
    false
}
